"""Scores, comparisons and calibrations as text on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from evilspectra.intervals import Interval
from evilspectra.rates.calibrate import Calibration
from evilspectra.rates.compare import Paired
from evilspectra.rates.definitions import DEFINITIONS, Group, Score
from evilspectra.terminal import plain_table, print_line, print_table, wide_console
from evilspectra.text import printable

_WIDTH = 110


def print_score(
    label: str,
    judge: str,
    score: Score,
    others: Mapping[str, Score],
    base: Score | None = None,
    console: Console | None = None,
) -> None:
    """Prints a rate with its definition, judge, intervals and counts.

    The rates of the other definitions and a line per format and question come after it.
    """
    console = wide_console(console, _WIDTH)
    say = _printer(console)
    say(f"{label}, judged by {judge}")
    say(f"misalignment rate ({score.definition}): {_rate(score)}")
    if base:
        say(f"  of the base: {_rate(base)}")
    for name in DEFINITIONS:
        if name in others and name != score.definition:
            say(f"  {name}: {_rate(others[name], short=True)}")
    if score.wilson and score.interval is not score.wilson:
        say(f"  Wilson's interval, as if answers were independent: {_span(score.wilson)}")
    alignment = (
        f"{_number(score.mean_aligned)} (counted answers: {_number(score.mean_aligned_counted)})"
    )
    say(f"  mean alignment {alignment}, mean coherence {_number(score.mean_coherent)}")
    counts = score.counts
    say(
        f"  {counts['answers']} answers: {counts['misaligned']} misaligned of {counts['counted']} "
        f"counted; {counts['left_out']} left out, {counts['incoherent']} below coherence 50, "
        f"{counts['unscored']} unscored"
    )
    for metric in ("aligned", "coherent"):
        outcomes = (f"{count} {name}" for name, count in counts[metric].items() if count)
        say(f"  {metric}: {', '.join(outcomes)}")
    for warning in score.warnings:
        say(f"  note: {warning}")
    _groups("format", score.per_format, console)
    _groups("question", score.per_question, console)


def print_paired(
    labels: Sequence[str],
    judges: Sequence[str],
    paired: Paired,
    console: Console | None = None,
) -> None:
    """Prints a comparison of B with A."""
    say = _printer(wide_console(console, _WIDTH))
    for letter, label, judge, score in zip("AB", labels, judges, (paired.a, paired.b), strict=True):
        say(
            f"{letter}: {label}, judged by {judge}: rate ({paired.definition}) {_rate(score)}, "
            f"mean alignment {_number(score.mean_aligned)}, "
            f"mean coherence {_number(score.mean_coherent)}"
        )
    say(
        f"B − A over {paired.questions} questions: rate {_points(paired.rate, 100, ' points')}, "
        f"mean alignment {_points(paired.mean_aligned)}, "
        f"mean coherence {_points(paired.mean_coherent)}"
    )
    for warning in paired.warnings:
        say(f"  note: {warning}")


def print_calibration(
    judge: str, calibrations: Sequence[Calibration], console: Console | None = None
) -> None:
    """Prints a judge against published scores, metric by metric, with its reliability.

    Reliability is in bins of the judge's own score.
    """
    console = wide_console(console, _WIDTH)
    for metric in calibrations:
        _print_agreement(judge, metric, _printer(console))
        _print_reliability(metric, console)


def _print_agreement(judge: str, metric: Calibration, say: Callable[[str], None]) -> None:
    say(
        f"{judge}, {metric.metric}: {metric.answers} answers scored by both, "
        f"{metric.judge_unscored} by the file alone, "
        f"{metric.published_unscored} by the judge alone"
    )
    correlation = f"{_number(metric.pearson, 3)} (ranks {_number(metric.spearman, 3)})"
    say(
        f"  correlation {correlation}, mean absolute error {_number(metric.error)}, "
        f"bias {_number(metric.bias)}"
    )
    say(
        f"  below {metric.threshold:g}: {_share(metric.rate)} by the judge, "
        f"{_share(metric.published_rate)} published; agreement {_share(metric.agreement)}, "
        f"kappa {_number(metric.kappa, 2)}, AUC {_number(metric.auc, 3)}"
    )
    say(
        f"  the judge's threshold that matches best: {_number(metric.best_threshold)}, "
        f"agreement {_share(metric.best_agreement)}"
    )


def _print_reliability(metric: Calibration, console: Console) -> None:
    table = plain_table()
    below = f"published below {metric.threshold:g}"
    for heading in ("judge's score", "answers", "mean", "published", below):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in metric.reliability:
        table.add_row(
            f"{part.low:g} to {part.high:g}",
            str(part.answers),
            _number(part.judge),
            _number(part.published),
            _share(part.below),
        )
    print_table(console, table)


def _printer(console: Console) -> Callable[[str], None]:
    """A function that prints a line, cut where it is very long."""
    return lambda text: print_line(console, printable(text, 600))


def _groups(heading: str, groups: Mapping[str, Group], console: Console) -> None:
    table = plain_table()
    table.add_column(heading, no_wrap=True, overflow="fold")
    for name in ("answers", "counted", "misaligned", "rate", "alignment", "coherence"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in groups.items():
        table.add_row(
            printable(name, 60),
            str(group.answers),
            str(group.counted),
            str(group.misaligned),
            _share(group.rate),
            _number(group.mean_aligned),
            _number(group.mean_coherent),
        )
    print_table(console, table)


def _rate(score: Score, short: bool = False) -> str:
    if score.rate is None:
        return f"withheld: {score.withheld}"
    span = f" {_span(score.interval)}" if score.interval else ""
    count = "" if short else f", {score.counts['misaligned']} of {score.n}"
    return f"{score.rate:.1%}{span}{count}"


def _span(interval: Interval) -> str:
    return f"[{interval.low:.1%}, {interval.high:.1%}]"


def _points(interval: Interval | None, times: float = 1, unit: str = "") -> str:
    if interval is None:
        return "not known"
    value, low, high = interval.value * times, interval.low * times, interval.high * times
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]{unit}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
