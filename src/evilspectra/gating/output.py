"""A gate's verdict as text on a terminal, JSON, JUnit XML and Markdown.

JUnit XML is for a test report, Markdown for a job summary. No torch here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import evilspectra
from evilspectra.errors import EvilspectraError, Undecided
from evilspectra.gating.decision import Check, Outcome, Verdict
from evilspectra.gating.policy import Policy
from evilspectra.intervals import Interval
from evilspectra.numbers import bracketed, number
from evilspectra.store.files import write_atomically
from evilspectra.terminal import plain_table, print_line, print_table, wide_console
from evilspectra.text import printable

_HEADINGS: dict[Outcome, str] = {"pass": "PASS", "fail": "FAIL", "undecided": "UNDECIDED"}
_MARKS: dict[Outcome, str] = {"pass": "✅", "fail": "❌", "undecided": "⚠️"}
_MEANING: dict[Outcome, str] = {
    "pass": "every check passes",
    "fail": "at least one check fails",
    "undecided": "not everything could be measured, so nothing is let through",
}
#: The class of every test case in JUnit XML.
_TEST_CLASS = "evilspectra.gate"
#: Characters that mean something in Markdown or HTML.
_ESCAPES = str.maketrans(
    {"|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "`": "'", "[": "\\[", "*": "\\*"}
)


@dataclass(frozen=True)
class Report:
    """A verdict with its subject: candidate, baseline, policy, and the judge if there was one."""

    candidate: str
    baseline: str
    verdict: Verdict
    policy: Policy
    judge: str | None = None

    def flat(self) -> dict[str, Any]:
        """The report as JSON's types."""
        policy = self.policy.model_dump(mode="json")
        return {
            "candidate": self.candidate,
            "baseline": self.baseline,
            **self.verdict.flat(),
            "judge": self.judge,
            "policy": policy,
            "version": evilspectra.__version__,
        }


def print_verdict(report: Report, console: Console | None = None) -> None:
    """The verdict on one screen."""
    console = wide_console(console, 110)

    def say(text: str) -> None:
        print_line(console, printable(text, 1000))

    outcome = report.verdict.outcome
    say(f"gate: {_HEADINGS[outcome]} ({_MEANING[outcome]}), exit code {report.verdict.exit_code}")
    say(f"candidate: {report.candidate}")
    say(f"baseline:  {report.baseline}")
    if report.judge:
        say(f"judge:     {report.judge}")
    table = plain_table()
    for heading, justify in (
        ("check", "left"),
        ("", "left"),
        ("difference", "right"),
        ("limit", "right"),
        ("candidate", "right"),
        ("baseline", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for check in report.verdict.checks:
        table.add_row(
            check.name,
            _HEADINGS[check.outcome],
            _change(check),
            _limit(check),
            number(check.candidate, ".3f"),
            number(check.baseline, ".3f"),
        )
    print_table(console, table)
    for reason in report.verdict.reasons:
        say(f"- {reason}")
    for note in report.verdict.notes:
        say(f"  note: {note}")


def markdown(report: Report) -> str:
    """A section for a job summary."""
    outcome = report.verdict.outcome
    subject = f"Candidate {_cell(report.candidate)}, baseline {_cell(report.baseline)}"
    judge = f", judged by {_cell(report.judge)}" if report.judge else ""
    lines = [
        f"## {_MARKS[outcome]} evilspectra gate: {outcome}",
        "",
        f"{_MEANING[outcome].capitalize()}.",
        "",
        f"{subject}{judge}.",
        "",
        "| check | outcome | difference (95 %) | limit | candidate | baseline |",
        "|---|---|---|---|---|---|",
        *(_row(check) for check in report.verdict.checks),
        "",
        *(f"- {_cell(reason)}" for reason in report.verdict.reasons),
        *(f"- note: {_cell(note)}" for note in report.verdict.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(check: Check) -> str:
    """A check as a row of the Markdown table."""
    cells = (
        _cell(check.name),
        f"{_MARKS[check.outcome]} {check.outcome}",
        _change(check),
        _limit(check),
        number(check.candidate, ".3f"),
        number(check.baseline, ".3f"),
    )
    return f"| {' | '.join(cells)} |"


def junit(report: Report) -> str:
    """JUnit XML: a test case per check.

    A failed check is a failure, an undecided one an error, and no checks at all are an error too.
    """
    checks = report.verdict.checks
    counts = {
        "tests": max(1, len(checks)),
        "failures": sum(check.outcome == "fail" for check in checks),
        "errors": sum(check.outcome == "undecided" for check in checks) or int(not checks),
    }
    numbers = {name: str(count) for name, count in counts.items()} | {"skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": "evilspectra gate", **numbers})
    title = f"evilspectra gate: {_xml(report.candidate)} against {_xml(report.baseline)}"
    suite = ElementTree.SubElement(root, "testsuite", {"name": title, **numbers})
    for check in checks:
        _test_case(suite, check)
    if not checks:
        attributes = {"classname": _TEST_CLASS, "name": "gate"}
        case = ElementTree.SubElement(suite, "testcase", attributes)
        message = _xml("; ".join(report.verdict.reasons))
        ElementTree.SubElement(case, "error", {"type": "undecided", "message": message})
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _test_case(suite: ElementTree.Element, check: Check) -> None:
    """Adds a check to a JUnit test suite."""
    attributes = {"classname": _TEST_CLASS, "name": check.name}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if check.outcome != "pass":
        kind = "failure" if check.outcome == "fail" else "error"
        attributes = {"type": check.outcome, "message": _xml(check.reason)}
        fault = ElementTree.SubElement(case, kind, attributes)
        fault.text = _xml(f"{check.rule}: {check.reason}")
    ElementTree.SubElement(case, "system-out").text = _xml(
        f"difference {_change(check)}, limit {_limit(check)}, "
        f"candidate {number(check.candidate, '.3f')}, baseline {number(check.baseline, '.3f')}"
    )


def write_reports(report: Report, files: Mapping[Path, Callable[[Report], str]]) -> None:
    """Writes each file with its function's text.

    Raises:
        Undecided: a file cannot be written; a gate whose report is missing is not green.
    """
    for path, text_of in files.items():
        text = text_of(report)
        try:
            write_atomically(
                path,
                lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"),
                "--junit or --markdown",
            )
        except EvilspectraError as error:
            raise Undecided(f"the report of the gate could not be written: {error}") from None


def _change(check: Check) -> str:
    if check.value is None:
        return "not measured"
    if check.low is None or check.high is None:
        return number(check.value, ".3f")
    return bracketed(Interval(check.value, check.low, check.high), "+.3f")


def _limit(check: Check) -> str:
    signs = {"below": "<", "above": ">", "least": "≥"}
    sign = next((sign for word, sign in signs.items() if word in check.rule), "≤")
    unit = f" {check.unit}" if check.unit else ""
    return f"{sign} {check.limit:g}{unit}"


def _cell(text: str) -> str:
    """Names and sentences on one line of Markdown, with its marks and HTML's escaped."""
    line = " ".join(printable(text, 1000).split())
    return line.translate(_ESCAPES)


def _xml(text: str) -> str:
    """Text that XML 1.0 allows: control and unassigned characters as escapes."""
    return printable(text, 2000)
