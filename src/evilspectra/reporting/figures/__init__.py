"""Figures of a report, as Altair charts."""
