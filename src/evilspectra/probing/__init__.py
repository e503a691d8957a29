"""What is read off log-probabilities."""
