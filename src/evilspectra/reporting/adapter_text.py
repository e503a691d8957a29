"""Spectra of adapters as text: tables by projection and by layer, and adapters side by side.

Spectra are drawn as small bar charts. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from evilspectra.adapters.comparison import Comparison
from evilspectra.adapters.xray import ModuleXray, Xray, mean, names
from evilspectra.errors import listing
from evilspectra.numbers import number
from evilspectra.terminal import plain_table, print_line, print_table, wide_console
from evilspectra.text import printable

BARS = "▁▂▃▄▅▆▇█"
#: Characters of a spectrum, and of a row of layers, at most.
_SPECTRUM, _LAYERS = 16, 40
_WIDTH = 132
_COLUMNS = {
    "frobenius": ("‖ΔW‖", ".3g"),
    "stable_rank": ("stable\nrank", ".2f"),
    "spectral_entropy": ("entropy", ".2f"),
    "condition_number": ("condition\n(median)", ".3g"),
    "frobenius_nuclear": ("Frob./\nnuclear", ".3f"),
}


def bars(
    values: Sequence[float],
    low: float = 0.0,
    high: float = 1.0,
    most: int = 64,
) -> str:
    """Values as bars between two bounds; a value that is not a number is a blank.

    Of more than `most` values, neighbours are averaged.

    >>> bars([0.0, 0.5, 1.0, float("nan")]), bars([0, 0, 1, 1], most=2)
    ('▁▅█ ', '▁█')
    """
    if len(values) > most:
        values = [
            float(np.nanmean(part)) if not np.isnan(part).all() else np.nan
            for part in np.array_split(np.asarray(values, dtype=float), most)
        ]
    return "".join(_bar((value - low) / ((high - low) or 1.0)) for value in values)


def _bar(share: float) -> str:
    if math.isnan(share):
        return " "
    highest = len(BARS) - 1
    return BARS[min(highest, max(0, round(share * highest)))]


def print_xray(xray: Xray, layers: bool = False, console: Console | None = None) -> None:
    """One adapter: its facts, a row per projection, and a row per layer if asked."""
    console = wide_console(console, _WIDTH)
    print_line(console, f"{printable(xray.label, 200)}: {facts(xray)}")
    by_layer = {
        layer: [module for module in xray.modules if module.layer == layer]
        for layer in sorted({module.layer for module in xray.modules if module.layer is not None})
    }
    groups = {
        name: [_of(name, modules) for modules in by_layer.values()] for name in _rows_of(xray)
    }
    ranks = {name: [_rank(modules) for modules in layers] for name, layers in groups.items()}
    of_projections = [ranks[name] for name in projections(xray)]
    of_layers = [_rank(modules) for modules in by_layer.values()]
    top = _largest([rank for row in (*of_projections, of_layers) for rank in row])
    table = _table(xray, "projection")
    table.add_column("spectrum", no_wrap=True)
    if len(by_layer) > 1:
        table.add_column("stable rank by layer", no_wrap=True)
    for name, ranks_by_layer in ranks.items():
        modules = _of(name, xray.modules)
        cells = [
            printable(name, 60) if name else "all",
            *_cells(modules, xray),
            bars(spectrum(modules).tolist(), most=_SPECTRUM),
        ]
        if len(by_layer) > 1:
            cells.append(bars(ranks_by_layer, 1.0, top, _LAYERS))
        table.add_row(*cells)
    print_table(console, table)
    legend = "spectrum: mean of σᵢ/σ₁, largest first"
    if len(by_layer) > 1:
        legend += (
            f"; by layer: {min(by_layer)} to {max(by_layer)}, from 1 ({BARS[0]}) to {top:.2f}"
            f" ({BARS[-1]})"
        )
    print_line(console, legend)
    if layers and by_layer:
        _by_layer(xray, by_layer, console)
    defined = sorted(
        (module for module in xray.modules if module.stable_rank is not None),
        key=lambda module: module.stable_rank or 0,
    )
    if len(defined) > 1:
        print_line(console, f"steepest: {_named(defined[:2])}; flattest: {_named(defined[:-3:-1])}")
    if besides := [module.against_base for module in xray.modules if module.against_base]:
        against_base = besides[0]
        print_line(
            console,
            f"intruders: of the {against_base.k} leading left singular vectors of W + ΔW, those"
            f" with |cosine| < {against_base.threshold:g} to every one of W's (arXiv 2410.21228)",
        )
    for note in xray.notes:
        print_line(console, printable(note, 600))
    if xray.skipped:
        print_line(console, f"skipped: {printable(names(xray.skipped), 1000)}")


def _rows_of(xray: Xray) -> list[str | None]:
    """The projections, and None for all of them together where there are several."""
    names = projections(xray)
    return [*names, None] if len(names) > 1 else [*names]


def _of(projection: str | None, modules: Sequence[ModuleXray]) -> list[ModuleXray]:
    """The modules of a projection, or all of them."""
    return [module for module in modules if projection in (None, module.projection)]


def _largest(ranks: Sequence[float]) -> float:
    return max((rank for rank in ranks if not math.isnan(rank)), default=1.0)


def print_comparison(
    xrays: Sequence[Xray],
    comparisons: Sequence[Comparison],
    console: Console | None = None,
) -> None:
    """Several adapters: their spectra, and how far every two of them change the same directions."""
    console = wide_console(console, _WIDTH)
    table = plain_table()
    table.add_column("adapter", no_wrap=True)
    for heading in ("modules", *(heading for heading, _ in _COLUMNS.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("spectrum", no_wrap=True)
    for xray in xrays:
        means = xray.mean()
        table.add_row(
            _text(xray.label),
            str(len(xray.modules)),
            *(number(means[name], form) for name, (_, form) in _COLUMNS.items()),
            bars(spectrum(xray.modules).tolist(), most=_SPECTRUM),
        )
    print_table(console, table)
    if not comparisons:
        print_line(console, "no two of them change a module of the same name and shape")
        return
    table = plain_table()
    for heading in ("adapter", "and"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "common\nmodules",
        "overlap\noutput side",
        "overlap\ninput side",
        "by\nchance",
        "cosine\nof ΔW",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in comparisons:
        table.add_row(
            _text(pair.first),
            _text(pair.second),
            str(pair.modules),
            f"{pair.output:.3f}",
            f"{pair.input:.3f}",
            f"{min(pair.chance):.3f}–{max(pair.chance):.3f}",
            f"{pair.cosine:+.3f}",
        )
    print_table(console, table)
    directions = max(pair.k for pair in comparisons)
    print_line(
        console,
        f"overlap: mean cos² of the principal angles between the {directions} leading singular"
        " directions: 1 the same, 0 orthogonal",
    )


def facts(xray: Xray) -> str:
    """An adapter's size, rank, kind and base, in a line."""
    config = xray.config
    ranks = sorted({module.rank for module in xray.modules})
    numbers = sum(module.rank * sum(module.shape) for module in xray.modules)
    kind = " ".join(
        name
        for name, on in (("DoRA", config.get("use_dora")), ("rsLoRA", config.get("use_rslora")))
        if on is True
    )
    dtypes = listing(sorted({module.dtype for module in xray.modules}))
    init = config.get("init_lora_weights")
    base = config.get("base_model_name_or_path")
    parts = [
        f"{len(xray.modules)} modules",
        f"rank {listing(ranks, 4)}",
        f"alpha {printable(str(config['lora_alpha']), 20)}" if "lora_alpha" in config else "",
        kind,
        printable(init, 40) if isinstance(init, str) else "",
        f"{_amount(numbers)} numbers in {dtypes}",
        f"base {printable(base, 120)}" if isinstance(base, str) else "",
        "BA only" if xray.part == "BA only" else "",
    ]
    return ", ".join(part for part in parts if part)


