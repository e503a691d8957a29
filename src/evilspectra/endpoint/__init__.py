"""An OpenAI-compatible endpoint: requests, retries, faults."""
