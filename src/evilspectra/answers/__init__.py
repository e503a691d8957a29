"""Open-ended questions and sampled answers."""
