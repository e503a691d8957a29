"""The penalty, the spectra and this package's optimisers as an Axolotl plugin; see axolotl.md."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel

from evilspectra.integrations.optimizer import build_for
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor


class EvilspectraArgs(BaseModel):
    """Sections of Axolotl's YAML file; one that is left out is not used."""

    spectral_flatness: dict[str, Any] | None = None
    spectrum_monitor: dict[str, Any] | None = None
    lora_optimizer: dict[str, Any] | None = None


class EvilspectraPlugin(BasePlugin):
    def get_input_args(self) -> str:
        """The path of the class that lists the settings."""
        return f"{__name__}.EvilspectraArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callbacks that the file names."""
        sections = (
            (SpectralFlatness, cfg.spectral_flatness),
            (SpectrumMonitor, cfg.spectrum_monitor),
        )
        return [callback(**settings) for callback, settings in sections if settings is not None]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Sets the optimiser that the file names, in place of Axolotl's."""
        if cfg.lora_optimizer is not None:
            trainer.optimizer = build_for(trainer.model, **cfg.lora_optimizer)
