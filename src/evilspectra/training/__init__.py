"""Fine-tuning of a run, and the records of it."""
