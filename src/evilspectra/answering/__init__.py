"""Open-ended questions and sampled answers, here or over HTTP."""
