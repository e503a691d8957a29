"""The judge that options name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from evilspectra.api.arguments import Settings
from evilspectra.api.layers import layers

if TYPE_CHECKING:
    from evilspectra.judging.judge import Judge


class JudgeArguments(NamedTuple):
    """The judge, the metrics that it judges, and the most requests that may be sent."""

    judge: Judge
    metrics: list[str]
    max_requests: int


def judge_of(
    judge: str,
    options: Mapping[str, Any],
    metrics: str | Sequence[str],
    settings: Settings = (),
) -> JudgeArguments:
    """Makes the judge of that name.

    `options`: settings by name, those that are None left out; `settings` are laid over them.

    Raises:
        BadInput: there is no such judge, or something that it needs is missing.
    """
    from evilspectra.config.judge import judge_settings
    from evilspectra.config.yaml_files import assignments
    from evilspectra.judging.make import make_judge

    values = dict(options) | assignments(layers(settings, "judge_settings"))
    values = {name: value for name, value in values.items() if value is not None}
    checked = judge_settings({"judge": judge, **values})
    parts = metrics.split(",") if isinstance(metrics, str) else metrics
    names = [part.strip() for part in parts if part.strip()]
    return JudgeArguments(make_judge(checked), names, checked.max_requests)
