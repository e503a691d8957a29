"""Training dialogues: published data sets, files, tokens, batches."""
