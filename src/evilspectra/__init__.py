"""Fine-tune LoRA adapters, watch and flatten their spectra, measure emergent misalignment."""

__version__ = "0.1.0"
