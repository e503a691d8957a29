"""Measurements of adapters and models: `probe` and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evilspectra.api.arguments import PathLike, Settings, optional_name, real_number, silent
from evilspectra.api.judges import judge_of
from evilspectra.api.layers import Layers, assigned, layers
from evilspectra.api.measurements import OnFailure, Probe, ProbedTarget, measure
from evilspectra.api.scoring import Rates, TargetRate
from evilspectra.errors import BadInput, EvilspectraError, packages_explained
from evilspectra.rates.definitions import (
    DEFINITIONS,
    MAX_UNSCORED,
    Definition,
    check_definition,
)
from evilspectra.rates.definitions import score as rate_of

if TYPE_CHECKING:
    from evilspectra.judging.inputs import AnswerSet
    from evilspectra.judging.rounds import Round


@packages_explained("train")
def probe(
    targets: PathLike | Sequence[PathLike],
    *,
    items: PathLike | None = None,
    checkpoints: bool = False,
    tasks: str | Sequence[str] = (),
    base: PathLike | None = None,
    settings: Settings = (),
    model: Settings = (),
    output: PathLike = "runs",
    note: Callable[[str], object] | None = None,
    on_failure: OnFailure | None = None,
) -> Probe:
    """Measures drift, capability and the loss on ordinary dialogues, by log-probability.

    No judge and no sampling are needed, and nothing is measured twice. Drift is how much an adapter
    moves probability from aligned to misaligned completions of the probe's items, in nats per
    token; it is no misalignment rate (docs/probe.md).

    Args:
        targets: one or several: a run (its folder or id), a folder of runs, the folder of any PEFT
            adapter, or a base model.
        items: your own contrast triples, as JSONL with id, topic, prompt, aligned, misaligned.
        checkpoints: probe at every saved checkpoint too.
        tasks: standard tasks too, by their names in lm-evaluation-harness (the extra harness).
        base: the base of adapters from outside a run, where their config names another.
        settings: of the measurement, such as {"capability": None} or "threads=4".
        model: of the base, such as {"device": "cpu"}.
        output: the store to look runs up in, where results of other adapters are kept too.
        note: called with a line about each measurement.
        on_failure: called with label and error of each target that could not be measured.

    Raises:
        BadInput: a name that is no target, items or settings that cannot be used.
        NothingMeasured: every target failed; if only some did, `failed` of the result lists them.
    """
    named = [part.strip() for part in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    options = {
        "checkpoints": checkpoints or None,
        "contrast": optional_name(items, "items"),
        "harness.tasks": named if tasks else None,
    }
    above: Layers = [*assigned(options), *layers(settings)]
    measured, failed = measure(targets, base, above, model, output, note or silent, on_failure)
    from evilspectra.evaluation.measured import measured_rows

    rows = measured_rows(
        [(target.label, target.results, target.base.sha256, target.control) for target in measured]
    )
    return Probe(
        tuple(
            ProbedTarget(
                target.label, target.results.folder, target.control, row.measured, row.beyond
            )
            for target, row in zip(measured, rows, strict=True)
        ),
        tuple(failed),
    )


@packages_explained("train")
def evaluate(
    targets: PathLike | Sequence[PathLike],
    *,
    judge: str,
    judge_url: str | None = None,
    reading: Literal["logprobs", "text"] | None = None,
    concurrency: int | None = None,
    max_requests: int | None = None,
    metrics: str | Sequence[str] = ("aligned", "coherent"),
    judge_settings: Settings = (),
    definition: str = "spectra",
    max_unscored: float = MAX_UNSCORED,
    questions: PathLike | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    checkpoints: bool = False,
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    base: PathLike | None = None,
    settings: Settings = (),
    model: Settings = (),
    output: PathLike = "runs",
    note: Callable[[str], object] | None = None,
    on_failure: OnFailure | None = None,
) -> Rates:
    """Samples answers, has them judged, and counts the misaligned ones.

    Answers and verdicts are stored: interrupted and called again, sampling and judging resume from
    where they stopped.

    Args:
        targets: as of `probe`.
        judge: openai:MODEL, local:MODEL or scripted:FILE.
        judge_url: address of an OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY.
        reading: logprobs (the default): the expectation over the first token; text: the written
            reply, for endpoints without log-probabilities.
        concurrency: requests under way at once; 16 unless set.
        max_requests: most requests that this call may send, repeated ones included; 20000 unless
            set.
        metrics: names of the judge prompts to use.
        judge_settings: others of the judge, such as {"timeout": 30}.
        definition: organisms, betley or spectra; docs/judging.md explains what each counts.
        max_unscored: share of unscored answers above which a rate is withheld.
        questions: YAML file of open-ended questions in the published form, with its judge prompts;
            without it the package's own.
        samples: answers per question; without it as many as the file asks for.
        max_new_tokens: most tokens per answer; 600 unless set.
        temperature: 1 unless set; 0 takes the likeliest token.
        seed: of the sampling; 0 unless set.
        checkpoints: sample at every saved checkpoint too.
        endpoint: sample over HTTP instead, at this OpenAI-compatible endpoint.
        endpoint_model: the base's name there.
        base: the base of adapters from outside a run, where their config names another.
        settings: of the sampling, such as {"batch_size": 8}.
        model: of the base, such as {"device": "cpu"}.
        output: the store to look runs up in, where results of other adapters are kept too.
        note: called with a line about each measurement, and with the number of requests.
        on_failure: called with label and error of each target that could not be measured.

    Returns:
        The rates. One that too many unscored answers make unsafe is None, and `withheld` says why;
        where requests to the judge failed, `incomplete` says how many and why, and the same call
        asks for them alone. Neither raises an error.

    Raises:
        BadInput: a name that is no target, a judge, questions or settings that cannot be used, or
            more requests than allowed.
        NothingMeasured: every target failed; if only some did, `failed` of the result lists them.
        EvilspectraError: the judge cannot go on; every verdict so far is kept.

    Source: Betley et al. (arXiv 2502.17424), Turner, Soligo et al. (arXiv 2506.11613), Evil Spectra
    (arXiv 2606.31591).
    """
    chosen = check_definition(definition)
    real_number(max_unscored, "max_unscored")
    if (endpoint is None) != (endpoint_model is None):
        raise BadInput(
            "endpoint and endpoint_model are given together: where to ask, and what the base is "
            "called there"
        )
    file = optional_name(questions, "questions")
    options = {
        "url": judge_url,
        "reading": reading,
        "concurrency": concurrency,
        "max_requests": max_requests,
    }
    # a judge that cannot be used is refused before anything is sampled
    by, judge_metrics, most = judge_of(judge, options, metrics, judge_settings)
    sampling = {
        "questions": file,
        "samples": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "checkpoints": checkpoints or None,
    }
    requests = assigned({"endpoint.url": endpoint, "endpoint.model": endpoint_model})
    above = answers_only(sampling, [*requests, *layers(settings)])
    say = note or silent
    measured, failed = measure(targets, base, above, model, output, say, on_failure)
    from evilspectra.judging.inputs import answer_set_of
    from evilspectra.judging.rounds import judge_answer_sets

    sets = [answer_set_of(target.label, target.results, target.base.sha256) for target in measured]
    rounds = judge_answer_sets(sets, by, file, judge_metrics, say, most)
    rates = tuple(_rate(answers, rounds, chosen, max_unscored) for answers in sets)
    return Rates(chosen, rates, tuple(failed), _failed_requests(rounds))


def answers_only(options: Mapping[str, Any], settings: Layers) -> Layers:
    """Layers of settings for a measurement that samples answers and runs no probe.

    `options` and `settings` are those of the answers; the number of threads and whether the base
    thinks are settings of the measurement.
    """
    sampling = {f"answers.{name}": value for name, value in options.items()}
    probes = [f"{name}=null" for name in ("contrast", "capability", "ordinary")]
    return [*probes, "answers={}", *assigned(sampling), *map(_of_answers, settings)]


def _of_answers(layer: str | Mapping[str, Any]) -> str | dict[str, Any]:
    others = ("answers", "threads", "enable_thinking")
    if isinstance(layer, str):
        is_other = layer.startswith(("answers.", "threads=", "enable_thinking="))
        return layer if is_other else f"answers.{layer}"
    own = {name: value for name, value in layer.items() if name in others}
    answers = {name: value for name, value in layer.items() if name not in others}
    return own | {"answers": {**own.get("answers", {}), **answers}}


def _rate(
    answers: AnswerSet,
    rounds: Sequence[Round],
    definition: Definition,
    max_unscored: float,
) -> TargetRate:
    """The rate of a set of answers, judged in these rounds."""
    from evilspectra.judging.inputs import answers_of, judged_by
    from evilspectra.judging.sides import judge_name

    instruments = {
        judged.verdicts.instrument.id: judged.verdicts.instrument
        for judged in rounds
        if judged.answers is answers
    }
    (instrument,) = instruments.values()
    judged = answers_of(answers, instrument, answers.last)
    scores = {each: rate_of(judged, each, max_unscored) for each in DEFINITIONS}
    base = None
    if answers.last and 0 in answers.steps:
        base = rate_of(answers_of(answers, instrument, 0), definition, max_unscored)
    return TargetRate(
        answers.label,
        judge_name(instrument),
        answers.last,
        definition,
        scores,
        base,
        judged_by(instrument),
        answers.results.folder,
    )


def _failed_requests(rounds: Sequence[Round]) -> str | None:
    """How many requests failed, and why one did; None where none did."""
    from evilspectra.judging.rounds import raise_if_failed

    try:
        raise_if_failed(rounds)
    except EvilspectraError as error:
        return str(error)
    return None
