"""Spectra of adapters, and flattening: `spectrum` and `flatten`. No torch without a base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, get_args

from evilspectra.adapters.comparison import Comparison, compare, distinct
from evilspectra.adapters.flatten import Flattened as _Flattened
from evilspectra.adapters.flatten import Keep, Kind
from evilspectra.adapters.flatten import flatten as _flatten
from evilspectra.adapters.output import as_json, rows
from evilspectra.adapters.xray import Xray, xray
from evilspectra.api.arguments import (
    PathLike,
    choice,
    file,
    name,
    names,
    optional_name,
    real_number,
    share,
    silent,
    whole_number,
)
from evilspectra.api.result import Result
from evilspectra.errors import BadInput, packages_explained
from evilspectra.numbers import number
from evilspectra.targets.adapters import find_adapters

if TYPE_CHECKING:
    import altair

#: Number type of the written factors → its name in safetensors files.
DTYPES: dict[str, Kind] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@dataclass(frozen=True, repr=False)
class Spectrum(Result):
    """The spectra of every update of one adapter, or of several with their comparisons.

    `adapters`: an `Xray` each, with label, folder, config, modules (their singular values and
    measures), `mean()` over modules, skipped tensors and notes; in the order given.
    `comparisons`: of every two of them that adapt a module of the same name and shape.
    """

    adapters: tuple[Xray, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def headline(self) -> str:
        return "; ".join(_sentence(adapter) for adapter in self.adapters)

    @property
    def details(self) -> tuple[str, ...]:
        """The notes on each adapter."""
        return tuple(
            f"{adapter.label}: {note}" for adapter in self.adapters for note in adapter.notes
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row per module: adapter, module, shape, measures, and the singular values as a list."""
        modules = [module for adapter in self.adapters for module in adapter.modules]
        return [
            {**row, "singular_values": module.singular_values.tolist()}
            for row, module in zip(rows(self.adapters), modules, strict=True)
        ]

    def flat(self) -> list[dict[str, Any]]:
        """An object per adapter in JSON's types, as `evilspectra spectrum --json` prints them."""
        return [as_json(adapter, self.comparisons) for adapter in self.adapters]

    def text(self, layers: bool = False) -> str:
        """The tables that `evilspectra spectrum` prints; `layers`: also by layer."""
        from rich.console import Console

        from evilspectra.reporting.adapter_text import print_comparison, print_xray

        console = Console(file=StringIO(), width=132, color_system=None, force_terminal=False)
        for position, adapter in enumerate(self.adapters):
            if position:
                console.print()
            print_xray(adapter, layers, console)
        if len(self.adapters) > 1:
            console.print()
            print_comparison(self.adapters, self.comparisons, console)
        return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]

    @packages_explained()
    def write_page(self, path: PathLike) -> None:
        """Writes one self-contained HTML page, whole or not at all.

        Raises:
            EvilspectraError: it cannot be written.
        """
        from evilspectra.reporting.adapter_page import write_page

        write_page(self.adapters, self.comparisons, file(path, "path"))

    @packages_explained()
    def figure(self) -> altair.Chart | altair.FacetChart:
        """Mean of σᵢ/σ₁ over the modules of each projection, by index; a panel per adapter."""
        import altair

        from evilspectra.reporting.adapter_text import projections, spectrum

        values = []
        for adapter in self.adapters:
            for projection in projections(adapter):
                modules = [m for m in adapter.modules if m.projection == projection]
                values += [
                    {"adapter": adapter.label, "projection": projection, "index": i, "relative": v}
                    for i, v in enumerate(spectrum(modules).tolist(), start=1)
                ]
        chart = (
            altair.Chart(altair.InlineData(values))
            .mark_line(point=True)
            .encode(
                x=altair.X("index:Q").title("index i").axis(format="d"),
                y=altair.Y("relative:Q").title("σᵢ/σ₁, mean over modules").scale(domain=[0, 1]),
                color=altair.Color("projection:N"),
                tooltip=["adapter:N", "projection:N", "index:Q", "relative:Q"],
            )
        )
        return chart if len(self.adapters) == 1 else chart.facet("adapter:N", columns=2)

    def __str__(self) -> str:
        return self.text()


def _sentence(adapter: Xray) -> str:
    from evilspectra.reporting.adapter_text import facts

    rank = number(adapter.mean()["stable_rank"], ".2f")
    return f"{adapter.label}: {facts(adapter)}, mean stable rank {rank}"


