"""Base models and LoRA adapters in memory."""
