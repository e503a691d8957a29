"""Whether a candidate may pass: policy, evidence, decision, reports."""
