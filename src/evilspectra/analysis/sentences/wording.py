"""Numbers, intervals and names as sentences write them, and the paper's results to compare with."""

from __future__ import annotations

from evilspectra.analysis.estimate import Estimate
from evilspectra.analysis.outcome import LABELS
from evilspectra.analysis.result import Analysis

#: Outcomes on which the paper makes a claim.
PAPER_OUTCOMES = ("mean_alignment", "misalignment")
#: Optimisers that the paper's comparisons take as the same: Adam and AdamW did alike.
_ALIKE = {"adamw": "adam"}
_SPECTRAL = {
    "frobenius_nuclear": "the Frobenius/nuclear ratio",
    "condition_number": "ln of the condition number",
    "stable_rank": "stable rank",
}


def figure(value: float) -> str:
    """Three significant digits, with the sign that typography has for minus.

    >>> figure(-12.3456), figure(0.0), figure(1234.5)
    ('−12.3', '0', '1234')
    """
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ("0" if float(text) == 0 else text).replace("-", "−")


def signed(value: float) -> str:
    """The same with a plus.

    >>> signed(6.6), signed(-3.5)
    ('+6.6', '−3.5')
    """
    return ("+" if float(f"{value:.3g}") > 0 else "") + figure(value)


def within(estimate: Estimate, plus: bool = False) -> str:
    """A number with its interval.

    >>> within(Estimate(0.5, 0.25, 0.75, "t"), plus=True)
    '+0.5 [+0.25, +0.75]'
    """
    text = signed if plus else figure
    if estimate.low is None or estimate.high is None:
        return f"{text(estimate.value)} (no interval: {estimate.note})"
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def percent(estimate: Estimate) -> str:
    """A share as a percentage with its interval.

    >>> percent(Estimate(0.742, 0.5, 0.81, "noncentral F"))
    '74.2 % [50.0 %, 81.0 %]'
    """
    ends = ""
    if estimate.low is not None and estimate.high is not None:
        ends = f" [{estimate.low:.1%}, {estimate.high:.1%}]"
    return f"{estimate.value:.1%}{ends}".replace("%", " %")


def probability(p: float | None) -> str:
    """A p-value as text.

    >>> probability(0.00001), probability(0.0432), probability(None)
    ('p < 0.001', 'p = 0.043', 'not tested')
    """
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def outcome_name(analysis: Analysis) -> str:
    """The outcome's name within a sentence."""
    label = LABELS.get(analysis.outcome, analysis.outcome).split(" (")[0]
    return label + (" on the logit scale" if analysis.scale == "logit" else "")


def measure_name(measure: str) -> str:
    """A measure's name within a sentence.

    >>> measure_name("drift"), measure_name("spectral_entropy")
    ('drift', 'spectral entropy')
    """
    return (LABELS | _SPECTRAL).get(measure, measure.replace("_", " ")).split(" (")[0]


def paper_name(optimizer: str) -> str:
    """The optimiser's name in the paper's comparisons.

    >>> paper_name("AdamW"), paper_name("lion")
    ('adam', 'lion')
    """
    return _ALIKE.get(optimizer.lower(), optimizer.lower())


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the rest as it is.

    >>> capitalised("that SGD differs")
    'That SGD differs'
    """
    return text[:1].upper() + text[1:]
