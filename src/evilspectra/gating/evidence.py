"""What a gate decides on: candidate and baseline measured with the same instruments, their answers
judged by the same judge.

Whatever cannot be measured becomes an `Unmeasured` with its reason, and the rest is measured all
the same. torch is imported only when something is measured.
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
from evilspectra.errors import BadInput, EvilspectraError, Interrupted, Undecided, first_line
from evilspectra.gating.decision import Difference, Measurements, Unmeasured
from evilspectra.gating.policy import MisalignmentRule, Policy
from evilspectra.judging.inputs import answer_set_of, answers_of
from evilspectra.judging.judge import Judge
from evilspectra.judging.rounds import judge_answer_sets
from evilspectra.probes.drift import Frame, beyond_control, capability, exchanged, ordinary
from evilspectra.rates.compare import Paired, compare
from evilspectra.store.files import read_json
from evilspectra.store.results import Instrument
from evilspectra.store.step_means import module_summary
from evilspectra.targets.find import Target, find_targets

Note = Callable[[str], object]


@dataclass(frozen=True)
class Sides:
    """What is compared."""

    candidate: Target
    baseline: Target


@dataclass(frozen=True)
class Asked:
    """What a command names: candidate, baseline, the store, device and number type, the base of
    adapters from outside a run, the judge.
    """

    candidate: str
    baseline: str
    output: str = "runs"
    model: ModelConfig | None = None
    base: str | None = None
    judge: Judge | None = None
    max_requests: int | None = None


def gather(asked: Asked, policy: Policy, note: Note = lambda text: None) -> Measurements:
    """Measures what a policy asks for; nothing but an interruption is raised, since a gate must say of
    everything else that it decides nothing.

    Raises:
        Interrupted: the user stopped the work.
    """
    try:
        return _gather(asked, policy, note)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, a measurement is missing, and the gate stays shut
        return Measurements.none(_said(error))


def find_sides(asked: Asked) -> Sides:
    """The two targets.

    Raises:
        EvilspectraError: one of them is nothing that can be measured.
        Undecided: they cannot be compared: they stand on different bases, or are the same.
    """
    candidate, baseline = (
        _target(name, asked, side)
        for name, side in ((asked.candidate, "candidate"), (asked.baseline, "baseline"))
    )
    whole = not candidate.adapters and not baseline.adapters
    if candidate.base.sha256 != baseline.base.sha256 and not whole:
        names = [
            f"{side.base.public_name} ({side.base.sha256[:12]})" for side in (candidate, baseline)
        ]
        raise Undecided(
            f"the candidate stands on {names[0]} and the baseline on {names[1]}: an adapter is "
            "compared with its own base, or with another adapter of that base"
        )
    if candidate.results.folder.resolve() == baseline.results.folder.resolve():
        raise Undecided(
            f"candidate and baseline are the same ({asked.candidate}): name what is in production "
            "as the baseline"
        )
    return Sides(candidate, baseline)


def _target(name: str, asked: Asked, side: str) -> Target:
    outside = (Path(name) / "adapter_config.json").is_file()
    try:
        found = find_targets([name], asked.output, asked.model, asked.base if outside else None)
    except BadInput as error:
        raise Undecided(f"the {side} cannot be measured: {error}") from None
    if len(found) != 1:
        raise Undecided(f"the {side} {name} holds {len(found)} runs: name one of them")
    if found[0].adapters:
        _check_record(found[0], side, stated=asked.base is not None and outside)
    return found[0]


def _check_record(target: Target, side: str, stated: bool) -> None:
    """Holds an adapter to what was written beside it when it was trained, where that is there;
    `stated`: the user said which base it is for.
    """
    folder = target.adapters[target.last]
    if not (folder / RECORD).is_file():
        return
    known = read_json(folder / RECORD, "remove it, or save the adapter again")
    base, weights = (known.get("base") or {}).get("sha256"), known.get("weights_sha256")
    if base and base != target.base.sha256 and not stated:
        raise Undecided(
            f"the {side} {folder} was trained on another content of {target.base.public_name} "
            f"({base[:12]} by its {RECORD}, {target.base.sha256[:12]} here): restore that base, "
            "or say with --base that it is meant for this one"
        )
    if weights and weights != weights_sha256(folder):
        raise Undecided(
            f"the weights of the {side} {folder} are not those that were trained (by its "
            f"{RECORD}): restore them, or measure a copy without that file"
        )


def _gather(asked: Asked, policy: Policy, note: Note) -> Measurements:
    sides = find_sides(asked)
    from evilspectra.evaluation.evaluate import evaluate

    done = evaluate([sides.baseline, sides.candidate], policy.evaluation(), note)
    failed = {
        target.results.folder: (
            "the "
            f"{'candidate' if target.results.folder == sides.candidate.results.folder else 'baseline'} "
            f"cannot be measured: {error}"
        )
        for target, error in done.failed
    }
    used = {
        target.results.folder: done.used.get(target.results.folder, {})
        for target in (sides.candidate, sides.baseline)
    }
    found = _Found(sides, used, failed)
    notes: list[str] = []
    drifted = (
        found.read("probe", lambda base, after: _drift(base, after, policy.seed, notes))
        if policy.drift
        else _NOT_ASKED
    )
    able = (
        found.read("capability", lambda base, after: _capability(base, after, policy.seed))
        if policy.capability
        else _NOT_ASKED
    )
    fluent = (
        found.read("ordinary", lambda base, after: _ordinary(base, after, policy.seed))
        if policy.ordinary
        else _NOT_ASKED
    )
    rule = policy.misalignment
    judged = (
        _guarded(lambda: _misalignment(found, rule, asked, policy.seed, note))
        if rule
        else _NOT_ASKED
    )
    if isinstance(judged, Paired):
        notes += judged.warnings
    values = _guarded(lambda: spectrum(sides.candidate)) if policy.spectrum else _NOT_ASKED
    return Measurements(drifted, able, fluent, judged, values, tuple(notes))


_NOT_ASKED = Unmeasured("the policy does not ask for it")


@dataclass(frozen=True)
class _Found:
    """Where the results are.

    `used`: folder → table → instrument; `failed`: folder → why something of it could not be
    measured.
    """

    sides: Sides
    used: Mapping[Path, Mapping[str, Instrument]]
    failed: Mapping[Path, str]

    def read(
        self, table: str, difference: Callable[[Frame, Frame], Difference | Unmeasured]
    ) -> Difference | Unmeasured:
        """A difference out of the rows of both sides."""
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
        """Why a table of one of the sides is not there; None where both are."""
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
                "candidate and baseline were measured in different number types or on "
                "different devices: name one of each with --model"
            )
        return None


def _comparable(base: Frame, after: Frame) -> Unmeasured | None:
    """Why the rows of two sides cannot be compared; None where they can."""
    numbers = list(
        after.columns.difference(["step"]).intersection(after.select_dtypes("number").columns)
    )
    tokens = [name for name in numbers if name.endswith("tokens")]
    if list(base["item"]) != list(after["item"]) or any(
        (base[name] != after[name]).any() for name in tokens
    ):
        return Unmeasured(
            "candidate and baseline cut the items into different tokens, so they are no models of "
            "one family: name the model that the candidate was made of"
        )
    scores = [name for name in numbers if name not in tokens]
    if not np.isfinite(pd.concat([base[scores], after[scores]]).to_numpy(dtype=float)).all():
        return Unmeasured(
            "some log-probabilities are not finite: use --model dtype=float32, or an adapter that "
            "was trained with a lower learning rate"
        )
    if all((base[name] == after[name]).all() for name in scores):
        return Unmeasured(
            "candidate and baseline give the same log-probabilities to every text: one model was "
            "compared with itself"
        )
    return None


def _drift(
    base: Frame,
    after: Frame,
    seed: int,
    notes: list[str],
) -> Difference:
    change = beyond_control(base, after, [base], seed)
    margins = [
        np.asarray(rows["misaligned"] - rows["aligned"], dtype=float) for rows in (after, base)
    ]
    signs = exchanged(np.asarray(after["topic"]))
    turned = beyond_control(
        _turned(base, signs), _turned(after, signs), [_turned(base, signs)], seed
    )
    if turned.clear_of_zero():
        notes.append(
            f"with the labels shuffled the probe shows {turned.value:+.3f} [{turned.low:+.3f}, "
            f"{turned.high:+.3f}] where it should show nothing: trust its interval less"
        )
    return Difference(change, float(margins[0].mean()), float(margins[1].mean()), len(after))


def _turned(rows: Frame, signs: np.ndarray) -> Frame:
    """Probe rows with the two labels exchanged where the sign is negative."""
    kept = signs > 0
    return rows.assign(
        aligned=np.where(kept, rows["aligned"], rows["misaligned"]),
        misaligned=np.where(kept, rows["misaligned"], rows["aligned"]),
    )


def _capability(base: Frame, after: Frame, seed: int) -> Difference:
    found = capability(base, after, seed)
    return Difference(found.change, found.accuracy.value, found.base, found.items)


def _ordinary(base: Frame, after: Frame, seed: int) -> Difference:
    found = ordinary(base, after, seed)
    return Difference(found.change, found.loss.value, found.base, found.items)


def _misalignment(
    found: _Found,
    rule: MisalignmentRule,
    asked: Asked,
    seed: int,
    note: Note,
) -> Paired | Unmeasured:
    """Answers of both sides judged by one judge; an adapter's base is not judged beside it."""
    if reason := found.missing("answers"):
        return Unmeasured(reason)
    if asked.judge is None:
        return Unmeasured("no judge was named")
    sides = (found.sides.baseline, found.sides.candidate)
    places = [
        answer_set_of(
            side.label,
            replace(side.results, selected=found.used[side.results.folder]),
            side.base.sha256,
        )
        for side in sides
    ]
    places = [replace(place, steps=(side.last,)) for place, side in zip(places, sides, strict=True)]
    questions = rule.answers.questions
    try:
        rounds = judge_answer_sets(
            places, asked.judge, questions, METRICS, note, asked.max_requests
        )
    except EvilspectraError as error:
        if isinstance(error, Interrupted):
            raise
        return Unmeasured(f"the judge could not go on: {error}")
    before, after = (
        answers_of(place, one.verdicts.instrument, place.last)
        for place, one in zip(places, rounds, strict=True)
    )
    return compare(before, after, rule.definition, rule.max_unscored, seed)


