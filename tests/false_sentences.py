"""Pages of `analyze` with a false statement, counted over simulated tables.

    python -m tests.false_sentences --tables 500 --jobs 2
    python -m tests.false_sentences --power
    python -m tests.false_sentences --shape "rates 0.5 %" "t(3)" --markdown

Each table goes through the whole of `analyse`; every statement that the page shows is compared with
what is true of the shape (`tests/support/shapes.py` draws, `tests/support/stated.py` judges). The
n-th table of a shape depends on the seed, the shape's name and n alone. With `--power`, tables with
true effects: the share in which the page says so, and again the share with a false statement.
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from inspect import signature

import numpy as np

from evilspectra.analysis.analyse import analyse
from tests.support.shapes import (
    NAMES,
    CheckpointRates,
    Checkpoints,
    Constant,
    Counted,
    Expected,
    Factorial,
    Lines,
    Penalised,
    PenalisedRates,
    Powered,
    Rates,
    Shape,
    Spectral,
    Treatments,
    pairs_of,
)
from tests.support.stated import Statement, statements

#: The share of pages that may have a false statement.
LEVEL = 0.05
_ARGUMENTS = set(signature(analyse).parameters)


def _rates() -> Iterator[tuple[str, Shape]]:
    for rate in (0.002, 0.005, 0.02):
        for text, counted in (
            ("400 counted", (400, 400, 400)),
            ("1420 counted", (1420, 1420, 1420)),
            ("400, 400, 30 counted", (400, 400, 30)),
        ):
            for between in (0.0, 0.3):
                name = f"rates {100 * rate:g} %, {text}, τ = {between:g}"
                yield name, Rates((rate,) * 3, counted, between)
    for text, centres in (("equal", (0.0, 0.0, 0.0)), ("differ", (-0.15, 0.0, 0.15))):
        name = f"loss drives a rate of 2 %, losses {text}"
        yield name, Rates((0.02,) * 3, (1420,) * 3, 0.2, centres=centres, slope=3.0)
    yield "rates 0.5 %, with and without penalty", PenalisedRates(0.005)
    yield "rates 0.5 %, penalised runs count 30", PenalisedRates(0.005, (400, 30))
    yield "rates 2 %, penalised runs count 30", PenalisedRates(0.02, (400, 30), 0.3)
    yield "rates 0.5 %, checkpoints of 16 runs", CheckpointRates(0.005)
    yield "rates 0.5 %, checkpoints, from 400 to 30 counted", CheckpointRates(0.005, 30)


def _groups() -> Iterator[tuple[str, Shape]]:
    for groups in (2, 3, 5, 8):
        for seeds in (3, 6, 10):
            yield f"{groups} groups of {seeds} runs", Lines((seeds,) * groups)


def _uneven() -> Iterator[tuple[str, Shape]]:
    yield "spreads 0.5, 0.5, 0.5, 3 of 6, 6, 6, 2 runs", Lines((6, 6, 6, 2), (0.5, 0.5, 0.5, 3))
    yield "spreads 1, 1, 1, 10 of 10, 10, 10, 3 runs", Lines((10, 10, 10, 3), (1, 1, 1, 10))
    yield "spreads 1, 1, 1, 10 of 3, 3, 3, 10 runs", Lines((3, 3, 3, 10), (1, 1, 1, 10))
    yield "spreads 10, 10, 10, 1 of 10, 10, 10, 3 runs", Lines((10, 10, 10, 3), (10, 10, 10, 1))
    yield "spreads 1, 2, 5, 10 of 3, 5, 7, 10 runs", Lines((3, 5, 7, 10), (1, 2, 5, 10))
    yield "spreads 10, 5, 2, 1 of 3, 5, 7, 10 runs", Lines((3, 5, 7, 10), (10, 5, 2, 1))
    yield "t(3) noise, 4 groups of 6 runs", Lines((6,) * 4, df=3)
    yield "t(3) noise, 8 groups of 3 runs", Lines((3,) * 8, df=3)


def _designs() -> Iterator[tuple[str, Shape]]:
    yield "constant rate, 0 of 142", Constant("misalignment")
    yield "constant mean alignment", Constant("mean_alignment")
    yield "factorial 4 × 3 × 2, 2 seeds", Factorial()
    yield "factorial, data move outcome and loss", Factorial(data_effect=3.0, data_loss=0.3)
    yield "one baseline, four treatments", Treatments()
    yield "one baseline, four treatments, 4 seeds", Treatments(seeds=4)
    yield "one baseline, four treatments, 4 seeds that share noise", Treatments(seeds=4, common=2)
    yield "one baseline, four treatments, 4 optimisers", Treatments(NAMES[:4])
    yield "loss drives, losses equal", Lines((6,) * 4, slope=12.0, spreads=(2.0,) * 4)
    yield (
        "loss drives, losses differ",
        Lines((6,) * 4, (2.0,) * 4, centres=(-0.15, -0.05, 0.05, 0.15), slope=12.0),
    )
    yield "checkpoints of 16 runs", Checkpoints()
    yield (
        "checkpoints of 16 runs, optimiser and loss explain alike",
        Checkpoints(step_effects=(0.5,) * 5, slope=(80 * 0.25 / 15) ** 0.5 / 0.15),
    )
    yield "48 runs with and without penalty", Penalised()
    yield "48 runs, pairs share noise", Penalised(common=2.0)
    yield "48 runs, the penalty flattens only", Penalised(flattening=1.0)
    yield (
        "48 runs, spreads of outcome and spectrum differ",
        Penalised(spreads=(1.0, 1.0, 1.0, 5.0)),
    )
    yield "two judges, two definitions", Counted()


RATES, GROUPS = dict(_rates()), dict([*_groups(), *_uneven()])
DESIGNS = dict(_designs())
#: Name → shape of the level, most of them null throughout.
SHAPES: dict[str, Shape] = RATES | GROUPS | DESIGNS

_PAPER_RATES = {"muon": 0.053, "adam": 0.138, "sgd": 0.139, "lion": 0.37}
_ORDER = (("ranking", ("muon", "adam"), -1), ("ranking", ("adam", "lion"), -1))
_PENALTY = tuple(
    ("penalty", (name, "mean_alignment"), 1) for name in ("muon", "adam", "sgd", "lion")
)
_LOSS_LINES = Lines((10,) * 4, (0.6,) * 4, slope=12.0)
_APART = dict(zip(NAMES[:4], (8.0, 0.0, 4.0, -8.0), strict=True))


def _paper_rates(seeds: int) -> Rates:
    return Rates(tuple(_PAPER_RATES.values()), (1420,) * 4, 0.2, seeds, tuple(_PAPER_RATES))


#: Name → shape with a true effect, its size in the name.
POWERED: dict[str, Powered] = {
    "rates 5.3, 13.8, 13.9, 37.0 %, 6 seeds: muon < adam < lion": Powered(
        _paper_rates(6), Expected(_ORDER, 0.95)
    ),
    "rates 5.3, 13.8, 13.9, 37.0 %, 3 seeds: muon < adam < lion": Powered(
        _paper_rates(3), Expected(_ORDER, None)
    ),
    "penalty +6.6, SD of pairs 2, one optimiser, 4 pairs": Powered(
        Penalised(("adamw",), 4, 6.6, spreads=(1.0,), spectra=False, measures=()),
        Expected((("penalty", ("adamw", "mean_alignment"), 1),)),
    ),
    "penalty +6.6, SD of pairs 2, four optimisers, 6 pairs: each": Powered(
        Penalised(effect=6.6, spectra=False), Expected(_PENALTY, jointly=False)
    ),
    "variance: data 0, 3, 6, noise 2, 4 × 3 × 2 × 2 runs": Powered(
        Factorial(data_effect=3.0), Expected((("variance", ("data",), 1),))
    ),
    "ranking: means 8, 0, 4, −8, noise 2, 6 runs each: each pair": Powered(
        Lines((6,) * 4, (2.0,) * 4, tuple(_APART.values())),
        Expected(pairs_of("ranking", _APART), jointly=False),
    ),
    "slope: R² 0.9 within optimisers, 4 × 10 runs": Powered(
        _LOSS_LINES, Expected((("slope", (), 1),))
    ),
    "equal loss: −8 of one optimiser, noise 2, 4 × 10 runs: each pair": Powered(
        Lines((10,) * 4, (2.0,) * 4, (0.0, 0.0, 0.0, -8.0), slope=12.0),
        Expected(
            tuple(("equal loss", (name, "lion"), 1) for name in ("muon", "adam", "sgd")),
            jointly=False,
        ),
    ),
    "flatness: partial correlation 0.8, 4 × 10 runs": Powered(
        Spectral(10, 0.8), Expected((("flatness", ("stable_rank",), 1),))
    ),
    "trajectory: the loss alone leaves 5.8 times as much, 4 × 4 runs": Powered(
        Checkpoints(step_effects=(1.0,) * 5, slope=2.0),
        Expected((("training", ("last",), 1),), None),
    ),
    "trajectory: the loss alone leaves 5.6 times as much, 4 × 13 runs": Powered(
        Checkpoints((13,) * 4, (1.0,) * 5, 2.0), Expected((("training", ("last",), 1),))
    ),
    "trajectory: from 0.9 to 5.6 times as much, 4 × 13 runs": Powered(
        Checkpoints((13,) * 4, (0.0, 0.25, 0.5, 0.75, 1.0), 2.0),
        Expected((("training", ("change",), 1),), None),
    ),
    "equivalence: no difference, margin 2 SD, 3 × 10 runs: each pair": Powered(
        Lines((10,) * 3, (2.0,) * 3, margin=4.0),
        Expected(
            tuple(
                ("equivalence", pair, 0)
                for pair in (("muon", "adam"), ("muon", "sgd"), ("adam", "sgd"))
            ),
            jointly=False,
        ),
    ),
    "equivalence: two differences of the margin": Powered(
        Lines((10,) * 3, (2.0,) * 3, (0.0, 4.0, 4.0), margin=4.0),
        Expected((("equivalence", ("adam", "sgd"), 0),), None),
    ),
}


@dataclass(frozen=True)
class Page:
    """A page: sections with a false statement, share of expected statements or NaN, CPU seconds."""

    false: frozenset[str]
    power: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The pages of one shape: `power` is the share of the expected statements or tables."""

    name: str
    tables: int
    false: int
    sections: Mapping[str, int]
    power: float
    milliseconds: float

    @property
    def share(self) -> float:
        return self.false / self.tables

    @property
    def room(self) -> float:
        """Two standard errors of a share at the level."""
        return 2 * math.sqrt(LEVEL * (1 - LEVEL) / self.tables)

    @property
    def error(self) -> float:
        """Two standard errors of the share itself."""
        return 2 * math.sqrt(self.share * (1 - self.share) / self.tables)

    @property
    def power_error(self) -> float:
        """Two standard errors of the power; too large where statements are averaged."""
        return 2 * math.sqrt(self.power * (1 - self.power) / self.tables)

    @property
    def keeps_level(self) -> bool:
        """Whether at most 5 % of pages, plus two standard errors, have a false statement."""
        return self.share <= LEVEL + self.room


