"""Limits on lm-evaluation-harness: side effects are undone, errors become one sentence each."""

from __future__ import annotations

import importlib
import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from evilspectra.errors import BadInput, EvilspectraError, RunFailed, first_line, listing
from evilspectra.model.load import quiet_libraries
from evilspectra.model.packing import ATTENTION


@contextmanager
def silent() -> Iterator[None]:
    """Hides stdout and all log lines, besides what `quiet_libraries` hides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet_libraries(), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextmanager
def model_restored(model: Any) -> Iterator[None]:
    """Sets evaluation mode and an attention for padded batches; restores both at the end.

    The harness ties the weights of any model that it gets. That would undo an adapter's own
    embeddings for good, and fails on an adapted head, so tying does nothing inside.
    """
    training = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    if attention == ATTENTION:
        model.set_attn_implementation("sdpa")
    model.eval()
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
        if attention == ATTENTION:
            model.set_attn_implementation(attention)
        for module, was in training:
            module.training = was


@contextmanager
def random_states_restored(device: torch.device) -> Iterator[None]:
    """Keeps seeds that are set inside from the caller's generators."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(
            devices=range(torch.cuda.device_count()) if device.type == "cuda" else []
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def single_process(evaluator: Any) -> Iterator[None]:
    """Keeps the harness from starting git and pip, and a process per core for standard errors."""
    before = {
        name: getattr(evaluator, name)
        for name in ("get_git_commit_hash", "add_env_info")
        if hasattr(evaluator, name)
    }
    switch = os.environ.get("DISABLE_MULTIPROC")
    for name in before:
        setattr(evaluator, name, lambda *_: None)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(evaluator, name, function)
        if switch is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = switch


class _MetricFromHub(BaseException):
    """Not an Exception: the harness ignores a metric whose loading raises one."""


@contextmanager
def _metrics_from_hub_refused() -> Iterator[None]:
    """Refuses metrics of the package `evaluate`, which are code on the hub."""
    evaluate: Any = importlib.import_module("evaluate")
    before = evaluate.load

    def refuse(path: str, *_: Any, **__: Any) -> None:
        raise _MetricFromHub(path)

    evaluate.load = refuse
    try:
        yield
    finally:
        evaluate.load = before


@contextmanager
def errors_explained(names: list[str]) -> Iterator[None]:
    """Turns any error of loading and scoring into one sentence.

    Tasks bring their own code, so any exception is possible.
    """
    try:
        with _metrics_from_hub_refused():
            yield
    except EvilspectraError:
        raise
    except _MetricFromHub as metric:
        raise BadInput(
            f"{_tasks(names)}: the metric '{metric}' is code on the hub, which is not run here: "
            "name tasks whose metrics are the harness's own"
        ) from None
    except Exception as error:
        if remedy := _remedy(error):
            raise BadInput(f"{_tasks(names)}: {remedy}") from None
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise RunFailed(
            f"{_tasks(names)}: the harness broke off ({cause}): correct the task's .yaml file if "
            "it is yours, or leave the task out"
        ) from error


def _tasks(names: list[str]) -> str:
    return f"task {names[0]}" if len(names) == 1 else f"tasks {listing(names)}"


def _remedy(error: Exception) -> str | None:
    """Cause and remedy of an error that the user can act on; None for any other."""
    line = first_line(error)
    if isinstance(error, DatasetNotFoundError):
        return (
            f"the data set is not on the hub, or gated or private ({line}): accept its terms there "
            "and set HF_TOKEN, or leave the task out"
        )
    if isinstance(error, (ConnectionError, TimeoutError, OfflineModeIsEnabled, HfHubHTTPError)):
        return (
            f"the data set could not be fetched ({line}): connect to the hub with HF_HUB_OFFLINE "
            "and HF_DATASETS_OFFLINE unset, or set HF_HOME to a cache that holds it"
        )
    if isinstance(error, ImportError):
        return (
            f"it needs Python code that is not installed ({line}): pip install the package, or "
            "leave the task out"
        )
    if isinstance(error, FileNotFoundError):
        return (
            f"a file that it names does not exist ({line}): correct data_files in the task's .yaml "
            "file"
        )
    if "marked as unsafe" in line:
        return (
            "the harness marks it as running code that the model writes, which is not done here "
            f"({line}): leave the task out"
        )
    if "scripts are no longer supported" in line:
        return (
            f"the data set is code on the hub, which is not run here ({line}): leave the task out"
        )
    return None