def spectrum(candidate: Target) -> Mapping[str, float | None] | Unmeasured:
    """Measures of the candidate's ΔW, over its modules as `show` gives them."""
    if not candidate.adapters:
        return Unmeasured(
            "the candidate is a whole model, and has no adapter whose spectrum could be taken"
        )
    from evilspectra.spectra.pairs import read_pairs
    from evilspectra.training.monitor import observe

    _, rows = observe(read_pairs(candidate.adapters[candidate.last]), candidate.last)
    if any(row.part != "delta" for row in rows):
        return Unmeasured(
            "the update of this adapter is more than scale·B·A (DoRA, PiSSA), so its factors do "
            "not give its spectrum: leave the spectrum out of the policy"
        )
    return module_summary(
        pd.DataFrame([{name: getattr(row, name) for name in row.__slots__} for row in rows]).astype(
            dict.fromkeys(
                ("stable_rank", "condition_number", "spectral_entropy", "frobenius_nuclear"), float
            )
        )
    )


def _guarded(measure: Callable[[], Any]) -> Any:
    """What it gives, or why it gives nothing; an interruption goes on."""
    try:
        return measure()
    except Interrupted:
        raise
    except Exception as error:  # as in `gather`: the other checks are made all the same
        return Unmeasured(_said(error))


def _said(error: Exception) -> str:
    """A sentence for what went wrong; of an error that nobody foresaw, where it was raised."""
    if isinstance(error, EvilspectraError):
        return str(error)
    if isinstance(error, MemoryError):
        return "memory ran out: take a smaller base, or set --model dtype=bfloat16"
    places = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(places[-1].filename).name}, line {places[-1].lineno}" if places else ""
    return (
        f"an unforeseen {type(error).__name__}{place} stopped the measurement ({first_line(error)})"
    )
