"""The command line, a file per group of verbs; `cli.py` puts them together."""