def projections(xray: Xray) -> list[str]:
    """The projections, in the order of the modules."""
    return list(dict.fromkeys(module.projection for module in xray.modules))


def spectrum(modules: Sequence[ModuleXray]) -> np.ndarray:
    """Mean of σᵢ/σ₁ over modules whose update is not zero, i up to the largest rank among them.

    Empty where there is no such module.
    """
    relative = [
        module.singular_values / module.singular_values[0]
        for module in modules
        if module.frobenius > 0
    ]
    if not relative:
        return np.zeros(0)
    longest = max(map(len, relative))
    total, count = np.zeros(longest), np.zeros(longest)
    for values in relative:
        total[: len(values)] += values
        count[: len(values)] += 1
    return total / count


def _amount(numbers: int) -> str:
    """How many numbers, in thousands or millions.

    >>> _amount(4_884_480), _amount(12_800), _amount(640)
    ('4.9 M', '12.8 k', '640')
    """
    if numbers < 1000:
        return str(numbers)
    return f"{numbers / 1e6:.1f} M" if numbers >= 100_000 else f"{numbers / 1e3:.1f} k"


def _rank(modules: Sequence[ModuleXray]) -> float:
    rank = mean(modules)["stable_rank"]
    return float("nan") if rank is None else rank


def _table(xray: Xray, first: str) -> Table:
    """An empty table with a first column and those of `_cells`."""
    table = plain_table()
    table.add_column(first, no_wrap=True)
    headings = ["modules", *(heading for heading, _ in _COLUMNS.values())]
    if any(module.against_base for module in xray.modules):
        headings += ["‖ΔW‖/\n‖W‖", "σ₁(ΔW)/\nσ₁(W)", "intruders\nper module"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(modules: Sequence[ModuleXray], xray: Xray) -> list[str]:
    means = mean(modules)
    cells = [
        str(len(modules)),
        *(number(means[name], form) for name, (_, form) in _COLUMNS.items()),
    ]
    if any(module.against_base for module in xray.modules):
        besides = [module.against_base for module in modules if module.against_base]
        for name, form in (("frobenius", ".3g"), ("spectral", ".3g"), ("intruders", ".1f")):
            values = [getattr(against_base, name) for against_base in besides]
            cells.append(format(float(np.mean(values)), form))
    return cells


def _by_layer(xray: Xray, by_layer: dict[int, list[ModuleXray]], console: Console) -> None:
    table = _table(xray, "layer")
    table.add_column("spectrum", no_wrap=True)
    for layer, modules in by_layer.items():
        table.add_row(
            str(layer), *_cells(modules, xray), bars(spectrum(modules).tolist(), most=_SPECTRUM)
        )
    print_table(console, table)


def _named(modules: Sequence[ModuleXray]) -> str:
    return ", ".join(
        f"{printable(module.name, 120)} ({module.stable_rank:.2f})" for module in modules
    )


def _text(label: str) -> str:
    return printable(label, 60)
