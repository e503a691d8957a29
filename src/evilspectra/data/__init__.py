"""Training dialogues: published sets, files, tokens, batches."""
