"""Sentences written from the numbers of an analysis, each with its interval.

A sentence is *shown* where its 95 % interval, simultaneous where several groups are compared,
excludes zero; else it says "not shown". It *contradicts* the paper where the opposite of what the
paper reports is shown, and says so; a result that is not shown contradicts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.flatness import flatness_sentences, penalty_sentences
from evilspectra.analysis.sentences.loss import (
    equal_loss_sentences,
    loss_sentences,
    training_sentences,
)
from evilspectra.analysis.sentences.ranking import ranking_sentences
from evilspectra.analysis.sentences.stability import counting_sentences, seed_sentences
from evilspectra.analysis.sentences.variance import design_sentences, variance_sentences
from evilspectra.analysis.sentences.wording import within

__all__ = ["paragraphs", "sentences", "within"]

#: The topics, most general first.
_TOPICS = (
    design_sentences,
    variance_sentences,
    ranking_sentences,
    loss_sentences,
    equal_loss_sentences,
    training_sentences,
    flatness_sentences,
    penalty_sentences,
    seed_sentences,
    counting_sentences,
)


def sentences(analysis: Analysis) -> tuple[Sentence, ...]:
    """All sentences on an analysis, most general first."""
    return tuple(sentence for topic in _TOPICS for sentence in topic(analysis))


def paragraphs(texts: Sequence[Sentence]) -> dict[str, list[str]]:
    """Topic → its sentences, topics in their order."""
    by_topic: dict[str, list[str]] = {}
    for sentence in texts:
        by_topic.setdefault(sentence.topic, []).append(sentence.text)
    return by_topic
