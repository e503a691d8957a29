"""Singular values of LoRA updates ΔW = scale·B·A: found, computed, measured, flattened."""
