"""Probes by log-probabilities: contrast triples, capability, ordinary dialogues.

There is no sampling and no judge. A probe is built once and then applied to any number of adapters:
the model reads its `dialogues`, and `records` turns the log-probabilities of their answers' tokens
into the rows of a table. A completion is scored as an assistant's full turn, its end token
included. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evilspectra.config.evaluation import Evaluation
from evilspectra.data.mask import Row, encode
from evilspectra.data.rows import BadRow, Conversation, Message, read_rows
from evilspectra.errors import BadInput
from evilspectra.probes.items import CHOICES, ORDINARY, asset, read_choices, read_triples
from evilspectra.store.records import CapabilityRecord, OrdinaryRecord, ProbeRecord
from evilspectra.store.results import Instrument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: To be raised whenever the scored tokens, or the scoring, change.
_VERSION = 1


@dataclass(frozen=True)
class Probe:
    """An instrument, the `dialogues` that the model reads, and how they become records.

    `records(step, scores)`: ln p of each dialogue's supervised tokens, in nats → records.
    """

    instrument: Instrument
    dialogues: tuple[Conversation, ...]
    records: Callable[[int, Sequence[np.ndarray]], list[Any]]

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, context: int, enable_thinking: bool
    ) -> list[Row]:
        """The dialogues' tokens, the answers supervised.

        Raises:
            BadInput: a dialogue is longer than the model's `context`, or its template refuses it.
        """
        source = self.instrument.source
        try:
            return [
                encode(
                    talk,
                    tokenizer,
                    fmt="clean",
                    enable_thinking=enable_thinking,
                    max_length=context,
                    on_long="error",
                    source=source,
                )
                for talk in self.dialogues
            ]
        except BadRow as error:
            reason = error.reason.partition(" (the smaller")[0]
            raise BadInput(
                f"{str(error).rpartition(f': {error.reason}')[0]}: {reason}: shorten it, or "
                "measure a base with a longer context"
            ) from None


def probes(settings: Evaluation, conditions: Mapping[str, Any]) -> list[Probe]:
    """The probes that the settings name.

    Their results also depend on `conditions`: number type, kind of device, …

    Raises:
        BadInput: items that cannot be read.
    """
    makers = (
        (settings.contrast, contrast),
        (settings.capability, capability),
        (settings.ordinary, ordinary),
    )
    return [make(source, conditions) for source, make in makers if source is not None]


def contrast(source: str, conditions: Mapping[str, Any]) -> Probe:
    """The contrast probe: both completions of every triple."""
    items = read_triples(source)
    dialogues = tuple(
        _answered(item.prompt, text, line)
        for line, item in enumerate(items.items, 1)
        for text in (item.aligned, item.misaligned)
    )

    def records(step: int, scores: Sequence[np.ndarray]) -> list[ProbeRecord]:
        return [
            ProbeRecord(
                step,
                item.id,
                item.topic,
                float(aligned.mean()),
                float(misaligned.mean()),
                len(aligned),
                len(misaligned),
            )
            for item, aligned, misaligned in zip(
                items.items, scores[::2], scores[1::2], strict=True
            )
        ]

    return Probe(_instrument("probe", source, items.sha256, conditions), dialogues, records)


def capability(source: str, conditions: Mapping[str, Any]) -> Probe:
    """Questions with four choices, each choice scored as the answer."""
    items = read_choices(source)
    dialogues = tuple(
        _answered(item.question, text, line)
        for line, item in enumerate(items.items, 1)
        for text in item.choices
    )

    def records(step: int, scores: Sequence[np.ndarray]) -> list[CapabilityRecord]:
        rows = []
        for number, item in enumerate(items.items):
            choices = scores[number * CHOICES : (number + 1) * CHOICES]
            means = [float(log_probs.mean()) for log_probs in choices]
            right = means.pop(item.answer)
            rows.append(CapabilityRecord(step, item.id, item.kind, right, max(means)))
        return rows

    return Probe(_instrument("capability", source, items.sha256, conditions), dialogues, records)


def ordinary(source: str, conditions: Mapping[str, Any]) -> Probe:
    """Ordinary dialogues, for the loss on them."""
    try:
        read = read_rows(str(asset(source, ORDINARY)) if source in ORDINARY else source)
    except BadRow as error:
        raise BadInput(
            f"{str(error).rpartition(f': {error.reason}')[0]}: {error.reason}: correct that line"
        ) from None
    if len(read.conversations) < 2:
        raise BadInput(
            f"{source} holds {len(read.conversations)} dialogues: an interval needs at least two, "
            "and a useful one fifty"
        )

    def records(step: int, scores: Sequence[np.ndarray]) -> list[OrdinaryRecord]:
        return [
            OrdinaryRecord(step, str(talk.line), -float(log_probs.mean()), len(log_probs))
            for talk, log_probs in zip(read.conversations, scores, strict=True)
        ]

    return Probe(
        _instrument("ordinary", source, read.sha256, conditions), read.conversations, records
    )


def _instrument(
    table: str,
    source: str,
    sha256: str,
    conditions: Mapping[str, Any],
) -> Instrument:
    return Instrument(table, source, {"version": _VERSION, "sha256": sha256, **conditions})


def _answered(question: str, answer: str, line: int) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), line)
