"""LoRA updates ΔW = scale·B·A: where they are, their singular values, measures and flatness."""
