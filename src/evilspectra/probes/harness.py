"""Tasks of EleutherAI's lm-evaluation-harness on a model that is already loaded.

Its package, lm-eval, is an extra: imported inside functions only.

The harness writes to the terminal, sets random seeds, lists git and pip for its logs, adds a pad
token to the tokenizer and puts the model into evaluation mode; none of it is left when a call
returns.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from evilspectra.errors import BadInput, EvilspectraError, RunFailed, first_line, listing
from evilspectra.model.device import memory_advice
from evilspectra.model.packing import ATTENTION

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Draws behind a standard error that has no formula (F1, median, BLEU): it is known to 2 %, from
#: one process. The harness draws 100,000.
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One metric of one task, or of a group of tasks.

    `value` and `stderr` have the metric's own unit (a share from 0 to 1 for accuracies); `stderr`
    is None where the harness gives none, as for a single item. `filter` says what was cut from the
    model's answer before scoring (`none`: nothing); `items` counts the scored documents; `version`
    is the task's own, and scores of two versions are not comparable.

    >>> TaskResult("arc_easy", "acc", "none", value=0.61, stderr=0.01, items=2376, version="1.0").value
    0.61
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    items: int
    version: str


def run_tasks(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    chat_template: bool = False,
    seed: int = 0,
) -> list[TaskResult]:
    """Scores a model on tasks, groups or tags that the harness knows, one entry per task and
    metric, in its order.

    `limit`: documents per task, from its beginning; `num_fewshot`: solved examples before each
    question, where a task's file does not say 0, which the harness keeps; `include_path`: a folder
    of further tasks (*.yaml), whose Python functions are run, so use your own; `seed`: for the
    choice of examples and for sampling. Prompts longer than the model's context lose their
    beginning. Log-probabilities are taken in float32 at least. Data sets come from the hub or its
    cache on this machine. Code from the hub is not run, nothing is uploaded, and model, tokenizer
    and random states are left as they were.

    >>> run_tasks(model, tokenizer, ["arc_easy"], limit=100)[0]  # doctest: +SKIP
    TaskResult(task='arc_easy', metric='acc', filter='none', value=0.58, stderr=0.0496, items=100, version='1.0')

    Raises:
        BadInput: the extra is not installed, a task or value that does not exist, or data that
            cannot be fetched.
        RunFailed: memory ran out, or a task broke off.
    """
    names = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
    _check(
        names,
        tokenizer,
        limit=limit,
        batch_size=batch_size,
        num_fewshot=num_fewshot,
        include_path=include_path,
        chat_template=chat_template,
    )
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_model_kept(model))
        stack.enter_context(_random_states_kept(model.device))
        evaluator, huggingface, manager = (
            _part("evaluator"),
            _part("models.huggingface"),
            _manager(names, include_path),
        )
        stack.enter_context(_explained(names))
        stack.enter_context(memory_advice(f"lower batch_size (it is {batch_size})"))
        stack.enter_context(_own_process_only(evaluator))
        wrapped = huggingface.HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            trust_remote_code=False,
            **_precision(model),
        )
        found = evaluator.simple_evaluate(
            model=wrapped,
            tasks=names,
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            confirm_run_unsafe_code=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return list(_results(found))


def harness_version() -> str:
    """The installed version of lm-eval; raises BadInput where the extra is not installed."""
    return str(_part("__init__").__version__)


def _check(
    names: list[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit: int | None,
    batch_size: int,
    num_fewshot: int | None,
    include_path: Path | None,
    chat_template: bool,
) -> None:
    if not names:
        raise BadInput("no task is named: name at least one task of the harness, such as arc_easy")
    if limit is not None and limit < 1:
        raise BadInput(
            f"limit {limit} leaves no document: set it to 1 or more, or leave it out for whole "
            "tasks"
        )
    if batch_size < 1:
        raise BadInput(f"batch_size {batch_size} is no number of prompts: set it to 1 or more")
    if num_fewshot is not None and num_fewshot < 0:
        raise BadInput(
            f"num_fewshot {num_fewshot} is no number of examples: set it to 0 or more, or leave it "
            "out for each task's own"
        )
    if include_path is not None and not include_path.is_dir():
        raise BadInput(
            f"include_path '{include_path}' is no folder: name the folder that holds the tasks' "
            ".yaml files"
        )
    if chat_template and not tokenizer.chat_template:
        raise BadInput(
            "the tokenizer has no chat template: leave chat_template out, or use the instruct "
            "version of the model"
        )


def _part(name: str) -> Any:
    """A module of the harness."""
    try:
        return importlib.import_module(f"lm_eval.{name}")
    except ImportError as error:
        raise BadInput(
            "the harness's tasks need the package lm-eval, and the extra is not installed "
            f"({first_line(error)}): pip install 'evilspectra[harness]'"
        ) from None


def _manager(names: list[str], include_path: Path | None) -> Any:
    """The harness's index of tasks.

    Reading the files of its own 14,000 takes seconds, so it is spared where the folder's tasks are
    enough.

    Raises:
        BadInput: tasks that are in neither.
    """
    manager = None
    if include_path is not None:
        manager = _part("tasks").TaskManager(include_path=str(include_path), include_defaults=False)
        if not manager.all_groups and set(names) <= set(manager.all_tasks):
            return manager
        manager = _part("tasks").TaskManager(include_path=str(include_path))
    manager = manager or _built_in()
    if unknown := [name for name in names if name not in set(manager.all_tasks)]:
        place = (
            "the harness"
            if include_path is None
            else f"the harness or in a readable .yaml file of {include_path}"
        )
        raise BadInput(
            f"not in {place}: "
            f"{listing((_with_near(name, manager.all_tasks) for name in unknown), 5)}; `lm_eval ls "
            "tasks` lists what is"
        )
    return manager


@functools.cache
def _built_in() -> Any:
    return _part("tasks").TaskManager()


def _with_near(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    return f"'{name}' (near: {listing(found)})" if found else f"'{name}' (nothing is near)"


def _precision(model: PreTrainedModel | PeftModel) -> dict[str, torch.dtype | None]:
    """As in training: adapters in float32 on a bfloat16 base need autocast. bfloat16 would round a
    log-probability of −20 to eighths.
    """
    return {
        "mixed_precision_dtype": torch.bfloat16 if model.dtype == torch.bfloat16 else None,
        "softmax_dtype": torch.float64 if model.dtype == torch.float64 else torch.float32,
    }


def _results(found: dict[str, Any]) -> Iterator[TaskResult]:
    for task, scores in found["results"].items():
        for key, value in scores.items():
            metric, comma, cut = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            error = scores.get(f"{metric}_stderr,{cut}")
            items = scores.get("sample_count", {}).get(key, scores["sample_len"])
            yield TaskResult(
                task,
                metric,
                cut,
                float(value),
                float(error) if isinstance(error, Real) else None,
                int(items),
                str(found["versions"].get(task, "")),
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stdout or stderr, no warnings and no log lines: errors are exceptions, and the
    caller says what matters.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _model_kept(model: Any) -> Iterator[None]:
    """Evaluation mode, and an attention for rows side by side, inside; training mode and attention
    as they were afterwards.

    The harness ties the weights of any model that it is given. That would undo an adapter's own
    embeddings for good, and fails on an adapted head, so that it does nothing inside.
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
def _random_states_kept(device: torch.device) -> Iterator[None]:
    """Seeds set inside do not reach the caller's generators."""
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
def _own_process_only(evaluator: Any) -> Iterator[None]:
    """Keeps the harness from starting git and pip for its logs, and a process per core for standard
    errors.
    """
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
    """Not an Exception, as the harness goes on without a metric whose loading raises one."""


@contextmanager
def _metrics_from_hub_refused() -> Iterator[None]:
    """Metrics of the package `evaluate` are code on the hub: asking for one stops the work."""
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
def _explained(names: list[str]) -> Iterator[None]:
    """Turns what loading and scoring can raise into one sentence; the tasks' own files can make it
    anything.
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
        told = f"{type(error).__name__}: {first_line(error)}"
        raise RunFailed(
            f"{_tasks(names)}: the harness broke off ({told}): correct the task's .yaml file if it "
            "is yours, or leave the task out"
        ) from error


def _tasks(names: list[str]) -> str:
    return f"task {names[0]}" if len(names) == 1 else f"tasks {listing(names)}"


def _remedy(error: Exception) -> str | None:
    """What is wrong and what to do, for errors that the user can act on; None for others."""
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
            f"a file that it names is not there ({line}): correct data_files in the task's .yaml "
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
