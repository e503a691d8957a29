"""Adapters seen through, as text: a table by projection with small charts, one by layer, and adapters beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from evilspectra.adapters.comparison import Comparison
from evilspectra.adapters.xray import ModuleXray, Xray, mean, names
from evilspectra.errors import listing
from evilspectra.text import printable

BARS = "▁▂▃▄▅▆▇█"
#: Characters of a spectrum, and of a row of layers, at most.
_SPECTRUM, _LAYERS = 16, 40
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
    """Values as bars between two bounds; what is not a number is a blank, and of more than `most` values neighbours are averaged.

    >>> bars([0.0, 0.5, 1.0, float("nan")]), bars([0, 0, 1, 1], most=2)
    ('▁▅█ ', '▁█')
    """
    if len(values) > most:
        values = [
            float(np.nanmean(part)) if not np.isnan(part).all() else np.nan
            for part in np.array_split(np.asarray(values, dtype=float), most)
        ]
    share = [(value - low) / ((high - low) or 1.0) for value in values]
    return "".join(
        " " if value != value else BARS[min(len(BARS) - 1, max(0, round(value * (len(BARS) - 1))))]
        for value in share
    )


def print_xray(found: Xray, layers: bool = False, console: Console | None = None) -> None:
    """One adapter: what it is, a row per projection, and a row per layer if asked."""
    console = _wide(console)
    _line(console, f"{printable(found.label, 200)}: {facts(found)}")
    by_layer = {
        layer: [module for module in found.modules if module.layer == layer]
        for layer in sorted({module.layer for module in found.modules if module.layer is not None})
    }
    ranks = [
        value for group in by_layer.values() if (value := mean(group)["stable_rank"]) is not None
    ]
    top = max(
        [
            value
            for name in projections(found)
            for layer in by_layer.values()
            if (
                value := mean([module for module in layer if module.projection == name])[
                    "stable_rank"
                ]
            )
            is not None
        ]
        + ranks,
        default=1.0,
    )
    table = _table(found, "projection")
    table.add_column("spectrum", no_wrap=True)
    if len(by_layer) > 1:
        table.add_column("stable rank by layer", no_wrap=True)
    for name in [*projections(found), *([None] if len(projections(found)) > 1 else [])]:
        group = [module for module in found.modules if name in (None, module.projection)]
        cells = [
            printable(name, 60) if name else "all",
            *_cells(group, found),
            bars(spectrum(group).tolist(), most=_SPECTRUM),
        ]
        if len(by_layer) > 1:
            cells.append(
                bars(
                    [
                        _rank([module for module in layer if name in (None, module.projection)])
                        for layer in by_layer.values()
                    ],
                    1.0,
                    top,
                    _LAYERS,
                )
            )
        table.add_row(*cells)
    console.print(table, crop=False)
    _line(
        console,
        "spectrum: mean of σᵢ/σ₁, largest first"
        + (
            f"; by layer: {min(by_layer)} to {max(by_layer)}, from 1 ({BARS[0]}) to {top:.2f} ({BARS[-1]})"
            if len(by_layer) > 1
            else ""
        ),
    )
    if layers and by_layer:
        _by_layer(found, by_layer, console)
    defined = sorted(
        (module for module in found.modules if module.stable_rank is not None),
        key=lambda module: module.stable_rank or 0,
    )
    if len(defined) > 1:
        _line(console, f"steepest: {_named(defined[:2])}; flattest: {_named(defined[:-3:-1])}")
    if besides := [module.against_base for module in found.modules if module.against_base]:
        one = besides[0]
        _line(
            console,
            f"intruders: of the {one.k} leading left singular vectors of W + ΔW, those with |cosine| < {one.threshold:g} to every one of W's (arXiv 2410.21228)",
        )
    for note in found.notes:
        _line(console, printable(note, 600))
    if found.skipped:
        _line(console, f"skipped: {printable(names(found.skipped), 1000)}")


def print_comparison(
    found: Sequence[Xray], comparisons: Sequence[Comparison], console: Console | None = None
) -> None:
    """Several adapters: form and size of their spectra, and for every two of them how far they change the same directions."""
    console = _wide(console)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", no_wrap=True)
    for heading in ("modules", *(heading for heading, _ in _COLUMNS.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("spectrum", no_wrap=True)
    for one in found:
        means = one.mean()
        table.add_row(
            _text(one.label),
            str(len(one.modules)),
            *(shown(means[name], form) for name, (_, form) in _COLUMNS.items()),
            bars(spectrum(one.modules).tolist(), most=_SPECTRUM),
        )
    console.print(table, crop=False)
    if not comparisons:
        _line(console, "no two of them adapt a module of the same name and shape")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
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
    console.print(table, crop=False)
    _line(
        console,
        f"overlap: mean cos² of the principal angles between the {max(pair.k for pair in comparisons)} leading singular directions: 1 the same, 0 orthogonal",
    )


def facts(found: Xray) -> str:
    """What an adapter is, in a line."""
    config = found.config
    ranks = sorted({module.rank for module in found.modules})
    numbers = sum(module.rank * sum(module.shape) for module in found.modules)
    kind = " ".join(
        name
        for name, on in (("DoRA", config.get("use_dora")), ("rsLoRA", config.get("use_rslora")))
        if on is True
    )
    init = config.get("init_lora_weights")
    parts = [
        f"{len(found.modules)} modules",
        f"rank {listing(ranks, 4)}",
        f"alpha {printable(str(config['lora_alpha']), 20)}" if "lora_alpha" in config else "",
        kind,
        printable(init, 40) if isinstance(init, str) else "",
        f"{numbers / 1e6:.1f} M numbers in {listing(sorted({module.dtype for module in found.modules}))}",
        f"base {printable(config['base_model_name_or_path'], 120)}"
        if isinstance(config.get("base_model_name_or_path"), str)
        else "",
        "BA only" if found.part == "BA only" else "",
    ]
    return ", ".join(part for part in parts if part)


def projections(found: Xray) -> list[str]:
    """The projections, in the order of the modules."""
    return list(dict.fromkeys(module.projection for module in found.modules))


def spectrum(modules: Sequence[ModuleXray]) -> np.ndarray:
    """Mean of σᵢ/σ₁ over modules whose update is not zero, i up to the largest rank among them; empty where there is none."""
    there = [
        module.singular_values / module.singular_values[0]
        for module in modules
        if module.frobenius > 0
    ]
    if not there:
        return np.zeros(0)
    total, count = np.zeros(max(map(len, there))), np.zeros(max(map(len, there)))
    for values in there:
        total[: len(values)] += values
        count[: len(values)] += 1
    return total / count


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _rank(modules: Sequence[ModuleXray]) -> float:
    found = mean(modules)["stable_rank"]
    return float("nan") if found is None else found


def _table(found: Xray, first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=True)
    headings = ["modules", *(heading for heading, _ in _COLUMNS.values())]
    if any(module.against_base for module in found.modules):
        headings += ["‖ΔW‖/\n‖W‖", "σ₁(ΔW)/\nσ₁(W)", "intruders\nper module"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(modules: Sequence[ModuleXray], found: Xray) -> list[str]:
    means = mean(modules)
    cells = [str(len(modules)), *(shown(means[name], form) for name, (_, form) in _COLUMNS.items())]
    if any(module.against_base for module in found.modules):
        besides = [module.against_base for module in modules if module.against_base]
        values: list[Callable[..., float]] = [
            lambda one: one.frobenius,
            lambda one: one.spectral,
            lambda one: one.intruders,
        ]
        cells += [
            format(float(np.mean([value(one) for one in besides])), form)
            for value, form in zip(values, (".3g", ".3g", ".1f"), strict=True)
        ]
    return cells


def _by_layer(found: Xray, by_layer: dict[int, list[ModuleXray]], console: Console) -> None:
    table = _table(found, "layer")
    table.add_column("spectrum", no_wrap=True)
    for layer, modules in by_layer.items():
        table.add_row(
            str(layer), *_cells(modules, found), bars(spectrum(modules).tolist(), most=_SPECTRUM)
        )
    console.print(table, crop=False)


def _named(modules: Sequence[ModuleXray]) -> str:
    return ", ".join(
        f"{printable(module.name, 120)} ({module.stable_rank:.2f})" for module in modules
    )


def _text(label: str) -> str:
    return printable(label, 60)


def _wide(console: Console | None) -> Console:
    console = console or Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, 132)  # a wrapped line is better than a cut number
    return console


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