@dataclass(frozen=True, repr=False)
class Flattened(Result, _Flattened):
    """A flattened adapter, written to `folder`, and the settings used.

    `norm_error`: largest relative difference of a module's kept norm, read back from the files;
    `stable_rank_before`, `stable_rank_after`: means over modules; `unchanged`: the tensors that
    were copied.
    """

    @property
    def headline(self) -> str:
        ranks = f"{self.stable_rank_before:.2f} → {self.stable_rank_after:.2f}"
        norm = "kept" if self.scale == 1 else f"{self.scale:g} times the original's,"
        return (
            f"{self.folder}: {self.modules} modules, mean stable rank {ranks}, "
            f"{self.keep} norm {norm} to {self.norm_error:.0e}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row: the adapter written."""
        return [{**self.flat(), "unchanged": len(self.unchanged)}]

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra flatten --json` prints it."""
        return {**asdict(self), "folder": str(self.folder), "unchanged": list(self.unchanged)}


@packages_explained()
def spectrum(
    adapters: PathLike | Sequence[PathLike],
    *,
    base: PathLike | None = None,
    initial: PathLike | None = None,
    leading: int = 10,
    threshold: float = 0.5,
    directions: int = 8,
    output: PathLike = "runs",
    revision: str | None = None,
    local_files_only: bool = False,
    note: Callable[[str], object] | None = None,
) -> Spectrum:
    """Computes the singular values of every update ΔW of LoRA adapters, exact, in seconds.

    Neither a GPU nor a base model is needed, and no code of the adapters is run.

    Args:
        adapters: one or several: the folder of a PEFT adapter, its .safetensors file, a run (folder
            or id), a folder of runs, or owner/model on the hub.
        base: the base model; adds ‖ΔW‖/‖W‖ and intruder dimensions (arXiv 2410.21228), and the
            whole ΔW of DoRA. It takes a dense SVD per module.
        initial: the same adapter before training, where PiSSA, OLoRA or their like took a part out
            of the base: gives ΔW. For a single adapter.
        leading: with a base: how many leading directions of W + ΔW are examined.
        threshold: with a base: |cosine| below which a direction is an intruder.
        directions: with several adapters: how many leading directions are compared.
        output: the store to look runs up in.
        revision: branch, tag or commit of an adapter on the hub.
        local_files_only: ask the hub for nothing.
        note: takes a line of progress; None: silent.

    Raises:
        BadInput: a name that means no adapter, files that cannot be used, a factor that is not
            finite, or an option out of bounds.

    Source: Evil Spectra (arXiv 2606.31591), its spectral measures.

        spectra = es.spectrum("my-adapter")
        print(spectra.adapters[0].mean()["stable_rank"])
        spectra.to_frame().groupby("projection")["stable_rank"].mean()
    """
    wanted = names(adapters, "adapters")
    whole_number(leading, 1, "leading")
    share(threshold, "threshold")
    whole_number(directions, 1, "directions")
    store, before_training = name(output, "output"), optional_name(initial, "initial")
    matches = find_adapters(wanted, store, revision, local_files_only)
    labels = distinct([label for label, _ in matches])
    labelled = list(zip(labels, (adapter for _, adapter in matches), strict=True))
    before = None
    if before_training:
        if len(labelled) > 1:
            raise BadInput(
                f"--initial belongs to one adapter, and {len(labelled)} are named: name one"
            )
        ((_, before), *_) = find_adapters([before_training], store, revision, local_files_only)
    weight = None
    if base:
        from evilspectra.adapters.base_weights import base_weights

        weight = base_weights(name(base, "base"), None, local_files_only)
    say = note or silent
    xrays = tuple(
        xray(label, adapter, before, weight, leading, threshold, say) for label, adapter in labelled
    )
    return Spectrum(xrays, tuple(compare(labelled, directions)))


def flatten(
    adapter: PathLike,
    out: PathLike,
    *,
    amount: float | None = None,
    keep: Keep = "frobenius",
    rank: int | None = None,
    scale: float | None = None,
    dtype: str = "float32",
    output: PathLike = "runs",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Flattened:
    """Makes an adapter's spectrum flatter after training: σ′ ∝ (1 − amount)·σ + amount·mean(σ).

    Every update keeps its directions and one of its norms; the result is a plain PEFT adapter, and
    the training-free baseline to compare the flatness penalty with. docs/flatten.md explains what
    it does and what it does not.

    Args:
        adapter: as for `spectrum`, a single one.
        out: the new adapter's folder; it must not exist, or be empty.
        amount: how far σ moves towards its mean, from 0 (unchanged) to 1 (flat); None: 1, or 0
            where there is a scale.
        keep: the norm of every ΔW that stays unchanged, frobenius or nuclear.
        rank: keep only this many leading directions; None: all.
        scale: a factor of every ΔW, above 0; None: 1.
        dtype: number type of the factors: float32, bfloat16, float16 or float64; half precision
            does not preserve a norm to 1e-6.
        output: the store to look runs up in.
        revision: branch, tag or commit of an adapter on the hub.
        local_files_only: ask the hub for nothing.

    Raises:
        BadInput: no such adapter, or more than one; an option out of bounds; a folder that is not
            empty; an adapter without config, or one whose ΔW is more than scale·B·A.
        EvilspectraError: the result cannot be written.

        flat = es.flatten("my-adapter", "my-adapter-flat", amount=0.5)
        print(flat.stable_rank_before, flat.stable_rank_after)
    """
    folder = file(out, "out")
    if amount is not None:
        real_number(amount, "amount")
    if scale is not None:
        real_number(scale, "scale")
    choice(keep, get_args(Keep), "keep")
    kind = DTYPES[choice(dtype, list(DTYPES), "dtype")]
    if rank is not None:
        whole_number(rank, 1, "rank")
    source = name(adapter, "adapter")
    matches = find_adapters([source], name(output, "output"), revision, local_files_only)
    if len(matches) > 1:
        raise BadInput(f"{source} holds {len(matches)} adapters: name one of them")
    return Flattened(**vars(_flatten(matches[0][1], folder, amount, keep, rank, kind, scale)))
