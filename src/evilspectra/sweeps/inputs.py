"""The inputs of a sweep that are available here: data and bases. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.sections import Config
from evilspectra.data.batches import Batches, heldout_count
from evilspectra.data.published import SETS
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput
from evilspectra.model import base as bases
from evilspectra.probes.items import ORDINARY
from evilspectra.probes.probe import probes
from evilspectra.store.run import RunFolder
from evilspectra.sweeps.forecast import JudgeForecast
from evilspectra.training.identity import Source, folder_of, read_source

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """Something that the runs need and that is not here, or cannot be used.

    `what`: data, model, questions, items or key; `runs`: how many need it.
    """

    what: str
    name: str
    why: str
    runs: int


class Inputs:
    """Data and bases, each looked up once: its content, or the reason why it is not here."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, str | None], str | BadInput] = {}
        self._sources: dict[tuple[Any, ...], Source | BadInput] = {}
        self._needed: dict[tuple[str, str], int] = {}

    def run_folder(self, config: Config) -> tuple[RunFolder, tuple[str, ...]]:
        """The run's directory, and what is in its id by name instead of content."""
        by_name, hashes = [], []
        for what, name in (("data", config.data.train), ("heldout", config.data.heldout)):
            if name is None:
                continue
            source = self._source(config, name)
            if isinstance(source, BadInput):
                hashes.append(_name_hash(name))
                by_name.append(what)
                self._count("data", name)
            else:
                hashes.append(source.sha256)
        if isinstance(self._base(config), BadInput):
            self._count("model", _model_name(config))
            by_name.append("model")
        return folder_of(config, self.hash_of_base(config), *hashes), tuple(by_name)

    def hash_of_base(self, config: Config) -> str:
        """The hash of the base's content, or of its name where it is not here."""
        content = self._base(config)
        return _name_hash(_model_name(config)) if isinstance(content, BadInput) else content

    def source(self, config: Config, name: str) -> Source | None:
        """The data source of that name; None if it is not here."""
        source = self._source(config, name)
        return None if isinstance(source, BadInput) else source

    def batches(self, config: Config) -> Batches | None:
        """The batches of a run; None if the number of rows is not known, or less than a batch.

        That of a published data set is always known.
        """
        rows = self._rows(config)
        if rows is None:
            return None
        if config.data.heldout is None:
            rows -= heldout_count(rows, config.data.heldout_share)
        train = config.train
        if rows < train.batch_size:
            return None
        return Batches(rows, train.batch_size, train.seed, train.epochs, train.steps)

    def _rows(self, config: Config) -> int | None:
        source = self.source(config, config.data.train)
        if source:
            return source.rows
        return SETS[config.data.train].rows if config.data.train in SETS else None

    def missing(self) -> list[Missing]:
        """Everything that was looked up and is not here, in the order in which runs need it."""
        errors = {("model", _spelled(*key)): base for key, base in self._bases.items()} | {
            ("data", key[0]): source for key, source in self._sources.items()
        }
        return [
            Missing(what, name, str(errors[what, name]), count)
            for (what, name), count in self._needed.items()
        ]

    def _count(self, what: str, name: str) -> None:
        self._needed[what, name] = self._needed.get((what, name), 0) + 1

    def _base(self, config: Config) -> str | BadInput:
        key = (config.model.base, config.model.revision)
        if key not in self._bases:
            offline = config.model.model_copy(update={"local_files_only": True})
            self._bases[key] = _or_error(lambda: bases.resolve(offline).sha256)
        return self._bases[key]

    def _source(self, config: Config, source: str) -> Source | BadInput:
        key = (source, config.data.split, config.data.on_bad_row)
        if key not in self._sources:
            offline = config.model_copy(
                update={"data": config.data.model_copy(update={"local_files_only": True})}
            )
            self._sources[key] = _or_error(lambda: read_source(offline, source))
        return self._sources[key]


def _or_error(find: Callable[[], T]) -> T | BadInput:
    """The value that a function returns, or the BadInput that it raises."""
    try:
        return find()
    except BadInput as error:
        return error


def _name_hash(name: str) -> str:
    """A stand-in for the hash of a content that is not here, different for each name."""
    return "by name: " + hashlib.sha256(name.encode()).hexdigest()


def _model_name(config: Config) -> str:
    return _spelled(config.model.base, config.model.revision)


def _spelled(base: str, revision: str | None) -> str:
    return base if revision is None else f"{base}@{revision}"


def missing_items(
    evaluation: Evaluation | None,
    judging: JudgeForecast,
    runs: int,
) -> list[Missing]:
    """Items, questions and the judge's key that measuring needs and that are not here."""
    missing = [Missing(what, name, why, runs) for what, name, why in judging.missing]
    if evaluation is None:
        return missing
    tables = ("contrast", "capability")
    for table in tables:
        alone = {other: None for other in (*tables, "ordinary") if other != table}
        error = _or_error(lambda alone=alone: probes(evaluation.model_copy(update=alone), {}))
        if isinstance(error, BadInput):
            missing.append(Missing("items", str(getattr(evaluation, table)), str(error), runs))
    if evaluation.ordinary is not None and evaluation.ordinary not in ORDINARY:
        error = _or_error(lambda: read_rows(str(evaluation.ordinary), local_files_only=True))
        if isinstance(error, BadInput):
            missing.append(Missing("items", str(evaluation.ordinary), str(error), runs))
    return missing
