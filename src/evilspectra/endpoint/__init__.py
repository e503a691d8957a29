"""An OpenAI-compatible endpoint: requests, attempts, faults."""
