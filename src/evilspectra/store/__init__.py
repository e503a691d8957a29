"""Runs on disk: folders, tables, records, and what was measured on them."""
