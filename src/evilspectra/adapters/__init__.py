"""Inspection of adapters, and flattening after training."""
