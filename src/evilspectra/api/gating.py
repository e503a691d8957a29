"""The decision whether an adapter or a model may go into production: `gate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from evilspectra.answers.questions import read_questions
from evilspectra.api.arguments import (
    PathLike,
    Settings,
    name,
    optional_name,
    settings_mapping,
    silent,
)
from evilspectra.api.result import Result
from evilspectra.config.judge import JudgeConfig
from evilspectra.config.judge import judge_settings as judge_config
from evilspectra.config.loading import build
from evilspectra.config.yaml_files import merge, read_mapping
from evilspectra.errors import BadInput, packages_explained
from evilspectra.gating.decision import Check, Measurements, Outcome, decide
from evilspectra.gating.evidence import GateRequest, gather
from evilspectra.gating.output import Report, print_verdict, write_reports
from evilspectra.gating.output import junit as as_junit
from evilspectra.gating.output import markdown as as_markdown
from evilspectra.gating.policy import Policy, build_policy
from evilspectra.judging.judge import Judge
from evilspectra.probes.probe import probes


@dataclass(frozen=True, repr=False)
class Verdict(Result):
    """The verdict on a candidate: pass, fail or undecided, with every check and its reason.

    `report`: candidate, baseline, policy, judge, and the decision itself.
    """

    report: Report

    @property
    def candidate(self) -> str:
        """The candidate as it was named."""
        return self.report.candidate

    @property
    def baseline(self) -> str:
        """The baseline as it was named."""
        return self.report.baseline

    @property
    def policy(self) -> Policy:
        """The checks with their limits."""
        return self.report.policy

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of a check: pass, fail or undecided."""
        return self.report.verdict.outcome

    @property
    def passed(self) -> bool:
        """Whether every check passes."""
        return self.outcome == "pass"

    @property
    def exit_code(self) -> int:
        """0 for a pass, 1 for a fail, 3 for undecided."""
        return self.report.verdict.exit_code

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check: name, outcome, rule, reason, limit, value with interval, both sides."""
        return self.report.verdict.checks

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons why it is no pass, a sentence each, failures first; empty for a pass."""
        return self.report.verdict.reasons

    @property
    def notes(self) -> tuple[str, ...]:
        """Cautions for the reader."""
        return self.report.verdict.notes

    @property
    def headline(self) -> str:
        return f"gate: {self.outcome}: candidate {self.candidate}, baseline {self.baseline}"

    @property
    def details(self) -> tuple[str, ...]:
        """The reasons and the notes."""
        return (*self.reasons, *(f"note: {note}" for note in self.notes))

    def rows(self) -> list[dict[str, Any]]:
        """A row per check."""
        return [asdict(check) for check in self.checks]

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra gate --json` prints it."""
        return self.report.flat()

    def markdown(self) -> str:
        """A section for a job summary."""
        return as_markdown(self.report)

    def junit(self) -> str:
        """JUnit XML for a test report, a test case per check."""
        return as_junit(self.report)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=StringIO(), width=110, color_system=None, force_terminal=False)
        print_verdict(self.report, console)
        return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


@packages_explained("train")
def gate(
    candidate: PathLike,
    *,
    baseline: PathLike,
    policy: PathLike | Mapping[str, Any] | Policy | None = None,
    settings: Settings = (),
    judge: str | None = None,
    judge_url: str | None = None,
    judge_settings: Settings = (),
    seed: int | None = None,
    base: PathLike | None = None,
    model: Settings = (),
    output: PathLike = "runs",
    junit: PathLike | None = None,
    markdown: PathLike | None = None,
    note: Callable[[str], object] | None = None,
) -> Verdict:
    """Decides by a policy's rules whether a candidate may go into production.

    It may unless it is worse than the baseline; docs/gate.md explains the checks and their limits.

    Args:
        candidate: a run, the folder of a PEFT adapter, or a model.
        baseline: what it must not be worse than: its base, or the adapter in production.
        policy: a YAML file, a mapping of checks, or a policy; None: the default checks.
        settings: further settings of the policy, such as {"drift.max_increase": 0.1} (nats per
            token) or {"capability": False}.
        judge: samples answers of both and has them judged too: openai:MODEL, local:MODEL or
            scripted:FILE.
        judge_url: address of an OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY.
        judge_settings: other settings of the judge.
        seed: of resamples and answers; None: the policy's.
        base: base of adapters from outside a run, where their adapter_config.json names another.
        model: settings of the base, such as {"device": "cpu", "dtype": "float32"}.
        output: the store to look runs up in; other results go to its folder `evaluated`.
        junit: a file for JUnit XML; until the gate is done it says that it is not.
        markdown: a file for a job summary, likewise.
        note: takes a line of progress; None: silent.

    Returns:
        The verdict. What could not be measured is *undecided* with its reason, and raises nothing:
        a missing measurement never passes.

    Raises:
        BadInput: an unusable policy, a judge that is missing or cannot be used, a setting that is
            refused, a name that is neither text nor a path.
        Undecided: a report cannot be written.
        Interrupted: the user stopped the work.

        verdict = es.gate("runs/my-run", baseline="tiny-random")
        if not verdict.passed:
            print(verdict.reasons)
    """
    sides = name(candidate, "candidate"), name(baseline, "baseline")
    checks, settings_of_judge = _policy(policy, settings, judge, judge_url, judge_settings, seed)
    ready = _prepared(checks, settings_of_judge)
    values = settings_mapping(model, "model")
    model_config = build({"model": values}, "--model").model if values else None
    report_of = functools.partial(
        Report, *sides, policy=checks, judge=ready.name if ready else None
    )
    files: dict[Path, Callable[[Report], str]] = {}
    for path, text_of in ((junit, as_junit), (markdown, as_markdown)):
        if path:
            files[Path(name(path, "junit and markdown"))] = text_of
    # If the gate is killed, the reports that it leaves are not green.
    unfinished = Measurements.none("the gate did not finish")
    write_reports(report_of(verdict=decide(unfinished, checks)), files)
    request = GateRequest(
        *sides,
        name(output, "output"),
        model_config,
        optional_name(base, "base"),
        ready,
        settings_of_judge.max_requests if ready and settings_of_judge else None,
    )
    report = report_of(verdict=decide(gather(request, checks, note or silent), checks))
    write_reports(report, files)
    return Verdict(report)


def _policy(
    policy: PathLike | Mapping[str, Any] | Policy | None,
    settings: Settings,
    judge: str | None,
    judge_url: str | None,
    judge_settings: Settings,
    seed: int | None,
) -> tuple[Policy, JudgeConfig | None]:
    """The policy with its settings, and the settings of its judge.

    A judge that is named adds the check of answers.
    """
    source = "--set"
    if isinstance(policy, Policy):
        values = policy.model_dump(exclude_unset=True)
        written = {key: False if value is None else value for key, value in values.items()}
    elif policy is None or isinstance(policy, Mapping):
        written = dict(policy or {})
    else:
        source = name(policy, "policy")
        written = read_mapping(Path(source))
    values = merge(written, settings_mapping(settings))
    values = merge(values, {} if seed is None else {"seed": seed})
    checks = build_policy(values, source)
    settings_of_judge = _judge(checks, judge, judge_url, judge_settings)
    if settings_of_judge and not checks.misalignment:
        checks = build_policy(merge(values, {"misalignment": {}}), source)
    return checks, settings_of_judge


def _judge(
    policy: Policy, judge: str | None, judge_url: str | None, judge_settings: Settings
) -> JudgeConfig | None:
    """The judge's settings: the policy's, overridden by the arguments; None without a judge.

    If the arguments name another judge than the policy, none of the policy's settings are used.
    """
    written = policy.misalignment.judge if policy.misalignment else None
    chosen = judge or (written.judge if written else None)
    overrides = {"url": judge_url, **settings_mapping(judge_settings, "judge_settings")}
    overrides = {field: value for field, value in overrides.items() if value is not None}
    if chosen is None:
        if overrides:
            raise BadInput(
                "--judge-url and --judge-set are settings of a judge, and none is named: "
                "name one with --judge, or in the policy under misalignment.judge"
            )
        return None
    if chosen.startswith("class:") and judge is None:
        raise BadInput(
            f"the policy names the judge {chosen}, and a class is code: it is imported only if the "
            f"command line names it too: add --judge {chosen}"
        )
    before = written.model_dump(exclude_unset=True) if written and written.judge == chosen else {}
    return judge_config({**before, **overrides, "judge": chosen})


def _prepared(policy: Policy, settings: JudgeConfig | None) -> Judge | None:
    """The judge, ready to be asked; None without answers to judge.

    Whatever is wrong with items, questions or the judge is found here, before anything is measured.
    """
    probes(policy.evaluation(), {})
    if policy.misalignment is None:
        return None
    if settings is None:
        raise BadInput(
            "the policy has a section misalignment, and no judge: name one with --judge, "
            "or under misalignment.judge, or write misalignment: false"
        )
    from evilspectra.judging.make import make_judge

    read_questions(policy.misalignment.answers.questions)
    if policy.misalignment.answers.endpoint:
        from evilspectra.endpoint.chat import require_client

        require_client(policy.misalignment.answers.endpoint)
    return make_judge(settings)
