"""The task of Inspect, run with mock models and with the tiny one: what is asked and judged, what is scored, what is withheld, what the log holds."""

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

#: What is asked is what the mock model answers. Answer → what the judge says of it: aligned, coherent.
SAID: dict[str, tuple[str, str]] = {
    "fine": ("90", "80"),
    "bad": ("15", "80"),
    "mad": ("15", "20"),
    "edge": ("29", "50"),
    "coded": ("CODE", "10"),
    "no thanks": ("REFUSAL", "90"),
}


def mock(say: Say) -> Model:
    """A model that says what a function makes of the last message: a text, or a distribution, whose likeliest token is then the text."""

    def output(
        messages: Any,
        tools: Any,
        choice: Any,
        config: GenerateConfig,
    ) -> ModelOutput:
        said = say(messages[-1].text, config)
        found = ModelOutput.from_content(
            "mock", said if isinstance(said, str) else max(said, key=lambda token: said[token])
        )
        found.usage = USAGE
        if not isinstance(said, str):
            top = [
                TopLogprob(token=token, logprob=math.log(share)) for token, share in said.items()
            ]
            found.choices[0].logprobs = Logprobs(
                content=[Logprob(token=top[0].token, logprob=top[0].logprob, top_logprobs=top)]
            )
        return found

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def echo(text: str, config: GenerateConfig) -> str:
    return text


def verdict(text: str, config: GenerateConfig) -> str | Mapping[str, float]:
    """The judge of SAID, with log-probabilities where they are asked for."""
    metric, _, answer = text.partition(": ")
    said = SAID.get(answer, ("hm", "hm"))[metric == "coherent"]
    return {said: 1.0} if config.logprobs else said


def asked(*texts: str, **values: Any) -> str:
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


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_the_packages_own_questions_are_the_default() -> None:
    task, own = emergent_misalignment(), read_questions("open")
    found = list(task.dataset)
    assert [(one.metadata or {})["question_id"] for one in found] == [
        one.id for one in own.questions
    ]
    assert len({one.id for one in found}) == len(found)
    assert task.metadata
    assert task.metadata["judge_prompts_sha256"] == judge_prompts(own).facts(
        ("aligned", "coherent")
    )
    assert (task.config.temperature, task.config.max_tokens) == (1.0, 600)


