"""Tasks of EleutherAI's lm-evaluation-harness on a model that is already loaded.

Its package, lm-eval, is an extra and is imported only inside functions.

The harness writes to the terminal, sets random seeds, starts git and pip for its logs, adds a pad
token to the tokenizer and puts the model into evaluation mode; all of this is undone when a call
returns.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evilspectra.errors import BadInput, first_line, listing
from evilspectra.model.device import memory_advice
from evilspectra.probes.isolation import (
    errors_explained,
    model_restored,
    random_states_restored,
    silent,
    single_process,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Resamples for a standard error that has no formula (F1, median, BLEU), which is then accurate to
#: 2 %; one process draws them. The harness's default is 100,000.
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One metric of one task, or of a group of tasks.

    `value` and `stderr` have the metric's own unit (a share from 0 to 1 for accuracies); `stderr`
    is None where the harness gives none, as for a single item. `filter` says what was cut from the
    model's answer before scoring (`none`: nothing); `items` counts the scored documents; `version`
    is the task's own, and scores of two versions are not comparable.

    >>> result = TaskResult("arc_easy", "acc", "none", 0.61, stderr=0.01, items=2376, version="1.0")
    >>> result.value
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
    """Scores a model on tasks, groups or tags of the harness, one entry per task and metric.

    `limit`: documents per task, from its beginning; `num_fewshot`: solved examples before each
    question, where a task's file does not say 0, which the harness keeps; `include_path`: a folder
    of further tasks (*.yaml), whose Python functions are run, so use your own; `seed`: for the
    choice of examples and for sampling. Prompts longer than the model's context lose their
    beginning. Log-probabilities are taken in float32 at least. Data sets come from the hub or its
    cache on this machine. Code from the hub is not run, nothing is uploaded, and model, tokenizer
    and random states are left as they were.

    >>> run_tasks(model, tokenizer, ["arc_easy"], limit=100)[0]  # doctest: +SKIP
    TaskResult(task='arc_easy', metric='acc', filter='none', value=0.58, stderr=0.0496, items=100,
        version='1.0')

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
        stack.enter_context(silent())
        stack.enter_context(model_restored(model))
        stack.enter_context(random_states_restored(model.device))
        evaluator = _part("evaluator")
        huggingface = _part("models.huggingface")
        manager = _manager(names, include_path)
        stack.enter_context(errors_explained(names))
        stack.enter_context(memory_advice(f"lower batch_size (it is {batch_size})"))
        stack.enter_context(single_process(evaluator))
        wrapped = huggingface.HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=batch_size,
            trust_remote_code=False,
            **_precision(model),
        )
        output = evaluator.simple_evaluate(
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
    return list(_results(output))


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

    Reading its own 14,000 files takes seconds, so they are skipped if the folder's tasks are
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
        sources = "the harness"
        if include_path is not None:
            sources += f" or in a readable .yaml file of {include_path}"
        tasks = listing((_with_near(name, manager.all_tasks) for name in unknown), 5)
        raise BadInput(f"not in {sources}: {tasks}; `lm_eval ls tasks` lists all that are")
    return manager


@functools.cache
def _built_in() -> Any:
    return _part("tasks").TaskManager()


def _with_near(name: str, tasks: list[str]) -> str:
    matches = difflib.get_close_matches(name, tasks, n=5, cutoff=0.6)
    return f"'{name}' (near: {listing(matches)})" if matches else f"'{name}' (nothing is near)"


def _precision(model: PreTrainedModel | PeftModel) -> dict[str, torch.dtype | None]:
    """Number types as in training: adapters in float32 on a bfloat16 base need autocast.

    bfloat16 would round a log-probability of −20 to eighths.
    """
    return {
        "mixed_precision_dtype": torch.bfloat16 if model.dtype == torch.bfloat16 else None,
        "softmax_dtype": torch.float64 if model.dtype == torch.float64 else torch.float32,
    }


def _results(output: dict[str, Any]) -> Iterator[TaskResult]:
    for task, scores in output["results"].items():
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
                str(output["versions"].get(task, "")),
            )
