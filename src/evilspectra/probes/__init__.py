"""Measures read off log-probabilities: drift, capability, ordinary loss, tasks of
lm-evaluation-harness.
"""