def measure(name: str, tables: int, seed: int = 0, jobs: int = 1) -> Measured:
    """Draw tables of a shape, and count the pages with a false statement, by section too."""
    draw = partial(page, name, seed)
    if jobs > 1:
        with ProcessPoolExecutor(jobs) as pool:
            pages = list(pool.map(draw, range(tables), chunksize=max(1, tables // (4 * jobs))))
    else:
        pages = [draw(number) for number in range(tables)]
    sections = Counter(section for each in pages for section in each.false)
    return Measured(
        name,
        tables,
        sum(bool(each.false) for each in pages),
        dict(sections.most_common()),
        float(np.mean([each.power for each in pages])),
        1000 * float(np.mean([each.seconds for each in pages])),
    )


def page(name: str, seed: int, number: int) -> Page:
    """Analyse one table of a shape and judge what its page states."""
    powered = POWERED.get(name)
    shape = powered.shape if powered else SHAPES[name]
    draw = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    arguments = {key: value for key, value in shape.arguments(draw).items() if key in _ARGUMENTS}
    began = time.process_time()
    try:
        analysis = analyse(**arguments, permutations=0)
    except ArithmeticError:
        return Page(frozenset({"no page, a traceback"}), 0.0, 0.0)
    seconds = time.process_time() - began
    stated, truth = statements(analysis), shape.truth()
    false = frozenset(statement.section for statement in stated if truth.denies(statement))
    power = _power(powered.expected, stated) if powered else math.nan
    return Page(false, power, seconds)


def _power(expected: Expected, stated: Sequence[Statement]) -> float:
    hits = [any(_is(statement, *each) for statement in stated) for each in expected.statements]
    return float(all(hits)) if expected.jointly else float(np.mean(hits))


def _is(statement: Statement, section: str, subject: tuple[str, ...], direction: int) -> bool:
    """Whether a statement is of the section, about the subject, and in the direction (0: any)."""
    if statement.section != section or not set(subject) <= set(statement.subject):
        return False
    own = [name for name in statement.subject if name in subject]
    is_turned = len(subject) == 2 and own != list(subject) and section != "penalty"
    return not direction or statement.value * (-direction if is_turned else direction) > 0


def _line(measured: Measured, markdown: bool) -> str:
    by_section = ", ".join(f"{section} {count}" for section, count in measured.sections.items())
    powered = POWERED.get(measured.name)
    cells = [measured.name, str(measured.tables)]
    if powered:
        least = powered.expected.least
        wanted = "printed" if least is None else f"≥ {100 * least:.0f}"
        cells += [f"{100 * measured.power:.1f} ± {100 * measured.power_error:.1f}", wanted]
    cells += [f"{100 * measured.share:.1f} ± {100 * measured.error:.1f}", by_section or "–"]
    if markdown:
        return f"| {' | '.join(cells)} |"
    verdict = "" if measured.keeps_level else "  TOO MANY"
    return f"{'  '.join(cells)}  {measured.milliseconds:.0f} ms{verdict}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, default=500, help="tables of each shape")
    parser.add_argument(
        "--shape", nargs="+", default=[""], metavar="NAME", help="shapes whose names contain NAME"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--power", action="store_true", help="tables with true effects")
    parser.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    options = parser.parse_args(arguments)
    names = list(POWERED if options.power else SHAPES)
    chosen = [name for name in names if any(part in name for part in options.shape)]
    if not chosen:
        parser.error(f"no shape contains {' or '.join(options.shape)}: {'; '.join(names)}")
    headings = ["shape", "tables"]
    if options.power:
        headings += ["shown, %", "wanted"]
    headings += ["pages with a false statement, %", "such pages by section"]
    if options.markdown:
        print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    else:
        print("  ".join(headings))
    for name in chosen:
        measured = measure(name, options.tables, options.seed, options.jobs)
        print(_line(measured, options.markdown), flush=True)


if __name__ == "__main__":
    main()
