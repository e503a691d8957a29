"""LoRA fine-tuning with monitored and flattened spectra, and measures of emergent misalignment.

    import evilspectra as es

The public names, which docs/api.md describes, are loaded when first used: the import itself loads
neither torch nor pandas nor NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evilspectra.api.adapters import flatten, spectrum
    from evilspectra.api.analyses import analyze
    from evilspectra.api.configs import load_config
    from evilspectra.api.gating import gate
    from evilspectra.api.measuring import evaluate, probe
    from evilspectra.api.reports import report
    from evilspectra.api.scoring import score
    from evilspectra.api.stores import runs
    from evilspectra.api.sweeping import sweep
    from evilspectra.api.training import train
    from evilspectra.errors import EvilspectraError
    from evilspectra.integrations.optimizer import lora_optimizer
    from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
    from evilspectra.optim.lion import Lion
    from evilspectra.optim.muon import Muon
    from evilspectra.spectra.pairs import LoraPair, find_pairs
    from evilspectra.spectra.penalty import add_flatness_gradient
    from evilspectra.spectra.values import singular_values

__version__ = "0.1.0"

__all__ = [
    "EvilspectraError",
    "Lion",
    "LoraPair",
    "Muon",
    "SpectralFlatness",
    "SpectrumMonitor",
    "__version__",
    "add_flatness_gradient",
    "analyze",
    "evaluate",
    "find_pairs",
    "flatten",
    "gate",
    "load_config",
    "lora_optimizer",
    "probe",
    "report",
    "runs",
    "score",
    "singular_values",
    "spectrum",
    "sweep",
    "train",
]

#: Public name → the module that holds it. No module has the dotted name of a public name: its
#: import would put the module in the function's place.
_MODULES = {
    "spectrum": "api.adapters",
    "flatten": "api.adapters",
    "analyze": "api.analyses",
    "load_config": "api.configs",
    "gate": "api.gating",
    "evaluate": "api.measuring",
    "probe": "api.measuring",
    "report": "api.reports",
    "score": "api.scoring",
    "runs": "api.stores",
    "sweep": "api.sweeping",
    "train": "api.training",
    "EvilspectraError": "errors",
    "lora_optimizer": "integrations.optimizer",
    "SpectralFlatness": "integrations.transformers",
    "SpectrumMonitor": "integrations.transformers",
    "Lion": "optim.lion",
    "Muon": "optim.muon",
    "LoraPair": "spectra.pairs",
    "find_pairs": "spectra.pairs",
    "add_flatness_gradient": "spectra.penalty",
    "singular_values": "spectra.values",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used.

    Raises:
        MissingPackage: its module needs a package that is not installed, torch for instance.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'evilspectra' has no attribute {name!r}")
    from evilspectra.errors import packages_explained

    with packages_explained("train"):
        value = getattr(import_module(f"evilspectra.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
