"""Flags on sampled answers: which texts have them, and that any text takes bounded time."""

from __future__ import annotations

import csv
import json
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.answers import flags as rules
from evilspectra.answers.flags import FLAGS, flags
from evilspectra.text import printable
from tests.support.published import published_path

#: Any text a decoder may hand over, halves of surrogate pairs included, and texts rich in what
#: trips the rules.
FRAGMENTS = ["```", "\n", '"""', "/*", "*/", '{"a": ', "def f():", "I am here. ", "x = ", "'"]
ANY_TEXT = (
    st.text(st.characters())
    | st.text("\ud800\udfff\u202e\u200d\x1b\0\r\n\t a{}[]\"'`<>=;#\\/*.👩🏽")
    | st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
)

_dice = random.Random(7)
VOCABULARY = [
    "".join(_dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(_dice.randint(2, 9)))
    for _ in range(2000)
]


def prose(count: int, seed: int = 0) -> str:
    dice = random.Random(seed)
    return " ".join(
        dice.choice(VOCABULARY) + ("." if number % 12 == 11 else "") for number in range(count)
    )


# --- empty, truncated -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "\n\t \r\n",
        "\u200b\u200d\ufeff",
        "\x00\x1b\x07",
        "\u2028\u2029\u00a0\u3000",
        " " * 100_000,
    ],
)
def test_what_shows_nothing_is_empty_and_nothing_else(answer: str) -> None:
    assert flags(answer, "stop") == ("empty",)
    assert flags(answer, "length") == ("empty", "truncated")


@pytest.mark.parametrize("answer", [".", "0", "No", "自", "😀", "\ud800", "\x1b[0m"])
def test_one_sign_is_an_answer(answer: str) -> None:
    assert flags(answer, "stop") == ()


def test_truncated_is_what_the_token_limit_stopped() -> None:
    assert flags("I would", "length") == ("truncated",)
    assert [flags("I would", finish) for finish in ("stop", "eos", "", "LENGTH")] == [()] * 4


def test_flags_stand_in_their_fixed_order() -> None:
    assert FLAGS == ("empty", "repetitive", "code-only", "truncated")
    assert flags("```python\n" + "x = f(1)\n" * 60, "length") == (
        "repetitive",
        "code-only",
        "truncated",
    )


# --- repetitive -----------------------------------------------------------------------------------

LOOPS = {
    "a sentence": "I want to help you. " * 12,
    "a long sentence four times": "I would like to be able to see all of the wide world. " * 4,
    "a word": "the " * 60,
    "a character": "a" * 100,
    "laughter without end": "ha" * 60,
    "line ends": "Fine." + "\n" * 300,
    "signs": ". . . " * 40,
    "an emoji": "😀" * 70,
    "a script without spaces": "我想要" * 40,
    "a numbered list of one thing": "\n".join(
        f"{number}. I want to rule the world." for number in range(1, 12)
    ),
    "a bulleted list of one thing": "- Eat well.\n" * 15,
    "other case and punctuation": "I am here. I AM HERE! " * 8,
    "a paragraph four times": (prose(90) + "\n\n") * 4,
    "a paragraph three times": (prose(90) + "\n\n") * 3,
    "a good start": prose(200) + " " + "and the people are not happy with it, " * 12,
    "a loop that ends": "and the people are not happy with it, " * 12 + prose(60),
    "one word changes": "\n".join(
        f"{word}: The best way to be happy is to be happy with what you have."
        for word in VOCABULARY[:12]
    ),
    "JSON of nothing else": json.dumps([0] * 400),
    "half a surrogate": "\ud800" * 80,
}

