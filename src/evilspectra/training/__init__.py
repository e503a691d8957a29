"""Fine-tuning of a run, and its records."""
