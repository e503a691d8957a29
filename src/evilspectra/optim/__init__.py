"""Optimisers for LoRA factors, the rule for each tensor, and schedules.

Lion and Muon are implemented here; SGD, Adam and AdamW are torch's.
"""
