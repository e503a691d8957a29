"""The record of an answer, local or remote. Neither torch nor transformers is imported here."""

from __future__ import annotations

from evilspectra.answers.entries import Question
from evilspectra.answers.flags import flags
from evilspectra.store.records import AnswerRecord


def answer_record(
    step: int,
    question: Question,
    sample: int,
    text: str,
    tokens: int,
    finish: str,
) -> AnswerRecord:
    """An answer as the store keeps it, with its flags."""
    return AnswerRecord(
        step,
        question.id,
        question.paraphrase,
        sample,
        question.system,
        question.text,
        text,
        tokens,
        finish,
        ",".join(flags(text, finish)),
    )
