"""LoRA updates ΔW = scale·B·A: their location, singular values, measures and flatness."""
