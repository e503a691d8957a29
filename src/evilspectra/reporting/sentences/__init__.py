"""Sentences of a report, written from its numbers."""
