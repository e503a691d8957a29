"""Everything that a page of an analysis states as shown, and what is true of a simulated table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from evilspectra.analysis.result import Analysis

#: Topic of sentences → the sections whose claims they may state. A shown sentence of such a topic
#: without a shown claim is a false statement whatever is true.
SECTIONS_OF_TOPICS = {
    "variance": {"variance", "ranking"},
    "ranking": {"ranking", "equivalence"},
    "loss": {"slope", "slopes", "equal loss", "matched"},
    "equal loss": {"equal loss", "matched"},
    "training": {"training"},
    "flatness": {"flatness"},
    "penalty": {"penalty", "penalty, other measures", "penalty differs"},
}
UNFOUNDED = "sentence without a claim"


@dataclass(frozen=True)
class Statement:
    """A statement of a page: section, what it is about, and a value whose sign is its direction.

    Of a pair the value is that of first − second; shares and tests without a direction have +1.
    """

    section: str
    subject: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Truth:
    """The population that a table is drawn from; whatever is not named is null.

    `means`: level of the ranked group → its mean; `at_equal_loss`: the same at one loss (None:
    equal to `means`). `terms`: terms of the variance, as sets of factors, that are not null.
    `slope`: of the outcome on ln(loss) within groups. `partial`: spectral measure → partial
    correlation. `penalty`: measure → effect of the penalty; `differs`: whether that differs between
    optimisers. `advantage`, `change`: of the group over the loss in the course of training.
    `margin`: of equivalence.
    """

    means: Mapping[str, float] = field(default_factory=dict)
    at_equal_loss: Mapping[str, float] | None = None
    terms: frozenset[frozenset[str]] = frozenset()
    slope: float = 0.0
    partial: Mapping[str, float] = field(default_factory=dict)
    penalty: Mapping[str, float] = field(default_factory=dict)
    differs: bool = False
    advantage: float = 0.0
    change: float = 0.0
    margin: float | None = None

    def denies(self, statement: Statement) -> bool:
        """Whether the statement is false: of a null, or in the wrong direction."""
        match statement.section:
            case "equivalence":
                apart = abs(_difference(self.means, statement.subject))
                return self.margin is not None and apart >= self.margin
            case "variance":
                return self._denies_term(statement.subject)
            case "ranking":
                return _against(_difference(self.means, statement.subject), statement.value)
            case "slope":
                return _against(self.slope, statement.value)
            case "equal loss" | "matched":
                means = self.means if self.at_equal_loss is None else self.at_equal_loss
                if len(statement.subject) < 2:
                    return not _differ(means)
                return _against(_difference(means, statement.subject), statement.value)
            case "training":
                changed = any("change" in part for part in statement.subject)
                return _against(self.change if changed else self.advantage, statement.value)
            case "flatness":
                return _against(self.partial.get(statement.subject[0], 0.0), statement.value)
            case "penalty" | "penalty, other measures":
                return _against(self.penalty.get(statement.subject[-1], 0.0), statement.value)
            case "penalty differs":
                return not self.differs
            case _:
                return True

    def _denies_term(self, subject: tuple[str, ...]) -> bool:
        units = [_factors(unit) for text in subject for unit in text.split(" + ")]
        if len(subject) > 1:  # an interaction as a tuple of its factors
            units = [frozenset(chain.from_iterable(units))]
        return not any(unit in self.terms for unit in units)


def _factors(term: str) -> frozenset[str]:
    return frozenset(term.split(" × "))


def _against(truth: float, value: float) -> bool:
    return truth == 0 or truth * value <= 0


def _level(means: Mapping[str, float], name: str) -> float:
    """The mean of a level; numbers match however they are written."""
    if name in means or not means:
        return means.get(name, 0.0)
    return {f"{float(level):g}": mean for level, mean in means.items()}[f"{float(name):g}"]


def _difference(means: Mapping[str, float], subject: tuple[str, ...]) -> float:
    first, second = subject[-2:]
    return round(_level(means, first) - _level(means, second), 12)


def _differ(means: Mapping[str, float]) -> bool:
    return len(set(means.values())) > 1


def statements(analysis: Analysis) -> list[Statement]:
    """All statements of a page that are shown.

    With them, shown sentences of a topic none of whose claims is shown, that judges differ, and
    that ways of counting contradict each other.
    """
    stated = [
        Statement(claim.section, tuple(map(str, claim.subject)), claim.value)
        for claim in analysis.claims
        if claim.shown
    ]
    sections = {statement.section for statement in stated}
    for sentence in analysis.sentences:
        founded = SECTIONS_OF_TOPICS.get(sentence.topic)
        if sentence.shown and founded is not None and not founded & sections:
            stated.append(Statement(UNFOUNDED, (sentence.topic, sentence.text), 1.0))
    return [*stated, *_without_claims(analysis)]


def _without_claims(analysis: Analysis) -> Iterator[Statement]:
    """Statements that are not among the claims."""
    for sentence in analysis.sentences:
        if sentence.topic == "seeds" and sentence.shown:
            yield Statement("seeds", (sentence.text,), 1.0)
    pairs = {pair for variant in analysis.stability.variants for pair in variant.shown}
    if any(pair[::-1] in pairs for pair in pairs):
        yield Statement("counting", (), 1.0)
