"""A store as tables: its index, tidy frames, SQL."""
