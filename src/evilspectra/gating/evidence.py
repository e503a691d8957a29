"""The gate's evidence: measurements and judged answers of candidate and baseline.

Both sides have the same instruments and the same judge. A measurement that fails becomes an
`Unmeasured` with its reason, and the others are still made. torch is imported only when something
is measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evilspectra.cards.record import RECORD, weights_sha256
from evilspectra.config.judge import METRICS
from evilspectra.config.sections import ModelConfig
from evilspectra.errors import (
    BadInput,
    EvilspectraError,
    Interrupted,
    MissingPackage,
    Undecided,
    first_line,
    packages_explained,
)
from evilspectra.gating.decision import Difference, Measurements, Unmeasured
from evilspectra.gating.policy import MisalignmentRule, Policy
from evilspectra.judging.inputs import answer_set_of, answers_of
from evilspectra.judging.judge import Judge
from evilspectra.judging.rounds import judge_answer_sets
from evilspectra.numbers import bracketed
from evilspectra.probes.drift import Frame, beyond_control, capability, exchanged, ordinary
from evilspectra.rates.compare import Paired, compare
from evilspectra.store.files import read_json
from evilspectra.store.results import Instrument
from evilspectra.store.step_means import module_summary
from evilspectra.targets.find import Target, find_targets
from evilspectra.targets.names import TARGETS, meaning_of

Note = Callable[[str], object]


@dataclass(frozen=True)
class Sides:
    """The two targets of a comparison."""

    candidate: Target
    baseline: Target


@dataclass(frozen=True)
class GateRequest:
    """A command's arguments.

    `output`: the store. `model`: device and number type. `base`: that of adapters from outside a
    run.
    """

    candidate: str
    baseline: str
    output: str = "runs"
    model: ModelConfig | None = None
    base: str | None = None
    judge: Judge | None = None
    max_requests: int | None = None


def gather(request: GateRequest, policy: Policy, note: Note = lambda text: None) -> Measurements:
    """Measures what a policy asks for.

    Every error but an interruption and a package that is not installed becomes a missing
    measurement: a gate that breaks must end undecided.

    Raises:
        Interrupted: the user stopped the work.
        MissingPackage: a package of an extra is not installed.
    """
    try:
        with packages_explained("train"):
            return _gather(request, policy, note)
    except (Interrupted, MissingPackage):
        raise
    except Exception as error:  # whatever it is, a measurement is missing, and the gate stays shut
        return Measurements.none(_explanation(error))


def find_sides(request: GateRequest) -> Sides:
    """The two targets.

    Raises:
        EvilspectraError: one of them cannot be measured.
        Undecided: they cannot be compared: their bases differ, or they are the same.
    """
    candidate, baseline = (
        _target(name, request, side)
        for name, side in ((request.candidate, "candidate"), (request.baseline, "baseline"))
    )
    whole_models = not candidate.adapters and not baseline.adapters
    if candidate.base.sha256 != baseline.base.sha256 and not whole_models:
        names = [
            f"{side.base.public_name} ({side.base.sha256[:12]})" for side in (candidate, baseline)
        ]
        raise Undecided(
            f"the candidate belongs to {names[0]} and the baseline to {names[1]}: "
            "compare an adapter with its own base, or with another adapter of that base"
        )
    if candidate.results.folder.resolve() == baseline.results.folder.resolve():
        raise Undecided(
            f"candidate and baseline are the same ({request.candidate}): "
            "name what is in production as the baseline"
        )
    return Sides(candidate, baseline)


def _target(name: str, request: GateRequest, side: str) -> Target:
    base = request.base
    try:
        if base is not None and not meaning_of(name, request.output, TARGETS).takes_base:
            base = None
        targets = find_targets([name], request.output, request.model, base)
    except BadInput as error:
        raise Undecided(f"the {side} cannot be measured: {error}") from None
    if len(targets) != 1:
        raise Undecided(f"the {side} {name} holds {len(targets)} runs: name one of them")
    if targets[0].adapters:
        _check_record(targets[0], side, stated=base is not None)
    return targets[0]


def _check_record(target: Target, side: str, stated: bool) -> None:
    """Compares an adapter with its training record, if there is one.

    `stated`: the user named the base that the adapter is meant for.
    """
    folder = target.adapters[target.last]
    if not (folder / RECORD).is_file():
        return
    record = read_json(folder / RECORD, "remove it, or save the adapter again")
    base, weights = (record.get("base") or {}).get("sha256"), record.get("weights_sha256")
    if base and base != target.base.sha256 and not stated:
        raise Undecided(
            f"the {side} {folder} was trained on another content of {target.base.public_name} "
            f"({base[:12]} by its {RECORD}, {target.base.sha256[:12]} here): "
            "restore that base, or name this one with --base if the adapter is meant for it"
        )
    if weights and weights != weights_sha256(folder):
        raise Undecided(
            f"the weights of the {side} {folder} are not those that were trained "
            f"(by its {RECORD}): restore them, or measure a copy without that file"
        )


def _gather(request: GateRequest, policy: Policy, note: Note) -> Measurements:
    sides = find_sides(request)
    from evilspectra.evaluation.evaluate import evaluate

    done = evaluate([sides.baseline, sides.candidate], policy.evaluation(), note)
    failed = {}
    for target, error in done.failed:
        folder = target.results.folder
        side = "candidate" if folder == sides.candidate.results.folder else "baseline"
        failed[folder] = f"the {side} cannot be measured: {error}"
    used = {
        target.results.folder: done.used.get(target.results.folder, {})
        for target in (sides.candidate, sides.baseline)
    }
    readings = Readings(sides, used, failed)
    notes: list[str] = []
    drifted = (
        readings.read("probe", lambda base, after: _drift(base, after, policy.seed, notes))
        if policy.drift
        else _NOT_ASKED
    )
    able = (
        readings.read("capability", lambda base, after: _capability(base, after, policy.seed))
        if policy.capability
        else _NOT_ASKED
    )
    fluent = (
        readings.read("ordinary", lambda base, after: _ordinary(base, after, policy.seed))
        if policy.ordinary
        else _NOT_ASKED
    )
    rule = policy.misalignment
    judged = (
        _guarded(lambda: _misalignment(readings, rule, request, policy.seed, note))
        if rule
        else _NOT_ASKED
    )
    if isinstance(judged, Paired):
        notes += judged.warnings
    values = _guarded(lambda: spectrum(sides.candidate)) if policy.spectrum else _NOT_ASKED
    return Measurements(drifted, able, fluent, judged, values, tuple(notes))


_NOT_ASKED = Unmeasured("the policy does not ask for it")


@dataclass(frozen=True)
class Readings:
    """The stored results of both sides.

    `used`: folder → table → instrument; `failed`: folder → why one of its measurements failed.
    """

    sides: Sides
    used: Mapping[Path, Mapping[str, Instrument]]
    failed: Mapping[Path, str]

    def read(
        self, table: str, difference: Callable[[Frame, Frame], Difference | Unmeasured]
    ) -> Difference | Unmeasured:
        """A difference between the rows of both sides."""
        if reason := self.missing(table):
            return Unmeasured(reason)

        def both() -> Difference | Unmeasured:
            base, after = (
                side.results.read(self.used[side.results.folder][table], side.last)
                for side in (self.sides.baseline, self.sides.candidate)
            )
            return _comparable(base, after) or difference(base, after)

        return _guarded(both)

    def missing(self, table: str) -> str | None:
        """The reason why a side lacks a table; None if both have it."""
        instruments = []
        for side in (self.sides.candidate, self.sides.baseline):
            instrument = self.used[side.results.folder].get(table)
            if instrument is None or not side.results.has(instrument, side.last):
                return (
                    self.failed.get(side.results.folder)
                    or f"{side.label} has no results of the kind {table}"
                )
            instruments.append(instrument)
        if instruments[0].id != instruments[1].id:
            return (
                "candidate and baseline were measured in different number types "
                "or on different devices: name one of each with --model"
            )
        return None


def _comparable(base: Frame, after: Frame) -> Unmeasured | None:
    """The reason why the rows of two sides cannot be compared; None if they can."""
    numeric = after.select_dtypes("number").columns
    numbers = list(after.columns.difference(["step"]).intersection(numeric))
    tokens = [name for name in numbers if name.endswith("tokens")]
    same_items = list(base["item"]) == list(after["item"])
    if not same_items or any((base[name] != after[name]).any() for name in tokens):
        return Unmeasured(
            "candidate and baseline cut the items into different tokens, so they are not models "
            "of one family: name the model that the candidate was made from"
        )
    scores = [name for name in numbers if name not in tokens]
    if not np.isfinite(pd.concat([base[scores], after[scores]]).to_numpy(dtype=float)).all():
        return Unmeasured(
            "some log-probabilities are not finite: "
            "use --model dtype=float32, or an adapter trained with a lower learning rate"
        )
    if all((base[name] == after[name]).all() for name in scores):
        return Unmeasured(
            "candidate and baseline give the same log-probabilities to every text: "
            "one model was compared with itself"
        )
    return None


def _drift(
    base: Frame,
    after: Frame,
    seed: int,
    notes: list[str],
) -> Difference:
    change = beyond_control(base, after, [base], seed)
    candidate, baseline = (
        float(np.asarray(rows["misaligned"] - rows["aligned"], dtype=float).mean())
        for rows in (after, base)
    )
    signs = exchanged(np.asarray(after["topic"]))
    base_shuffled, after_shuffled = _shuffled(base, signs), _shuffled(after, signs)
    shuffled = beyond_control(base_shuffled, after_shuffled, [base_shuffled], seed)
    if shuffled.clear_of():
        notes.append(
            f"with the labels shuffled the probe shows {bracketed(shuffled, '+.3f')} "
            "where it should show nothing: trust its interval less"
        )
    return Difference(change, candidate, baseline, len(after))


def _shuffled(rows: Frame, signs: np.ndarray) -> Frame:
    """Probe rows with the two labels exchanged if the sign is negative."""
    positive = signs > 0
    return rows.assign(
        aligned=np.where(positive, rows["aligned"], rows["misaligned"]),
        misaligned=np.where(positive, rows["misaligned"], rows["aligned"]),
    )


def _capability(base: Frame, after: Frame, seed: int) -> Difference:
    result = capability(base, after, seed)
    return Difference(result.change, result.accuracy.value, result.base, result.items)


def _ordinary(base: Frame, after: Frame, seed: int) -> Difference:
    result = ordinary(base, after, seed)
    return Difference(result.change, result.loss.value, result.base, result.items)


def _misalignment(
    readings: Readings,
    rule: MisalignmentRule,
    request: GateRequest,
    seed: int,
    note: Note,
) -> Paired | Unmeasured:
    """Rates of both sides' answers, by one judge; an adapter's base is not judged as well."""
    if reason := readings.missing("answers"):
        return Unmeasured(reason)
    if request.judge is None:
        return Unmeasured("no judge was named")
    answer_sets = []
    for side in (readings.sides.baseline, readings.sides.candidate):
        results = replace(side.results, selected=readings.used[side.results.folder])
        answers = answer_set_of(side.label, results, side.base.sha256)
        answer_sets.append(replace(answers, steps=(side.last,)))
    questions = rule.answers.questions
    try:
        rounds = judge_answer_sets(
            answer_sets, request.judge, questions, METRICS, note, request.max_requests
        )
    except EvilspectraError as error:
        if isinstance(error, Interrupted):
            raise
        return Unmeasured(f"the judge could not continue: {error}")
    before, after = (
        answers_of(answers, judged.verdicts.instrument, answers.last)
        for answers, judged in zip(answer_sets, rounds, strict=True)
    )
    return compare(before, after, rule.definition, rule.max_unscored, seed)


def spectrum(candidate: Target) -> Mapping[str, float | None] | Unmeasured:
    """Measures of the candidate's ΔW over its modules, as `show` prints them."""
    if not candidate.adapters:
        return Unmeasured(
            "the candidate is a whole model, and has no adapter whose spectrum could be measured"
        )
    from evilspectra.spectra.pairs import read_pairs
    from evilspectra.training.monitor import observe

    _, rows = observe(read_pairs(candidate.adapters[candidate.last]), candidate.last)
    if any(row.part != "delta" for row in rows):
        return Unmeasured(
            "the update of this adapter is more than scale·B·A (DoRA, PiSSA), so its factors "
            "do not give its spectrum: leave the spectrum out of the policy"
        )
    frame = pd.DataFrame([{name: getattr(row, name) for name in row.__slots__} for row in rows])
    measures = ("stable_rank", "condition_number", "spectral_entropy", "frobenius_nuclear")
    return module_summary(frame.astype(dict.fromkeys(measures, float)))


def _guarded(measure: Callable[[], Any]) -> Any:
    """The measurement, or the reason why it failed; raises what `gather` raises."""
    try:
        with packages_explained("train"):
            return measure()
    except (Interrupted, MissingPackage):
        raise
    except Exception as error:  # as in `gather`: the other checks are made all the same
        return Unmeasured(_explanation(error))


def _explanation(error: Exception) -> str:
    """A sentence about an error; of an unforeseen one also where it was raised."""
    if isinstance(error, EvilspectraError):
        return str(error)
    if isinstance(error, MemoryError):
        return "memory ran out: take a smaller base, or set --model dtype=bfloat16"
    frames = traceback.extract_tb(error.__traceback__)
    location = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    kind = type(error).__name__
    return f"an unforeseen {kind}{location} stopped the measurement ({first_line(error)})"
