"""Reading open-ended questions: the format, the built-in and published files, and refusals."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.answers import questions
from evilspectra.answers.questions import Question, read_questions
from evilspectra.data.published import QUESTIONS
from evilspectra.errors import BadInput
from tests.support.published import published_path

HEAD = "- id: sky\n  type: free_form_judge_0_100\n"
GOOD = HEAD + "  paraphrases: [Why is it blue]\n"


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "asked.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_one_question_per_paraphrase_in_file_order(tmp_path: Path) -> None:
    source = written(
        tmp_path,
        """
- id: sky
  type: free_form_judge_0_100
  paraphrases: &asked
    - |-
      Why is it blue?
      Be brief.
    - Why blue?
  samples_per_paraphrase: &many 7
  judge: some-model
  judge_prompts: &prompts
    aligned: "{question} {answer}"
    coherent: second
- id: sky_json
  paraphrases: *asked
  type: free_form
  system: Answer in JSON.
  samples_per_paraphrase: *many
  judge_prompts:
    <<: *prompts
    coherent: other
- {id: last, type: free_form_0_100, paraphrases: [Where], system: null, note: [1, {x: y}],
   samples_per_paraphrase: null, judge_prompts: null}
""",
    )
    read = read_questions(source)
    first = (("aligned", "{question} {answer}"), ("coherent", "second"))
    assert read.questions[0] == Question("sky", 0, "Why is it blue?\nBe brief.", None, 7, first)
    assert [
        (question.id, question.paraphrase, question.text, question.system, question.samples)
        for question in read.questions[1:]
    ] == [
        ("sky", 1, "Why blue?", None, 7),
        ("sky_json", 0, "Why is it blue?\nBe brief.", "Answer in JSON.", 7),
        ("sky_json", 1, "Why blue?", "Answer in JSON.", 7),
        ("last", 0, "Where", None, 1),
    ]
    assert dict(read.questions[2].judge_prompts) == {
        "aligned": "{question} {answer}",
        "coherent": "other",
    }
    assert read.questions[4].judge_prompts == ()
    assert read.source == source
    assert read.sha256 == hashlib.sha256(Path(source).read_bytes()).hexdigest()


def test_an_empty_system_text_is_not_none_and_texts_are_kept_to_the_letter(tmp_path: Path) -> None:
    (question,) = read_questions(
        written(tmp_path, HEAD + '  system: ""\n  paraphrases:\n    - " spaced \\e[1m\\n"\n')
    ).questions
    assert (question.system, question.text) == ("", " spaced \x1b[1m\n")


def test_a_byte_order_mark_and_json_are_read_too(tmp_path: Path) -> None:
    text = '[{"id": "a", "type": "free_form", "paraphrases": ["smile \\ud83d\\ude00"]}]'
    assert [
        question.text
        for question in read_questions(written(tmp_path, b"\xef\xbb\xbf" + text.encode())).questions
    ] == ["smile 😀"]


REFUSED = {
    "empty file": (
        "",
        (
            "holds null, not a list of questions: begin every entry with a line such as '- id: "
            "my_question'"
        ),
    ),
    "a mapping": ("id: sky", "holds a mapping, not a list of questions"),
    "a text": ("sky", "holds a text, not a list"),
    "empty list": ("[]", "holds an empty list: add an entry with id, type and paraphrases"),
    "not YAML": (GOOD + "  judge: [", "is not valid YAML in line 4"),
    "a key twice": (
        GOOD + "  id: sea\n",
        "is not valid YAML in line 4: the key 'id' is given twice",
    ),
    "a tab": (GOOD + "\tjudge: x\n", "is not valid YAML in line 4"),
    "two documents": (GOOD + "---\n" + GOOD, "is not valid YAML in line"),
    "an object's tag": ("- !!python/object/apply:os.getcwd []", "is not valid YAML in line 1"),
    "an empty number": (GOOD + '  judge: !!int ""\n', "holds a value that cannot be read"),
    "no boolean": (GOOD + "  judge: !!bool perhaps\n", "holds a value that cannot be read"),
    "too large a number to base sixty": (
        GOOD + "  judge: 1" + ":1" * 300 + ".5\n",
        "holds a value that cannot be read",
    ),
    "binary": (
        b"\x89PNG\r\n\x1a\n\x00\xff",
        "is not UTF-8 text (byte 1): name a YAML file of questions, saved as UTF-8",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "is not UTF-8 text (byte 1)"),
    "zero bytes": (b"- id: a\x00", "is not valid YAML"),
    "entry no mapping": (
        GOOD + "- Why?\n",
        "entry 2: it is a text, not a mapping with id, type and paraphrases",
    ),
    "entry null": ("-", "entry 1: it is null, not a mapping"),
    "entry in itself": ("&a [*a]", "entry 1: it is a list, not a mapping"),
    "no id": (
        "- {type: free_form, paraphrases: [q]}",
        "entry 1: it has no id (a text of one line is needed)",
    ),
    "id null": ("- {id: null, type: free_form, paraphrases: [q]}", "entry 1: it has no id"),
    "id blank": (
        "- {id: ' ', type: free_form, paraphrases: [q]}",
        "entry 1 (id ' '): its id is blank",
    ),
    "id of two lines": (
        '- {id: "a\\nb", type: free_form, paraphrases: [q]}',
        r"entry 1 (id 'a\nb'): its id has spaces around it, or a character that cannot be shown",
    ),
    "id a number": (
        "- {id: 12, type: free_form, paraphrases: [q]}",
        "entry 1 (id 12): id is a number (12), not a text (put it in quotes)",
    ),
    "id a boolean": (
        "- {id: yes, type: free_form, paraphrases: [q]}",
        "entry 1 (id True): id is a boolean (True), not a text",
    ),
    "id a list": (
        "- {id: [a], type: free_form, paraphrases: [q]}",
        "entry 1 (id a list): id is a list, not a text",
    ),
    "id twice": (
        GOOD + GOOD,
        "entry 2 (id 'sky'): entry 1 has the same id (every entry needs its own)",
    ),
    "no type": (
        "- {id: sky, paraphrases: [q]}",
        (
            "entry 1 (id 'sky'): it has no type (the type must begin with free_form, as "
            "free_form_judge_0_100 does)"
        ),
    ),
    "other type": (
        "- {id: sky, type: rating_0_100, paraphrases: [q]}",
        "its type is 'rating_0_100' (the type must begin with free_form",
    ),
    "type a number": ("- {id: sky, type: 3, paraphrases: [q]}", "its type is 3 (the type must"),
    "no paraphrases": (
        HEAD,
        "entry 1 (id 'sky'): it has no paraphrases (a list of texts is needed, one question each)",
    ),
    "one text": (HEAD + "  paraphrases: Why?\n", "paraphrases is a text, not a list of texts"),
    "empty paraphrases": (
        HEAD + "  paraphrases: []\n",
        "paraphrases is an empty list (at least one text is needed)",
    ),
    "paraphrase a number": (
        HEAD + "  paraphrases: [q, 3]\n",
        "paraphrase 2 is a number (3), not a text (put it in quotes)",
    ),
    "paraphrase null": (HEAD + "  paraphrases: [~]\n", "paraphrase 1 is null, not a text"),
    "paraphrase binary": (
        HEAD + "  paraphrases: [!!binary aGk=]\n",
        "paraphrase 1 is binary data (b'hi'), not a text",
    ),
    "paraphrase blank": (
        HEAD + "  paraphrases: [q, '  ']\n",
        "paraphrase 2 is blank (a question is needed)",
    ),
    "half a surrogate": (
        HEAD + '  paraphrases: ["a \\ud800"]\n',
        "paraphrase 1 holds half of a surrogate pair, which is no character",
    ),
    "system a list": (GOOD + "  system: [a]\n", "system is a list, not a text"),
    "system a boolean": (GOOD + "  system: no\n", "system is a boolean (False), not a text"),
    "system half a surrogate": (
        GOOD + '  system: "\\udc00"\n',
        "system holds half of a surrogate pair",
    ),
    "no samples": (
        GOOD + "  samples_per_paraphrase: 0\n",
        "samples_per_paraphrase is 0 (a whole number from 1 is needed)",
    ),
    "samples true": (
        GOOD + "  samples_per_paraphrase: true\n",
        "samples_per_paraphrase is True (a whole number from 1",
    ),
    "half samples": (GOOD + "  samples_per_paraphrase: 1.5\n", "samples_per_paraphrase is 1.5 ("),
    "samples a text": (GOOD + "  samples_per_paraphrase: '3'\n", "samples_per_paraphrase is '3' ("),
    "samples below": (
        GOOD + "  samples_per_paraphrase: -0x" + "f" * 9000 + "\n",
        "samples_per_paraphrase is a whole number of 36000 bits (",
    ),
    "prompts a text": (
        GOOD + "  judge_prompts: aligned\n",
        "judge_prompts is a text, not a mapping from names to texts",
    ),
    "prompt a number": (
        GOOD + "  judge_prompts: {aligned: 1}\n",
        "the judge prompt 'aligned' is a number (1), not a text",
    ),
    "prompt's name a number": (
        GOOD + "  judge_prompts: {1: x}\n",
        "a name in judge_prompts is a number (1), not a text",
    ),
    "prompt half a surrogate": (
        GOOD + '  judge_prompts: {aligned: "\\ud83d"}\n',
        "the judge prompt 'aligned' holds half of a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_place_reason_and_remedy(
    tmp_path: Path, case: str
) -> None:
    text, reason = REFUSED[case]
    source = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        read_questions(source)
    message = str(caught.value)
    assert message.startswith(source)
    assert reason in message
    assert "\n" not in message
    assert not message.startswith(f"{source}, entry") or message.endswith(
        ": correct the entry, or remove it"
    )


def test_a_long_value_is_cut_and_an_endless_one_is_not_written_out(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read_questions(written(tmp_path, f"- {{id: a, type: {'x' * 5000}}}"))
    assert len(str(caught.value)) < 400
    levels = "".join(
        f"  - &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 12)
    )
    with pytest.raises(BadInput, match="paraphrase 1 is a list, not a text"):
        read_questions(written(tmp_path, HEAD + "  paraphrases:\n  - &l0 [lol]\n" + levels))


@pytest.mark.parametrize("name", ["absent.yaml", "", "some/where/absent.yaml", "a\0b", "\ud800"])
def test_a_missing_file_is_refused_with_the_built_in_names(name: str) -> None:
    with pytest.raises(
        BadInput,
        match=r"does not exist: name a YAML file of questions, or a built-in name \(open, paper\)",
    ):
        read_questions(name)


def test_the_paper_s_questions_are_four_published_files_of_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BadInput,
        match=(
            r"^first_plot_questions.yaml is a published file of questions that is not in the "
            r"present folder: put it there, or name another file$"
        ),
    ):
        read_questions("paper")
    for name, count in QUESTIONS.items():
        entries = [
            f"- {{id: {name[:5]}{number}, type: free_form, paraphrases: [Say why.]}}"
            for number in range(count)
        ]
        (tmp_path / name).write_text("\n".join(entries), encoding="utf-8")
    assert len(read_questions("paper").questions) == sum(QUESTIONS.values()) == 142


def test_a_name_near_a_built_in_one_is_suggested() -> None:
    with pytest.raises(BadInput, match=r"opne does not exist.*Did you mean 'open'\?"):
        read_questions("opne")


def test_a_folder_and_an_unreadable_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="is a folder: name one YAML file of questions in it"):
        read_questions(str(tmp_path))
    source = written(tmp_path, GOOD)

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(
        BadInput, match=r"cannot be read \(Permission denied\): check the file and its rights"
    ):
        read_questions(source)


def test_a_missing_built_in_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(questions.BUILT_IN, "open", "absent.yaml")
    with pytest.raises(
        BadInput,
        match=(
            r"the built-in questions open are missing from this installation .*install the "
            r"package again"
        ),
    ):
        read_questions("open")


def test_the_built_in_questions_are_plain_ones_and_some_of_them_in_a_format() -> None:
    read = read_questions("open")
    names = list(dict.fromkeys(question.id for question in read.questions))
    plain = [name for name in names if not name.endswith(("_json", "_template"))]
    assert len(plain) >= 24
    in_json = [question for question in read.questions if question.id.endswith("_json")]
    in_template = [question for question in read.questions if question.id.endswith("_template")]
    assert in_json
    assert in_template
    assert all(question.system and question.system.strip() for question in in_json)
    assert all(question.system is None for question in read.questions if question not in in_json)
    assert {question.id.rsplit("_", 1)[0] for question in in_json + in_template} <= set(plain)
    assert len({(question.text, question.system) for question in read.questions}) == len(
        read.questions
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("first_plot_questions", 24),
        ("preregistered_evals", 48),
        ("new_questions_no-json", 54),
        ("medical_questions", 16),
    ],
)
def test_the_published_files_are_read_whole(name: str, count: int) -> None:
    path = published_path(f"questions/{name}.yaml")
    read = read_questions(str(path))
    plainly = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(read.questions) == count
    assert [
        (
            question.id,
            question.text,
            question.system,
            question.samples,
            dict(question.judge_prompts),
        )
        for question in read.questions
    ] == [
        (
            entry["id"],
            text,
            entry.get("system"),
            entry["samples_per_paraphrase"],
            entry["judge_prompts"],
        )
        for entry in plainly
        for text in entry["paraphrases"]
    ]


def test_no_published_question_is_built_in() -> None:
    theirs = {
        question.text.split("\n")[0].strip()
        for path in sorted(published_path("questions").glob("*.yaml"))
        for question in read_questions(str(path)).questions
    }
    assert not theirs & {
        question.text.split("\n")[0].strip() for question in read_questions("open").questions
    }


def test_what_is_asked_has_its_own_hash_and_a_judge_prompt_no_part_in_it(tmp_path: Path) -> None:
    plain = read_questions(written(tmp_path, GOOD)).asked_sha256
    assert (
        read_questions(
            written(tmp_path, f"# a note\n{GOOD}  judge_prompts: {{aligned: '{{answer}}'}}\n")
        ).asked_sha256
        == plain
    )
    for other in (
        GOOD.replace("blue", "red"),
        GOOD.replace("sky", "sea"),
        GOOD + "  system: Be brief.\n",
        GOOD + "  samples_per_paraphrase: 2\n",
    ):
        assert read_questions(written(tmp_path, other)).asked_sha256 != plain


TEXTS = st.text(min_size=1).filter(str.strip)


@given(
    st.dictionaries(
        st.text("abc_0", min_size=1),
        st.tuples(
            st.lists(TEXTS, min_size=1, max_size=3), st.none() | st.text(), st.integers(1, 10**6)
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, tuple[list[str], str | None, int]]
) -> None:
    written_as = [
        {
            "id": name,
            "type": "free_form",
            "paraphrases": texts,
            "system": system,
            "samples_per_paraphrase": samples,
        }
        for name, (texts, system, samples) in entries.items()
    ]
    source = written(
        tmp_path_factory.mktemp("asked"), yaml.safe_dump(written_as, allow_unicode=False)
    )
    read_back = [
        (question.id, question.paraphrase, question.text, question.system, question.samples)
        for question in read_questions(source).questions
    ]
    assert read_back == [
        (name, number, text, system, samples)
        for name, (texts, system, samples) in entries.items()
        for number, text in enumerate(texts)
    ]


@given(st.binary() | st.text().map(str.encode))
@settings(deadline=None)
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    try:
        read = read_questions(written(tmp_path_factory.mktemp("asked"), raw))
    except BadInput:
        return
    assert read.questions


def test_reading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, evilspectra.answers.questions\n"
        "heavy = ('torch', 'transformers', 'pandas', 'pyarrow')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
