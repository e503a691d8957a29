"""The runs, adapters and models that a command's argument names."""
