"""An OpenAI-compatible endpoint: requests, retries, errors."""
