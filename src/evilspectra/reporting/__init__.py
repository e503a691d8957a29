"""Runs as sentences, figures and pages."""
