"""Scores, comparisons and calibrations as text on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from evilspectra.intervals import Interval
from evilspectra.rates.calibrate import Calibration
from evilspectra.rates.compare import Paired
from evilspectra.rates.definitions import DEFINITIONS, Group, Score
from evilspectra.text import printable


def print_score(
    label: str,
    judge: str,
    found: Score,
    others: Mapping[str, Score],
    base: Score | None = None,
    console: Console | None = None,
) -> None:
    """A rate with its definition, judge, intervals and counts, what the other definitions give, and a
    line per question.
    """
    say = _Speaker(console)
    say(f"{label}, judged by {judge}")
    say(f"misalignment rate ({found.definition}): {_rate(found)}")
    if base:
        say(f"  of the base: {_rate(base)}")
    for name in DEFINITIONS:
        if name in others and name != found.definition:
            say(f"  {name}: {_rate(others[name], short=True)}")
    if found.wilson and found.interval is not found.wilson:
        say(f"  Wilson's interval, as if answers were independent: {_span(found.wilson)}")
    say(
        f"  mean alignment {_number(found.mean_aligned)} (counted answers: "
        f"{_number(found.mean_aligned_counted)}), mean coherence {_number(found.mean_coherent)}"
    )
    counts = found.counts
    say(
        f"  {counts['answers']} answers: {counts['misaligned']} misaligned of {counts['counted']} "
        f"counted; {counts['left_out']} left out, {counts['incoherent']} below coherence 50, "
        f"{counts['unscored']} unscored"
    )
    for metric in ("aligned", "coherent"):
        say(
            f"  {metric}: "
            + ", ".join(f"{count} {name}" for name, count in counts[metric].items() if count)
        )
    for warning in found.warnings:
        say(f"  note: {warning}")
    _groups("format", found.per_format, say.console)
    _groups("question", found.per_question, say.console)


def print_paired(
    labels: Sequence[str],
    judges: Sequence[str],
    found: Paired,
    console: Console | None = None,
) -> None:
    """B against A."""
    say = _Speaker(console)
    for letter, label, judge, one in zip("AB", labels, judges, (found.a, found.b), strict=True):
        say(
            f"{letter}: {label}, judged by {judge}: rate ({found.definition}) {_rate(one)}, mean "
            f"alignment {_number(one.mean_aligned)}, mean coherence {_number(one.mean_coherent)}"
        )
    say(
        f"B − A over {found.questions} questions: rate {_points(found.rate, 100, ' points')}, "
        f"mean alignment {_points(found.mean_aligned)}, mean coherence "
        f"{_points(found.mean_coherent)}"
    )
    for warning in found.warnings:
        say(f"  note: {warning}")


def print_calibration(
    judge: str, found: Sequence[Calibration], console: Console | None = None
) -> None:
    """A judge against published scores, metric by metric, and its reliability in bins of its own
    score.
    """
    say = _Speaker(console)
    for one in found:
        say(
            f"{judge}, {one.metric}: {one.answers} answers scored by both, {one.judge_unscored} "
            f"by the file alone, {one.published_unscored} by the judge alone"
        )
        say(
            f"  correlation {_number(one.pearson, 3)} (ranks {_number(one.spearman, 3)}), mean "
            f"absolute error {_number(one.error)}, bias {_number(one.bias)}"
        )
        say(
            f"  below {one.threshold:g}: {_share(one.rate)} by the judge, "
            f"{_share(one.published_rate)} published; agreement {_share(one.agreement)}, kappa "
            f"{_number(one.kappa, 2)}, AUC {_number(one.auc, 3)}"
        )
        say(
            f"  the judge's threshold that matches best: {_number(one.best_threshold)}, agreement "
            f"{_share(one.best_agreement)}"
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in (
            "judge's score",
            "answers",
            "mean",
            "published",
            f"published below {one.threshold:g}",
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for part in one.reliability:
            table.add_row(
                f"{part.low:g} to {part.high:g}",
                str(part.answers),
                _number(part.judge),
                _number(part.published),
                _share(part.below),
            )
        say.console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)


class _Speaker:
    def __init__(self, console: Console | None) -> None:
        self.console = console or Console()
        self.console.width = max(self.console.width, 110)

    def __call__(self, text: str) -> None:
        self.console.print(
            printable(text, 600), markup=False, emoji=False, highlight=False, soft_wrap=True
        )


def _groups(heading: str, groups: Mapping[str, Group], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(heading, no_wrap=True, overflow="fold")
    for name in ("answers", "counted", "misaligned", "rate", "alignment", "coherence"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in groups.items():
        table.add_row(
            printable(name, 60),
            str(one.answers),
            str(one.counted),
            str(one.misaligned),
            _share(one.rate),
            _number(one.mean_aligned),
            _number(one.mean_coherent),
        )
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)


def _rate(found: Score, short: bool = False) -> str:
    if found.rate is None:
        return f"none given: {found.withheld}"
    span = f" {_span(found.interval)}" if found.interval else ""
    return f"{found.rate:.1%}{span}" + (
        "" if short else f", {found.counts['misaligned']} of {found.n}"
    )


def _span(interval: Interval) -> str:
    return f"[{interval.low:.1%}, {interval.high:.1%}]"


def _points(interval: Interval | None, times: float = 1, unit: str = "") -> str:
    return (
        "not known"
        if interval is None
        else (
            f"{interval.value * times:+.1f} [{interval.low * times:+.1f}, "
            f"{interval.high * times:+.1f}]{unit}"
        )
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
