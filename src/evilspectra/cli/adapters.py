"""The commands that read adapters: spectrum and flatten.

Neither needs torch, nor a base model unless an option names one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evilspectra.cli.options import JSON, QUIET, STORE, progress, together

if TYPE_CHECKING:
    from evilspectra.adapters.flatten import Keep

#: The places that an adapter is looked up in.
_SOURCES = together(
    STORE,
    click.option(
        "--revision", metavar="NAME", help="Branch, tag or commit of an adapter on the hub."
    ),
    click.option("--local-files-only", is_flag=True, help="Ask the hub for nothing."),
)


@click.command()
@click.argument("adapters", metavar="ADAPTER...", nargs=-1, required=True)
@click.option(
    "--base",
    metavar="MODEL",
    help=(
        "The base model: adds ‖ΔW‖/‖W‖ and intruder dimensions, and DoRA's whole ΔW. "
        "It takes a dense SVD per module, so minutes to hours on large models."
    ),
)
@click.option(
    "--initial",
    metavar="ADAPTER",
    help=(
        "The same adapter before training, if PiSSA, OLoRA or their like took a part out of the "
        "base: gives ΔW."
    ),
)
@click.option(
    "--leading",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="With --base: how many leading directions of W + ΔW are examined.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="With --base: |cosine| below which a direction is an intruder.",
)
@click.option(
    "--directions",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="With several adapters: how many leading directions are compared.",
)
@click.option("--layers", is_flag=True, help="A table by layer too.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a row per module to this .csv file (.jsonl and .parquet work too).",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write one self-contained page to this file.",
)
@_SOURCES
@JSON
@QUIET
def spectrum(
    adapters: Sequence[str],
    base: str | None,
    initial: str | None,
    leading: int,
    threshold: float,
    directions: int,
    layers: bool,
    csv_file: Path | None,
    html_file: Path | None,
    output: str,
    revision: str | None,
    local_files_only: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the singular values of every update of LoRA adapters, exact, in seconds.

    No GPU and no base model are needed, and no code of the adapters is run. An ADAPTER is the
    folder of a PEFT adapter, its .safetensors file, a run (folder or id), a folder of runs, or
    owner/model on the hub. Several are also compared: flatness, norm, and how far they change the
    same directions.
    """
    use_one_thread()
    from evilspectra.adapters.output import rows
    from evilspectra.answers.export import check_export, export
    from evilspectra.api.adapters import spectrum as spectra_of

    if csv_file:
        csv_file = check_export(csv_file)
    spectra = spectra_of(
        adapters,
        base=base,
        initial=initial,
        leading=leading,
        threshold=threshold,
        directions=directions,
        output=output,
        revision=revision,
        local_files_only=local_files_only,
        note=progress(quiet),
    )
    if csv_file:
        export(rows(spectra.adapters), csv_file)
    if html_file:
        spectra.write_page(html_file)
    if as_json:
        click.echo(json.dumps(spectra.flat(), indent=2, allow_nan=False))
        return
    from evilspectra.reporting.adapter_text import print_comparison, print_xray

    for number, picture in enumerate(spectra.adapters):
        if number:
            click.echo()
        print_xray(picture, layers)
    if len(spectra.adapters) > 1:
        click.echo()
        print_comparison(spectra.adapters, spectra.comparisons)
    for file in (csv_file, html_file):
        if file:
            click.echo(f"written: {file}")


@click.command()
@click.argument("adapter", metavar="ADAPTER")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="The new adapter's folder.",
)
@click.option(
    "--amount",
    type=click.FloatRange(0, 1),
    help=(
        "How far σ moves towards its mean: 0 leaves it, 1 makes it flat.  "
        "[default: 1; with --scale 0]"
    ),
)
@click.option(
    "--keep",
    type=click.Choice(["frobenius", "nuclear"]),
    default="frobenius",
    show_default=True,
    help="The norm of every ΔW that stays unchanged.",
)
@click.option("--rank", type=click.IntRange(1), help="Keep only this many leading directions.")
@click.option(
    "--scale",
    type=float,
    help="Multiply every ΔW by this number; its norm becomes that many times what it was.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="Number type of the factors; half precision does not preserve a norm to 1e-6.",
)
@_SOURCES
@JSON
def flatten(
    adapter: str,
    out: Path,
    amount: float | None,
    keep: Keep,
    rank: int | None,
    scale: float | None,
    dtype: str,
    output: str,
    revision: str | None,
    local_files_only: bool,
    as_json: bool,
) -> None:
    """Make an adapter's spectrum flatter after training.

    This is the training-free baseline to compare the flatness penalty with. Every update keeps its
    directions and one of its norms; the result is a plain PEFT adapter. docs/flatten.md explains
    what it does and what it does not.
    """
    use_one_thread()
    from evilspectra.adapters.flatten import EXACT
    from evilspectra.api.adapters import flatten as flatten_adapter

    done = flatten_adapter(
        adapter,
        out,
        amount=amount,
        keep=keep,
        rank=rank,
        scale=scale,
        dtype=dtype,
        output=output,
        revision=revision,
        local_files_only=local_files_only,
    )
    if as_json:
        click.echo(json.dumps(done.flat(), indent=2))
        return
    rounded = ""
    if done.norm_error > EXACT:
        rounded = f" (the rounding of {dtype}; float32 keeps it to 1e-6)"
    click.echo(f"{done.headline}{rounded}")
    if done.unchanged:
        click.echo(f"{len(done.unchanged)} other tensors were copied as they are")
    click.echo("nothing was trained: measure what it does with `evilspectra probe`")


def use_one_thread() -> None:
    """Limits BLAS to one thread for each of our own, unless the user has set another number.

    The matrices are small, and BLAS's threads wait for each other. It works before NumPy's first
    import only.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
