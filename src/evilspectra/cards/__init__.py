"""Model cards and training records of adapters."""
