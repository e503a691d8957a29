"""A gate's verdict as text on a terminal, as JSON, as JUnit XML for a test report, and as Markdown for
a job summary. No torch here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import evilspectra
from evilspectra.errors import EvilspectraError, Undecided
from evilspectra.gating.decision import Check, Outcome, Verdict
from evilspectra.gating.policy import Policy
from evilspectra.store.files import write_atomically
from evilspectra.text import printable

_WORDS: dict[Outcome, str] = {"pass": "PASS", "fail": "FAIL", "undecided": "UNDECIDED"}
_MARKS: dict[Outcome, str] = {"pass": "✅", "fail": "❌", "undecided": "⚠️"}
_MEANING: dict[Outcome, str] = {
    "pass": "every check holds",
    "fail": "at least one check does not hold",
    "undecided": "not everything could be measured, so nothing is let through",
}


@dataclass(frozen=True)
class Told:
    """A verdict with what it is about. `judge`: who judged, where answers were."""

    candidate: str
    baseline: str
    verdict: Verdict
    policy: Policy
    judge: str | None = None

    def flat(self) -> dict[str, Any]:
        """Of JSON's types."""
        policy = self.policy.model_dump(mode="json")
        return {
            "candidate": self.candidate,
            "baseline": self.baseline,
            **self.verdict.flat(),
            "judge": self.judge,
            "policy": policy,
            "version": evilspectra.__version__,
        }


def print_verdict(told: Told, console: Console | None = None) -> None:
    """The verdict on one screen."""
    console = console or Console()
    console.width = max(console.width, 110)

    def say(text: str) -> None:
        console.print(
            printable(text, 1000), markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    outcome = told.verdict.outcome
    say(f"gate: {_WORDS[outcome]} ({_MEANING[outcome]}), exit code {told.verdict.exit_code}")
    say(f"candidate: {told.candidate}")
    say(f"baseline:  {told.baseline}")
    if told.judge:
        say(f"judge:     {told.judge}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (
        ("check", "left"),
        ("", "left"),
        ("difference", "right"),
        ("limit", "right"),
        ("candidate", "right"),
        ("baseline", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for check in told.verdict.checks:
        table.add_row(
            check.name,
            _WORDS[check.outcome],
            _change(check),
            _limit(check),
            _value(check.candidate),
            _value(check.baseline),
        )
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)
    for reason in told.verdict.reasons:
        say(f"- {reason}")
    for note in told.verdict.notes:
        say(f"  note: {note}")


def markdown(told: Told) -> str:
    """A section for a job summary."""
    outcome = told.verdict.outcome
    lines = [
        f"## {_MARKS[outcome]} evilspectra gate: {outcome}",
        "",
        f"{_MEANING[outcome].capitalize()}.",
        "",
        f"Candidate {_cell(told.candidate)}, baseline {_cell(told.baseline)}"
        + (f", judged by {_cell(told.judge)}" if told.judge else "")
        + ".",
        "",
    ]
    lines += [
        "| check | outcome | difference (95 %) | limit | candidate | baseline |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        (
            f"| {_cell(check.name)} | {_MARKS[check.outcome]} {check.outcome} | {_change(check)} | "
            f"{_limit(check)} | {_value(check.candidate)} | {_value(check.baseline)} |"
        )
        for check in told.verdict.checks
    ]
    lines += [
        "",
        *(f"- {_cell(reason)}" for reason in told.verdict.reasons),
        *(f"- note: {_cell(note)}" for note in told.verdict.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def junit(told: Told) -> str:
    """JUnit XML: a test case per check; a failed check is a failure, an undecided one an error, and no
    checks at all are an error too.
    """
    checks = told.verdict.checks
    counts = {
        "tests": max(1, len(checks)),
        "failures": sum(check.outcome == "fail" for check in checks),
        "errors": sum(check.outcome == "undecided" for check in checks) or int(not checks),
    }
    numbers = {name: str(count) for name, count in counts.items()} | {"skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "evilspectra gate", **numbers})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": f"evilspectra gate: {_xml(told.candidate)} against {_xml(told.baseline)}",
            **numbers,
        },
    )
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "evilspectra.gating.decision", "name": check.name}
        )
        if check.outcome != "pass":
            kind = "failure" if check.outcome == "fail" else "error"
            ElementTree.SubElement(
                case, kind, {"type": check.outcome, "message": _xml(check.reason)}
            ).text = _xml(f"{check.rule}: {check.reason}")
        ElementTree.SubElement(case, "system-out").text = _xml(
            f"difference {_change(check)}, limit {_limit(check)}, candidate "
            f"{_value(check.candidate)}, baseline {_value(check.baseline)}"
        )
    if not checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "evilspectra.gating.decision", "name": "gate"}
        )
        ElementTree.SubElement(
            case, "error", {"type": "undecided", "message": _xml("; ".join(told.verdict.reasons))}
        )
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


def write_reports(told: Told, files: Mapping[Path, Callable[[Told], str]]) -> None:
    """Writes each file as its function tells it.

    Raises:
        Undecided: one cannot be written; a gate whose report is missing is not green.
    """
    for path, tell in files.items():
        try:
            write_atomically(
                path,
                lambda place, tell=tell: place.write_text(tell(told), encoding="utf-8"),
                "--junit or --markdown",
            )
        except EvilspectraError as error:
            raise Undecided(f"the report of the gate could not be written: {error}") from None


def _change(check: Check) -> str:
    if check.value is None:
        return "not measured"
    if check.low is None or check.high is None:
        return _value(check.value)
    return f"{check.value:+.3f} [{check.low:+.3f}, {check.high:+.3f}]"


def _limit(check: Check) -> str:
    unit = f" {check.unit}" if check.unit else ""
    return (
        f"{'<' if 'below' in check.rule else '>' if 'above' in check.rule else '≥' if 'least' in check.rule else '≤'} "
        f"{check.limit:g}{unit}"
    )


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(text: str) -> str:
    """Names and sentences in one line of Markdown, without its marks and without HTML's."""
    shown = " ".join(printable(text, 1000).split())
    return "".join(
        {"|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "`": "'", "[": "\\[", "*": "\\*"}.get(
            character, character
        )
        for character in shown
    )


def _xml(text: str) -> str:
    """Text that XML 1.0 takes: control and unassigned characters as escapes."""
    return printable(text, 2000)
