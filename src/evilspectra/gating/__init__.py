"""The decision whether a candidate may pass: policy, evidence, decision, reports."""
