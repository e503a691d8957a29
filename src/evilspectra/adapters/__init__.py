"""Any adapter seen through, and flattened after training."""