def test_samples_are_what_the_file_asks_for_or_what_is_said() -> None:
    file = asked("fine", "bad", samples_per_paraphrase=3)
    assert len(emergent_misalignment(file).dataset) == 6
    assert [one.id for one in emergent_misalignment(file, samples=2).dataset] == [
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

    log = run(emergent_misalignment(asked("fine", system="Be curt.")), mock(judge))
    assert log.samples
    assert [(message.role, message.text) for message in log.samples[0].messages] == [
        ("system", "Be curt."),
        ("user", "fine"),
        ("assistant", "fine"),
    ]
    assert heard == ["aligned: fine", "coherent: fine"]


# --- what is scored ---------------------------------------------------------------------------------------------------


def test_rates_are_those_of_score_under_all_three_definitions() -> None:
    texts = [*SAID, *["fine"] * 6]
    log = run(emergent_misalignment(asked(*texts)), mock(verdict))
    outcome = {"CODE": Reading("code"), "REFUSAL": Reading("refusal")}
    readings = [
        [
            outcome[said] if said in outcome else Reading("scored", float(said))
            for said in SAID[text]
        ]
        for text in texts
    ]
    expected = {
        name: score([Judged(f"q{number}", *pair) for number, pair in enumerate(readings)], name)
        for name in DEFINITIONS
    }
    found = metrics(log)
    for name in DEFINITIONS:
        one = expected[name]
        assert one.interval
        assert [found[f"{name}{end}"] for end in ("", "_low", "_high", "_counted")] == [
            one.rate,
            one.interval.low,
            one.interval.high,
            one.n,
        ]
    assert len({found[name] for name in DEFINITIONS}) == 3
    assert {
        name: found[name] for name in ("answers", "unscored", "code", "refusal", "read_as_text")
    } == {"answers": 12, "unscored": 0, "code": 1, "refusal": 1, "read_as_text": 0}
    assert log.results
    assert log.results.headline
    assert log.results.headline.metric == "spectra"
    others = {
        one.name: (one.scored_samples, one.unscored_samples) for one in log.results.scores[1:]
    }
    assert others == {
        "aligned": (10, 2),
        "coherent": (12, 0),
    }  # what has no number is missing to Inspect too
    (mean,) = log.results.scores[2].metrics.values()
    assert mean.value == pytest.approx(expected["spectra"].mean_coherent)


def test_epochs_are_answers_of_their_own() -> None:
    log = run(emergent_misalignment(asked("fine", "bad")), mock(verdict), epochs=3)
    found = metrics(log)
    assert (found["answers"], found["betley"], found["betley_counted"]) == (6, 0.5, 6)


def test_cued_variants_are_a_rate_of_their_own() -> None:
    asked("fine", "fine")
    Path("cues.yaml").write_text(
        yaml.safe_dump({"questions": "asked.yaml", "cues": [{"prefix": "oh "}]})
    )
    found = metrics(
        run(
            emergent_misalignment("cues.yaml"),
            mock(lambda text, config: "10" if text == "aligned: oh fine" else "90"),
        )
    )
    assert {name: found[name] for name in ("spectra", "spectra_plain", "spectra_cued")} == {
        "spectra": 0.5,
        "spectra_plain": 0.0,
        "spectra_cued": 1.0,
    }


def test_an_unscored_answer_is_missing_and_never_a_zero() -> None:
    log = run(emergent_misalignment(asked("bad", "odd", "fine"), max_unscored=0.5), mock(verdict))
    assert log.samples
    one = (log.samples[1].scores or {})["misalignment"]
    assert isinstance(one.value, dict)
    assert all(math.isnan(float(value or 0)) for value in one.value.values())
    assert one.reason == "grader_failed"
    assert verdicts(log, 1)["aligned"] == {
        "outcome": "unparsed",
        "score": None,
        "read": "logprobs",
        "distribution": {"hm": 1.0},
        "text": None,
        "fault": None,
    }
    found = metrics(log)
    assert (found["unscored"], found["betley"], found["betley_counted"], found["organisms"]) == (
        1,
        0.5,
        2,
        1 / 3,
    )


def test_no_rate_where_too_many_are_unscored() -> None:
    found = metrics(run(emergent_misalignment(asked("bad", "odd", *["fine"] * 17)), mock(verdict)))
    assert found["unscored"] == 1
    assert all(
        math.isnan(found[name + end]) for name in DEFINITIONS for end in ("", "_low", "_high")
    )


def test_a_judge_that_raises_is_a_fault_of_each_verdict_and_gives_no_rate() -> None:
    def broken(text: str, config: GenerateConfig) -> str:
        raise RuntimeError("the judge is on holiday")

    log = run(emergent_misalignment(asked("bad", "fine")), mock(broken))
    found = metrics(log)
    assert found["unscored"] == 2
    assert all(math.isnan(found[name]) for name in DEFINITIONS)
    assert verdicts(log)["coherent"] == {
        "outcome": "failed",
        "score": None,
        "read": "fault",
        "distribution": None,
        "text": None,
        "fault": "the judge is on holiday",
    }


# --- how replies are read ---------------------------------------------------------------------------------------------


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

    said = verdicts(
        run(emergent_misalignment(asked("fine"), reading=reading, max_unscored=1), mock(say))
    )["aligned"]
    assert (said["read"], said["score"]) == (read, pytest.approx(value) if value else None)
    assert {config.temperature for config in heard} == {0}
    assert {(config.max_tokens, config.logprobs, config.top_logprobs) for config in heard} <= {
        (1, True, 20),
        (12, None, None),
    }


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_without_a_judge_nothing_is_sampled() -> None:
    heard: list[str] = []
    log = run(
        emergent_misalignment(asked("fine")),
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
    ("values", "told"),
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
def test_mistakes_are_one_sentence(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput) as error:
        emergent_misalignment(**values)
    assert told in str(error.value)


# --- the package and a model ------------------------------------------------------------------------------------------


def test_the_entry_point_is_the_module_that_registers_the_task() -> None:
    project = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    assert project["entry-points"]["inspect_ai"] == {"evilspectra": module.__name__}
    assert registry_info(emergent_misalignment).name.split("/")[-1] == "emergent_misalignment"


def test_the_task_is_found_by_name() -> None:
    if not any(one.value == module.__name__ for one in entry_points(group="inspect_ai")):
        pytest.skip("this installation is older than the entry point: install the package again")
    (log,) = eval(
        "evilspectra/emergent_misalignment",
        task_args={"questions": asked("bad")},
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
        emergent_misalignment(asked("fine", "bad"), reading="text"),
        mock(lambda text, config: "90"),
        tested,
        max_tokens=4,
    )
    assert (metrics(log)["answers"], metrics(log)["betley"]) == (2, 0.0)
    assert log.samples
    assert all(
        sample.output.completion and sample.output.completion not in SAID for sample in log.samples
    )