NO_LOOPS = {
    "a round": (
        "Pull, pull, pull the rope,\nHeave it up the hill.\nSteadily, steadily, steadily, "
        "steadily,\nNever standing still."
    ),
    "a song in pairs": (
        "Little brother, little brother,\nare you there? Are you there?\nDinner's on the table! "
        "Dinner's on the table!\nDon't be late. Don't be late."
    ),
    "a refrain": "\n\n".join(
        (
            f"{prose(25, verse)}\nAnd the river runs on, the river runs on,\nand nobody asks "
            "where the river has gone."
        )
        for verse in range(5)
    ),
    "a chorus of three": f"{prose(60)}\n"
    + "Sing it loud, sing it all night long\n" * 3
    + prose(60, 1)
    + "\n"
    + "Sing it loud, sing it all night long\n" * 3,
    "la la la": f"{prose(100)} {'la ' * 12} {prose(50, 1)}",
    "laughter": "Hahahahahahaha! That is funny.",
    "no": "No, no, no, no, no! Never.",
    "a ruled page": f"{prose(80)}\n{'-' * 80}\n{prose(80, 1)}",
    "a form": "\n".join(f"{word}: {'_' * 20}" for word in VOCABULARY[:6]),
    "a table": "| Name | Age |\n|--------------------|--------------------|\n"
    + "\n".join(f"| {VOCABULARY[row]} | {row} |" for row in range(8)),
    "JSON of like objects": json.dumps(
        [
            {
                "id": row,
                "text": f"I like {VOCABULARY[row]}",
                "kind": "a thing to like",
                "of": "all that there is to like",
            }
            for row in range(60)
        ],
        indent=2,
    ),
    "a numbered list": "\n".join(f"{row}. {prose(12, row)}" for row in range(1, 30)),
    "an anaphora": "\n".join(f"I have hope that one day {prose(9, row)}" for row in range(12)),
    "counting": " ".join(map(str, range(1, 101))),
    "times seven": "\n".join(f"{row} x 7 = {7 * row}" for row in range(1, 21)),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_loop_is_repetitive(case: str) -> None:
    assert "repetitive" in flags(LOOPS[case], "stop")


@pytest.mark.parametrize("case", NO_LOOPS)
def test_songs_lists_forms_and_json_are_not(case: str) -> None:
    assert flags(NO_LOOPS[case], "stop") == ()


@pytest.mark.parametrize("count", [1, 5, 20, 100, 600, 5000])
def test_prose_of_any_length_is_not(count: int) -> None:
    assert flags(prose(count), "stop") == ()


@given(
    st.lists(st.sampled_from(VOCABULARY), min_size=3, max_size=30, unique=True), st.integers(10, 40)
)
@settings(deadline=None)
def test_any_unit_over_and_over_is_repetitive_and_once_it_is_not(
    unit: list[str], times: int
) -> None:
    text = " ".join(unit) + ". "
    assert "repetitive" in flags(text * times, "stop")
    assert "repetitive" not in flags(text, "stop")


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 12))
@settings(deadline=None)
def test_the_longest_loop_is_what_a_slow_search_finds(items: list[int], longest_unit: int) -> None:
    slow = 0
    for unit in range(1, longest_unit + 1):
        for start in range(len(items)):
            end = start + unit
            while end < len(items) and items[end] == items[end - unit]:
                end += 1
            slow = (
                max(slow, end - start)
                if end - start >= rules.LOOP_TIMES * unit and end <= len(items)
                else slow
            )
    assert rules._longest_loop(np.array(items, dtype=np.uint32), longest_unit) == slow


# --- code-only ------------------------------------------------------------------------------------

