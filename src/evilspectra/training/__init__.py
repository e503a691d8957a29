"""Fine-tuning of a run, and what is recorded on the way."""
