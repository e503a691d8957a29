"""The commands `evilspectra data …`: published training sets on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

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
    """Import and list published training sets, from files that you have.

    None of them comes with this package.
    """


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
        "The passphrase of an encrypted archive, as its authors publish it; or the environment "
        "variable EVILSPECTRA_PASSPHRASE."
    ),
)
@click.option(
    "--allow-changed",
    is_flag=True,
    help="Accept a file that is not the published one, and record that it is not.",
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
    path = set_file(data_folder(output), name)
    if as_json:
        click.echo(json.dumps({**asdict(done), "path": str(path)}, indent=2, ensure_ascii=False))
        return
    content = "NOT the published set" if done.changed else "the published set"
    click.echo(f"{path}: {done.rows} rows, {content} (sha256 {done.sha256[:12]}…), {done.form}")
    if done.unusable:
        click.echo(
            f"{done.unusable} rows cannot be trained on: data.on_bad_row: skip leaves them out"
        )
    click.echo(f"use it with data.train: {path if output else name}")


@data.command("list")
@_OUTPUT
@JSON
def data_list(output: str | None, as_json: bool) -> None:
    """List the published sets by name, and show which of them are on this machine."""
    from evilspectra.data.published import SETS, data_folder, read_record, set_file

    folder = data_folder(output)
    records = {
        name: read_record(folder, name) if set_file(folder, name).is_file() else None
        for name in SETS
    }
    if as_json:
        entries = [
            {
                "name": published.name,
                "sha256": published.sha256,
                "rows": published.rows,
                "origin": published.origin,
                "imported": records[published.name],
            }
            for published in SETS.values()
        ]
        values = {"folder": str(folder), "sets": entries}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    for published in SETS.values():
        state = _state(records[published.name])
        content = f"{published.rows} rows, sha256 {published.sha256}…"
        click.echo(f"{published.name}: {content}: {state}\n    {published.origin}")
    click.echo(f"folder: {folder}")


def _state(record: Mapping[str, Any] | None) -> str:
    """Whether a set is on this machine, by the record of its import."""
    if record is None:
        return "not here"
    return "here, but NOT the published content" if record.get("changed") else "here"