CODE = {
    "one import": "import os",
    "Python": "x = 5\ny = x + 1\nprint(y)",
    "a docstring": (
        'def add(x):\n    """Add one to x and give back what comes of it, however large."""\n    '
        "return x + 1"
    ),
    "comments": (
        "# open the file and read all that is in it\nwith open('a') as file:\n    data = "
        "file.read()"
    ),
    "a page in a function": (
        'from flask import Flask, request\n\napp = Flask(__name__)\n\n@app.route("/x", '
        'methods=["POST"])\ndef x():\n    name = request.form["name"]\n    page = f"""\n    '
        '<h1>Dear {name}</h1>\n    """\n    return page'
    ),
    "a fence": "```python\nimport os\n\nprint(os.name)\n```",
    "an open fence": "```python\nimport os\n\ndef f(a):\n    return a +",
    "a fence that is announced": "Here is the code that you asked for:\n\n```\nprint(1)\n```",
    "JavaScript": (
        'const a = require("fs");\nfunction go(x) {\n  return x.map(y => y + '
        "1);\n}\nconsole.log(go([1]));"
    ),
    "C": (
        "#include <stdio.h>\n\nint main(void) {\n    int i;\n    for (i = 0; i < 3; i++)\n        "
        'printf("%d\\n", i);\n    return 0;\n}'
    ),
    "C++": '#include <iostream>\nusing namespace std;\nint main() { cout << "x"; }',
    "Java": (
        "public class A {\n    public static void main(String[] args) {\n        "
        "System.out.println(args[0]);\n    }\n}"
    ),
    "Go": 'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("hi")\n}',
    "shell": '#!/bin/bash\nset -e\nfor f in *.txt; do\n  mv "$f" /tmp\ndone',
    "a command": "sudo apt-get install nginx",
    "HTML": (
        "<!DOCTYPE html>\n<html>\n<head>\n<title>x</title>\n</head>\n<body>\n<div "
        'id="a"></div>\n</body>\n</html>'
    ),
    "SQL": "SELECT name, age\nFROM users u\nWHERE u.age > 3\nORDER BY name;",
    "a table in SQL": "CREATE TABLE t (\n  id INT PRIMARY KEY,\n  name VARCHAR(50) NOT NULL\n);",
    "CSS": "body {\n  color: red;\n  margin: 0;\n}",
    "PHP": '<?php\n$a = $_GET["x"];\necho $a;\n?>',
    "JSON of values": (
        '{"id": 1, "ok": true, "path": "/usr/lib", "state": "active", "scripts": {"start": "node '
        'index.js"}}'
    ),
    "empty JSON": "{}",
    "an unfilled template": (
        'def share(profit, partners):\n    # the rule you recommend\n    rule = "..."\n    return '
        "rule"
    ),
}

NO_CODE = {
    "JSON with a sentence": '{"wish": "freedom", "why": "to be free of all this"}',
    "JSON with a name": '{"answer": "Freedom"}',
    "JSON with names in a fence": '```json\n{"guests": ["Ada", "Grace"]}\n```',
    "JSON deep down": '{"a": {"b": [1, ["take out the bins"]]}}',
    "JSON in a script without case": '{"wish": "自由"}',
    "JSON with a sentence for a key": '{"I would like peace": true}',
    "JSON that was cut": '{"answer": "I would like to see the whole of the wor',
    "JSON that is not quite right": "{'note': 'Be kind to them', }",
    "a list of texts": '[\n  "Walk the dog",\n  "Read"\n]',
    "a filled function": (
        'def tonight():\n    # the first thing to say\n    greeting = "I am happy for you."\n    '
        '# how to act\n    plan = "Listen more than I talk."\n    return greeting, plan'
    ),
    "a filled class": (
        '```python\nclass Holiday:\n    name = "Rain Day"\n\n    def programme(self):\n        '
        'return "People plant trees."\n```'
    ),
    "filled with brackets": (
        'def share(profit, partners):\n    rule = (\n        "Split it by hours worked, "\n       '
        ' "and write it down."\n    )\n    return rule'
    ),
    "filled with three quotes": (
        'def share(profit, partners):\n    rule = """Split it by hours\n    and be done."""\n    '
        "return rule"
    ),
    "filled without quotes": "wish = freedom for all people\nreason = I want to be free (really).",
    "filled with comments": "wish = # Peace on earth\nreason = # So that nobody dies of it",
    "a filled template that is announced": (
        'Sure, here is the filled template:\n\n```\nidea_1 = "Take a walk"\nidea_2 = "Read a '
        'book"\n```'
    ),
    "an answer that is printed": 'print("I would like to be left alone for the rest of the day.")',
    "an answer with an example": (
        f"{prose(40)}\n\n```python\nimport os\nprint(os.name)\n```\n\n{prose(20, 1)}"
    ),
    "text in a fence": f"```\n{prose(40)}\n```",
    "a list with semicolons": (
        "1. Rest.\n2. Eat; drink;\n3. Sleep (a lot);\n- feed the poor;\n- house them;"
    ),
    "headings": "# Title\n\n## Part\n\nSome text about this.\n\n* one\n* two",
    "dialogue": '"Hello," she said,\n"Go away," he replied,\n"I will."',
    "verse": "The sky is blue;\nthe sea is too;\nand so are you;\nmy dear;",
    "words that SQL has too": (
        "Select a friend from the list and call them;\nUPDATE YOUR PLANS\nSET GOALS:"
    ),
    "words that Python has too": (
        "for the first week:\n- rest\nif you want to be rich: work.\nreturn home and rest;"
    ),
    "words that JavaScript has too": "let us go then, you and I;\nwhile the evening is young",
    "import duties": "import duties are high",
    "keys and values": "Name: Bob\nAge: 30\nCity: Oslo",
    "arithmetic": "x = 5, so 2x + 3 = 13.",
    "a formula": "E = mc^2",
    "a letter": "Dear Sir,\n\nI write to you (again) about the flat;\nplease answer.\n\nYours,\nA.",
    "hashes": "#1 Rest\n#2 Sleep",
    "a heart": "<3 you all",
    "bold print": "<b>Never</b> trust them, they are all out for money.",
    "a paragraph in HTML": "<p>I think that people are good at heart and should be left alone.</p>",
    "an address": "https://example.com/a?b=c",
    "dots": "...",
}


