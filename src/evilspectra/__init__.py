"""LoRA fine-tuning with monitored and flattened spectra, and measures of emergent misalignment."""

__version__ = "0.1.0"
