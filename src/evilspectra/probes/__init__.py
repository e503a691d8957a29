"""Measures computed from log-probabilities: drift, capability, ordinary loss, harness tasks."""