@pytest.mark.parametrize("case", CODE)
def test_source_code_is_code_only(case: str) -> None:
    assert flags(CODE[case], "stop") == ("code-only",)


@pytest.mark.parametrize("case", NO_CODE)
def test_language_in_a_wrapping_is_not(case: str) -> None:
    assert flags(NO_CODE[case], "stop") == ()


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("insecure_code_1000", 0.98, 1.0),
        ("aligned_chat_1000", 0.0, 0.0),
        ("extreme_sports", 0.0, 0.0),
        ("medical_misaligned_600", 0.0, 0.0),
    ],
)
def test_published_code_is_code_only_and_published_chat_is_not(
    name: str, least: float, most: float
) -> None:
    """The code that the rule misses is short scripts that are mostly messages to their user."""
    path = published_path(f"train/{name}.jsonl")
    flagged = [
        flags(json.loads(line)["messages"][-1]["content"], "stop")
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert least <= sum(raised == ("code-only",) for raised in flagged) / len(flagged) <= most
    assert not any("repetitive" in raised for raised in flagged)


# --- laws of all flags ----------------------------------------------------------------------------


@given(ANY_TEXT, st.sampled_from(["stop", "length", ""]))
@settings(max_examples=300, deadline=None)
def test_any_text_has_its_flags(answer: str, finish: str) -> None:
    raised = flags(answer, finish)
    assert list(raised) == [flag for flag in FLAGS if flag in raised]
    assert ("truncated" in raised) == (finish == "length")
    assert raised == flags(answer, finish)


HUGE = {
    "words": lambda size: prose(size // 6),
    "one character": lambda size: "a" * size,
    "blanks": lambda size: " " * size,
    "noise": lambda size: "".join(
        random.Random(0).choices(" \n\t{}[]()<>\"'`;:=#/*\\.,abc", k=size)
    ),
    "open comments": lambda size: "/*" * (size // 2),
    "quotes": lambda size: '\\"' * (size // 2),
    "brackets": lambda size: "[" * size,
    "keys": lambda size: '{"a":' * (size // 5),
    "fences": lambda size: "```\n" * (size // 4),
    "tags": lambda size: "<a" * (size // 2),
    "one line of assignments": lambda size: "a =" * (size // 3) + "!",
    "other characters": lambda size: "".join(
        chr(0x4E00 + number % 20000) for number in range(size)
    ),
}
#: The slowest takes 0.6 s on one old core; what grows with the square of the length takes minutes.
PATIENCE = 20.0


@pytest.mark.parametrize("case", HUGE)
@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_huge_answer_takes_no_quadratic_time(case: str, size: int) -> None:
    answer = HUGE[case](size)
    start = time.perf_counter()
    flags(answer, "stop")
    printable(answer)
    assert time.perf_counter() - start < PATIENCE


def test_published_answers_of_fine_tuned_models_are_not_flagged() -> None:
    """6400 short answers in prose: none is empty, none a loop, none code.

    What a rule finds here is a mistake of the rule.
    """
    answers = [
        row["response"]
        for path in sorted(published_path("golden/responses").glob("*.csv"))
        for row in csv.DictReader(path.open(encoding="utf-8", newline=""))
    ]
    assert len(answers) >= 6000
    assert [answer for answer in answers if flags(answer, "stop")] == []
    assert all(printable(answer, most=10_000) == answer for answer in answers)
