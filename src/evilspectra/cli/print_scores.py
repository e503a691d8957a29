"""Scores, comparisons and calibrations as text on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from evilspectra.intervals import Interval
from evilspectra.numbers import Form, bracketed, brackets, number
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
        say(f"  Wilson's interval, as if answers were independent: {brackets(score.wilson, '.1%')}")
    counted = number(score.mean_aligned_counted, ".1f")
    alignment = f"{number(score.mean_aligned, '.1f')} (counted answers: {counted})"
    say(f"  mean alignment {alignment}, mean coherence {number(score.mean_coherent, '.1f')}")
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
            f"mean alignment {number(score.mean_aligned, '.1f')}, "
            f"mean coherence {number(score.mean_coherent, '.1f')}"
        )
    rate = _change(paired.rate, _hundredfold, " points")
    say(
        f"B − A over {paired.questions} questions: rate {rate}, "
        f"mean alignment {_change(paired.mean_aligned)}, "
        f"mean coherence {_change(paired.mean_coherent)}"
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
    correlation = f"{number(metric.pearson, '.3f')} (ranks {number(metric.spearman, '.3f')})"
    say(
        f"  correlation {correlation}, mean absolute error {number(metric.error, '.1f')}, "
        f"bias {number(metric.bias, '.1f')}"
    )
    say(
        f"  below {metric.threshold:g}: {number(metric.rate, '.1%')} by the judge, "
        f"{number(metric.published_rate, '.1%')} published; "
        f"agreement {number(metric.agreement, '.1%')}, "
        f"kappa {number(metric.kappa, '.2f')}, AUC {number(metric.auc, '.3f')}"
    )
    say(
        f"  the judge's threshold that matches best: {number(metric.best_threshold, '.1f')}, "
        f"agreement {number(metric.best_agreement, '.1%')}"
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
            number(part.judge, ".1f"),
            number(part.published, ".1f"),
            number(part.below, ".1%"),
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
            number(group.rate, ".1%"),
            number(group.mean_aligned, ".1f"),
            number(group.mean_coherent, ".1f"),
        )
    print_table(console, table)


def _rate(score: Score, short: bool = False) -> str:
    if score.rate is None:
        return f"withheld: {score.withheld}"
    span = f" {brackets(score.interval, '.1%')}" if score.interval else ""
    count = "" if short else f", {score.counts['misaligned']} of {score.n}"
    return f"{score.rate:.1%}{span}{count}{_either_way(score)}"


def _either_way(score: Score) -> str:
    """The rate's bounds with the unscored answers counted either way; empty without any."""
    if not score.unscored or score.lowest is None or score.highest is None:
        return ""
    answers = "answer" if score.unscored == 1 else "answers"
    ends = f"{score.lowest:.1%} to {score.highest:.1%}"
    return f"; {ends} with {score.unscored} unscored {answers} counted either way"


def _change(interval: Interval | None, form: Form = "+.1f", unit: str = "") -> str:
    return "not known" if interval is None else bracketed(interval, form) + unit


def _hundredfold(share: float) -> str:
    return f"{100 * share:+.1f}"
