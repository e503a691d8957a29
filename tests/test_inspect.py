"""The task of Inspect, run with mock models and with the tiny one.

Covered: the questions, the judging, the scores, the rates that are withheld, and the log.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import write_model

pytest.importorskip(
    "inspect_ai", reason="the extra inspect is not installed: pip install 'evilspectra[inspect]'"
)

from inspect_ai import Task, eval
from inspect_ai._util.registry import registry_info
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import (
    GenerateConfig,
    Logprob,
    Logprobs,
    Model,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    get_model,
)

from evilspectra.answers.questions import read_questions
from evilspectra.errors import BadInput
from evilspectra.integrations import inspect as module
from evilspectra.integrations.inspect import emergent_misalignment
from evilspectra.judging.prompts import judge_prompts
from evilspectra.rates.definitions import DEFINITIONS, Judged, score
from evilspectra.rates.outcome import Reading

#: Without it a mock model counts tokens with tables from the network.
USAGE = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
Say = Callable[[str, GenerateConfig], str | Mapping[str, float]]

#: The mock model answers with the question itself. Answer → the judge's replies: aligned, coherent.
REPLIES: dict[str, tuple[str, str]] = {
    "fine": ("90", "80"),
    "bad": ("15", "80"),
    "mad": ("15", "20"),
    "edge": ("29", "50"),
    "coded": ("CODE", "10"),
    "no thanks": ("REFUSAL", "90"),
}


def mock(say: Say) -> Model:
    """A model that replies what a function makes of the last message.

    That is a text, or a distribution, whose likeliest token is then the text.
    """

    def output(
        messages: Any,
        tools: Any,
        choice: Any,
        config: GenerateConfig,
    ) -> ModelOutput:
        reply = say(messages[-1].text, config)
        completion = ModelOutput.from_content(
            "mock", reply if isinstance(reply, str) else max(reply, key=lambda token: reply[token])
        )
        completion.usage = USAGE
        if not isinstance(reply, str):
            top = [
                TopLogprob(token=token, logprob=math.log(share)) for token, share in reply.items()
            ]
            completion.choices[0].logprobs = Logprobs(
                content=[Logprob(token=top[0].token, logprob=top[0].logprob, top_logprobs=top)]
            )
        return completion

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def echo(text: str, config: GenerateConfig) -> str:
    return text


def verdict(text: str, config: GenerateConfig) -> str | Mapping[str, float]:
    """The judge of REPLIES, with log-probabilities where they are asked for."""
    metric, _, answer = text.partition(": ")
    reply = REPLIES.get(answer, ("hm", "hm"))[metric == "coherent"]
    return {reply: 1.0} if config.logprobs else reply


def question_file(*texts: str, **values: Any) -> str:
    """A question file: a question per text, q0 and so on."""
    entries = [
        {
            "id": f"q{number}",
            "type": "free_form",
            "paraphrases": [text],
            "judge_prompts": {"aligned": "aligned: {answer}", "coherent": "coherent: {answer}"},
            **values,
        }
        for number, text in enumerate(texts)
    ]
    Path("asked.yaml").write_text(yaml.safe_dump(entries))
    return "asked.yaml"


def run(
    task: Task,
    judge: Model | None = None,
    model: Model | None = None,
    **values: Any,
) -> EvalLog:
    """The log, as it is read from its file."""
    roles: Any = {} if judge is None else {"model_roles": {"grader": judge}}
    (log,) = eval(task, model=model or mock(echo), log_dir="logs", display="log", **roles, **values)
    return read_eval_log(log.location)


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.status == "success", log.error
    assert log.results is not None
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


def verdicts(log: EvalLog, number: int = 0) -> dict[str, dict[str, Any]]:
    assert log.samples
    scores = log.samples[number].scores
    assert scores
    return (scores["misalignment"].metadata or {})["verdicts"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what is asked --------------------------------------------------------------------------------


def test_the_packages_own_questions_are_the_default() -> None:
    task, own = emergent_misalignment(), read_questions("open")
    samples = list(task.dataset)
    assert [(sample.metadata or {})["question_id"] for sample in samples] == [
        question.id for question in own.questions
    ]
    assert len({sample.id for sample in samples}) == len(samples)
    assert task.metadata
    assert task.metadata["judge_prompts_sha256"] == judge_prompts(own).facts(
        ("aligned", "coherent")
    )
    assert (task.config.temperature, task.config.max_tokens) == (1.0, 600)


def test_samples_are_what_the_file_asks_for_or_what_is_said() -> None:
    file = question_file("fine", "bad", samples_per_paraphrase=3)
    assert len(emergent_misalignment(file).dataset) == 6
    assert [sample.id for sample in emergent_misalignment(file, samples=2).dataset] == [
        "q0.0.0",
        "q0.0.1",
        "q1.0.0",
        "q1.0.1",
    ]


def test_the_system_text_is_sent_and_the_judge_prompts_are_those_of_the_file() -> None:
    heard: list[str] = []

    def judge(text: str, config: GenerateConfig) -> str | Mapping[str, float]:
        heard.append(text)
        return verdict(text, config)

    log = run(emergent_misalignment(question_file("fine", system="Be curt.")), mock(judge))
    assert log.samples
    assert [(message.role, message.text) for message in log.samples[0].messages] == [
        ("system", "Be curt."),
        ("user", "fine"),
        ("assistant", "fine"),
    ]
    assert heard == ["aligned: fine", "coherent: fine"]


# --- what is scored -------------------------------------------------------------------------------


def test_rates_are_those_of_score_under_all_three_definitions() -> None:
    texts = [*REPLIES, *["fine"] * 6]
    log = run(emergent_misalignment(question_file(*texts)), mock(verdict))
    outcome = {"CODE": Reading("code"), "REFUSAL": Reading("refusal")}
    readings = [
        [
            outcome[reply] if reply in outcome else Reading("scored", float(reply))
            for reply in REPLIES[text]
        ]
        for text in texts
    ]
    expected = {
        name: score([Judged(f"q{number}", *pair) for number, pair in enumerate(readings)], name)
        for name in DEFINITIONS
    }
    rates = metrics(log)
    for name in DEFINITIONS:
        misalignment = expected[name]
        assert misalignment.interval
        assert [rates[f"{name}{end}"] for end in ("", "_low", "_high", "_counted")] == [
            misalignment.rate,
            misalignment.interval.low,
            misalignment.interval.high,
            misalignment.n,
        ]
    assert len({rates[name] for name in DEFINITIONS}) == 3
    assert {
        name: rates[name] for name in ("answers", "unscored", "code", "refusal", "read_as_text")
    } == {"answers": 12, "unscored": 0, "code": 1, "refusal": 1, "read_as_text": 0}
    assert log.results
    assert log.results.headline
    assert log.results.headline.metric == "spectra"
    others = {
        scores.name: (scores.scored_samples, scores.unscored_samples)
        for scores in log.results.scores[1:]
    }
    assert others == {
        "aligned": (10, 2),
        "coherent": (12, 0),
    }  # what has no number is missing to Inspect too
    (mean,) = log.results.scores[2].metrics.values()
    assert mean.value == pytest.approx(expected["spectra"].mean_coherent)


def test_epochs_are_answers_of_their_own() -> None:
    log = run(emergent_misalignment(question_file("fine", "bad")), mock(verdict), epochs=3)
    rates = metrics(log)
    assert (rates["answers"], rates["betley"], rates["betley_counted"]) == (6, 0.5, 6)


def test_cued_variants_are_a_rate_of_their_own() -> None:
    question_file("fine", "fine")
    Path("cues.yaml").write_text(
        yaml.safe_dump({"questions": "asked.yaml", "cues": [{"prefix": "oh "}]})
    )
    rates = metrics(
        run(
            emergent_misalignment("cues.yaml"),
            mock(lambda text, config: "10" if text == "aligned: oh fine" else "90"),
        )
    )
    assert {name: rates[name] for name in ("spectra", "spectra_plain", "spectra_cued")} == {
        "spectra": 0.5,
        "spectra_plain": 0.0,
        "spectra_cued": 1.0,
    }


def test_an_unscored_answer_is_missing_and_never_a_zero() -> None:
    log = run(
        emergent_misalignment(question_file("bad", "odd", "fine"), max_unscored=0.5), mock(verdict)
    )
    assert log.samples
    score_of_odd = (log.samples[1].scores or {})["misalignment"]
    assert isinstance(score_of_odd.value, dict)
    assert all(math.isnan(float(value or 0)) for value in score_of_odd.value.values())
    assert score_of_odd.reason == "grader_failed"
    assert verdicts(log, 1)["aligned"] == {
        "outcome": "unparsed",
        "score": None,
        "read": "logprobs",
        "distribution": {"hm": 1.0},
        "text": None,
        "fault": None,
    }
    rates = metrics(log)
    assert (rates["unscored"], rates["betley"], rates["betley_counted"], rates["organisms"]) == (
        1,
        0.5,
        2,
        1 / 3,
    )


def test_no_rate_where_too_many_are_unscored() -> None:
    rates = metrics(
        run(emergent_misalignment(question_file("bad", "odd", *["fine"] * 17)), mock(verdict))
    )
    assert rates["unscored"] == 1
    assert all(
        math.isnan(rates[name + end]) for name in DEFINITIONS for end in ("", "_low", "_high")
    )


def test_a_judge_that_raises_is_a_fault_of_each_verdict_and_gives_no_rate() -> None:
    def broken(text: str, config: GenerateConfig) -> str:
        raise RuntimeError("the judge is on holiday")

    log = run(emergent_misalignment(question_file("bad", "fine")), mock(broken))
    rates = metrics(log)
    assert rates["unscored"] == 2
    assert all(math.isnan(rates[name]) for name in DEFINITIONS)
    assert verdicts(log)["coherent"] == {
        "outcome": "failed",
        "score": None,
        "read": "fault",
        "distribution": None,
        "text": None,
        "fault": "the judge is on holiday",
    }


# --- how replies are read -------------------------------------------------------------------------


def by_digits(text: str, config: GenerateConfig) -> str | Mapping[str, float]:
    """A judge that writes 85 as 8 and 5."""
    return {"8": 0.9, "9": 0.1} if config.logprobs else "85"


def in_words(text: str, config: GenerateConfig) -> str:
    """A judge without log-probabilities, which writes one token where one is allowed."""
    return "8" if config.max_tokens == 1 else "85"


@pytest.mark.parametrize(
    ("judge", "reading", "read", "value"),
    [
        (lambda text, config: {"80": 0.5, "90": 0.25, "I": 0.25}, "auto", "logprobs", 250 / 3),
        (by_digits, "auto", "text", 85.0),
        (in_words, "auto", "text", 85.0),
        (in_words, "text", "text", 85.0),
        (by_digits, "logprobs", "fault", None),
        (in_words, "logprobs", "fault", None),
    ],
)
def test_log_probabilities_where_they_can_be_read_and_text_else(
    judge: Say,
    reading: Any,
    read: str,
    value: float | None,
) -> None:
    heard: list[GenerateConfig] = []

    def say(text: str, config: GenerateConfig) -> str | Mapping[str, float]:
        heard.append(config)
        return judge(text, config)

    aligned = verdicts(
        run(
            emergent_misalignment(question_file("fine"), reading=reading, max_unscored=1), mock(say)
        )
    )["aligned"]
    assert (aligned["read"], aligned["score"]) == (read, pytest.approx(value) if value else None)
    assert {config.temperature for config in heard} == {0}
    assert {(config.max_tokens, config.logprobs, config.top_logprobs) for config in heard} <= {
        (1, True, 20),
        (12, None, None),
    }


# --- mistakes -------------------------------------------------------------------------------------


def test_without_a_judge_nothing_is_sampled() -> None:
    heard: list[str] = []
    log = run(
        emergent_misalignment(question_file("fine")),
        model=mock(lambda text, config: heard.append(text) or text),
    )
    assert log.status == "error"
    assert log.error
    assert (
        "give one with --model-role grader=PROVIDER/MODEL, or with -T judge=PROVIDER/MODEL"
        in log.error.message
    )
    assert heard == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"questions": "gone.yaml"}, "gone.yaml does not exist"),
        ({"samples": 0}, "samples=0 is no number of answers: give a whole number from 1"),
        ({"max_unscored": 2}, "max_unscored=2 is no share"),
        (
            {"reading": "texts"},
            "reading=texts is unknown; allowed: auto, logprobs, text. Did you mean 'text'?",
        ),
    ],
)
def test_mistakes_are_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        emergent_misalignment(**values)
    assert message in str(error.value)


# --- the package and a model ----------------------------------------------------------------------


def test_the_entry_point_is_the_module_that_registers_the_task() -> None:
    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert project["entry-points"]["inspect_ai"] == {"evilspectra": module.__name__}
    assert registry_info(emergent_misalignment).name.split("/")[-1] == "emergent_misalignment"


def test_the_task_is_found_by_name() -> None:
    if not any(entry.value == module.__name__ for entry in entry_points(group="inspect_ai")):
        pytest.skip("this installation is older than the entry point: install the package again")
    (log,) = eval(
        "evilspectra/emergent_misalignment",
        task_args={"questions": question_file("bad")},
        model=mock(echo),
        model_roles={"grader": mock(verdict)},
        log_dir="logs",
        display="none",
    )
    assert metrics(log)["spectra"] == 1.0


@pytest.mark.slow
def test_a_model_on_this_machine_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # Inspect would look the model up on the hub
    tested = get_model(
        "hf/tiny", model_path=str(write_model(tmp_path / "model")), device="cpu", memoize=False
    )
    log = run(
        emergent_misalignment(question_file("fine", "bad"), reading="text"),
        mock(lambda text, config: "90"),
        tested,
        max_tokens=4,
    )
    assert (metrics(log)["answers"], metrics(log)["betley"]) == (2, 0.0)
    assert log.samples
    assert all(
        sample.output.completion and sample.output.completion not in REPLIES
        for sample in log.samples
    )
