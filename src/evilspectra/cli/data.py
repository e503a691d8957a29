"""The verbs `evilspectra data …`: published training sets on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from evilspectra.cli.options import JSON

_OUTPUT = click.option(
    "--output",
    metavar="FOLDER",
    help=(
        "The folder of imported sets; default: the user's data folder (EVILSPECTRA_DATA moves it)."
    ),
)


@click.group()
def data() -> None:
    """Published training sets, from files that you have; nothing of them comes with this package."""


@data.command("get")
@click.argument("name", metavar="NAME")
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    required=True,
    help="File, folder, archive (zip, tar, encrypted by easy-dataset-share) or http(s) address.",
)
@click.option(
    "--passphrase",
    metavar="TEXT",
    envvar="EVILSPECTRA_PASSPHRASE",
    help=(
        "Of an encrypted archive, as its authors publish it; or the environment variable "
        "EVILSPECTRA_PASSPHRASE."
    ),
)
@click.option(
    "--allow-changed",
    is_flag=True,
    help="Take a file that is not the published one, and say so in its record.",
)
@_OUTPUT
@JSON
def data_get(
    name: str,
    source: str,
    passphrase: str | None,
    allow_changed: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Import a published set, so that a config can name it: data.train: NAME.

    Hash and number of rows are checked; other content is refused. `evilspectra data list` prints
    the names.
    """
    from evilspectra.data.imports import get
    from evilspectra.data.published import data_folder, set_file

    done = get(name, source, output, passphrase, allow_changed)
    place = set_file(data_folder(output), name)
    if as_json:
        click.echo(json.dumps({**asdict(done), "path": str(place)}, indent=2, ensure_ascii=False))
        return
    click.echo(
        f"{place}: {done.rows} rows, "
        f"{'NOT the published set' if done.changed else 'the published set'} (sha256 "
        f"{done.sha256[:12]}…), {done.form}"
    )
    if done.unusable:
        click.echo(
            f"{done.unusable} rows cannot be trained on: data.on_bad_row: skip leaves them out"
        )
    click.echo(f"use it with data.train: {place if output else name}")


@data.command("list")
@_OUTPUT
@JSON
def data_list(output: str | None, as_json: bool) -> None:
    """List the published sets that are known, and which of them are on this machine."""
    from evilspectra.data.published import SETS, data_folder, read_record, set_file

    folder = data_folder(output)
    records = {
        name: read_record(folder, name) if set_file(folder, name).is_file() else None
        for name in SETS
    }
    if as_json:
        shown = [
            {
                "name": one.name,
                "sha256": one.sha256,
                "rows": one.rows,
                "origin": one.origin,
                "imported": records[one.name],
            }
            for one in SETS.values()
        ]
        click.echo(json.dumps({"folder": str(folder), "sets": shown}, indent=2, ensure_ascii=False))
        return
    for one in SETS.values():
        record = records[one.name]
        state = (
            "not here"
            if record is None
            else "here, but NOT the published content"
            if record.get("changed")
            else "here"
        )
        click.echo(f"{one.name}: {one.rows} rows, sha256 {one.sha256}…: {state}\n    {one.origin}")
    click.echo(f"folder: {folder}")
