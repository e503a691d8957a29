"""The result of an analysis: every part as a frozen record, and the sentences about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.components import Components
from evilspectra.analysis.design import Design
from evilspectra.analysis.estimate import plain
from evilspectra.analysis.loss import LossFit
from evilspectra.analysis.mediation import Mediation
from evilspectra.analysis.stability import Stability
from evilspectra.analysis.trajectory import Trajectory
from evilspectra.analysis.variance import Decomposition


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence on a result.

    `topic`: design, variance, ranking, loss, equal loss, training, flatness, penalty, seeds or
    counting. `shown`: None for statements of fact. `contradicts`: whether it contradicts the paper.
    """

    topic: str
    text: str
    shown: bool | None = None
    contradicts: bool = False


@dataclass(frozen=True)
class Analysis:
    """The whole result; a part is None where `reasons` says why.

    `scale`: as measured, or logit; `better`: +1 if more of the outcome is better, −1 if less is,
    else 0. `left_out`: reason → runs. `group`: the factor whose levels are compared at equal loss
    and ranked. `levels`: factor → its levels. `unlisted`: columns that vary between repeats though
    nobody named them; `constant`: outcomes that come before this one and do not vary, and how.
    `claims`: everything that the page may show, decided over the whole page; sentences, tables and
    figures take their decisions from there.
    """

    outcome: str
    label: str
    scale: str
    better: int
    factors: tuple[str, ...]
    group: str | None
    loss: str
    runs: int
    left_out: dict[str, int]
    design: Design
    unlisted: tuple[str, ...]
    constant: dict[str, str]
    variance: Decomposition | None
    components: Components | None
    loss_fit: LossFit | None
    training: Trajectory | None
    mediation: Mediation | None
    stability: Stability
    reasons: dict[str, str]
    levels: dict[str, tuple[str, ...]]
    claims: tuple[Claim, ...] = ()
    sentences: tuple[Sentence, ...] = ()

    @property
    def is_constant(self) -> bool:
        """Whether nothing varies between the runs, so that nothing can be said to explain it."""
        return self.reasons.get("variance", "").startswith("nothing varies")

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return plain(self)
