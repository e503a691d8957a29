"""The device and number type of a run, and the set-up of the process for them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput, RunFailed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(config: ModelConfig) -> torch.device:
    """The device a config means; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        BadInput: the device is not on this machine.
    """
    name = _best_device() if config.device == "auto" else config.device
    if name.startswith("cuda") and torch.cuda.device_count() <= (torch.device(name).index or 0):
        raise BadInput(
            f"model.device '{name}' is not on this machine (CUDA devices: "
            f"{torch.cuda.device_count()}): set model.device: cpu or auto"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise BadInput("model.device 'mps' is not on this machine: set model.device: cpu or auto")
    return torch.device(name)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The number type of the frozen weights.

    `auto` is bfloat16 on CUDA devices that have it, float32 elsewhere.

    Raises:
        BadInput: the device has no such type.
    """
    if config.dtype != "auto":
        if config.dtype == "float64" and device.type == "mps":
            raise BadInput(
                "model.dtype float64 does not exist on mps: set model.dtype: float32 or "
                "model.device: cpu"
            )
        return DTYPES[config.dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def set_up_process(threads: int) -> None:
    """Fixes the number of CPU threads, and lets the C library keep freed memory."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Stops glibc from returning every large block to the system when it is freed.

    The page faults to get the memory back take a tenth of a step on the CPU.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def mixed_precision(model: Any) -> torch.autocast:
    """The context of a forward pass: autocast for a bfloat16 base with its float32 adapter.

    Any other model needs none.
    """
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)


@contextmanager
def memory_advice(remedy: str) -> Iterator[None]:
    """Turns running out of memory into one sentence that ends with `remedy`.

    Raises:
        RunFailed: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunFailed(f"memory ran out: {remedy}") from None
        raise
