"""X-rays of adapters, and adapters made flatter after training."""
