"""Runs on disk: folders, tables, records and measurements."""
