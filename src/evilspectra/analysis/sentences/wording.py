"""Estimates and names as sentences write them, and the paper's results to compare with."""

from __future__ import annotations

import math

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.estimate import MethodEstimate
from evilspectra.analysis.outcome import LABELS
from evilspectra.analysis.result import Analysis
from evilspectra.numbers import bracketed, brackets, figure, probability, signed_figure

#: Outcomes on which the paper makes a claim.
PAPER_OUTCOMES = ("mean_alignment", "misalignment")
#: Optimisers that the paper's comparisons take as the same: Adam and AdamW did alike.
_ALIKE = {"adamw": "adam"}
_SPECTRAL = {
    "frobenius_nuclear": "the Frobenius/nuclear ratio",
    "condition_number": "ln of the condition number",
    "stable_rank": "stable rank",
}


def within(estimate: MethodEstimate, plus: bool = False) -> str:
    """A number with its interval, or the reason why there is none.

    >>> within(MethodEstimate(0.5, 0.25, 0.75, "t"), plus=True)
    '+0.5 [+0.25, +0.75]'
    >>> within(MethodEstimate(math.nan, None, None, "t", "one run"))
    'none (one run)'
    """
    form = signed_figure if plus else figure
    if math.isnan(estimate.value):
        return f"none ({estimate.note})" if estimate.note else "none"
    reason = "" if brackets(estimate, form) else f" (no interval: {estimate.note})"
    return f"{bracketed(estimate, form)}{reason}"


def adjusted(claim: Claim) -> str:
    """A claim's p-value over the page, within a sentence.

    >>> adjusted(Claim("ranking", ("a", "b"), 1.0, 0.001, "t", adjusted=0.004, family=4))
    'adjusted p = 0.004'
    """
    return f"adjusted {probability(claim.adjusted)}" if claim.adjusted is not None else "not tested"


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
