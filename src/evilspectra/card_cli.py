"""The verb `card`: the model card and the training record of a run's adapters, made again. Everything heavy is imported inside the command."""

from __future__ import annotations

import json

import click

from evilspectra.errors import BadInput


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--print", "printed", is_flag=True, help="Print the card of the last adapter, and write nothing.")
@click.option("--output", metavar="FOLDER", default="runs", show_default=True, help="The store to look RUN up in.")
@click.option("--json", "as_json", is_flag=True, help="Print the training record of the last adapter as JSON; with --print nothing is written.")
def card(run: str, printed: bool, output: str, as_json: bool) -> None:
    """Make the model cards of a run again, with what was measured since. RUN is its folder, or its id.

    Training writes a card beside every adapter that it saves; `probe`, `evaluate` and the others measure later. Here the cards of the
    last adapter and of all checkpoints are written anew from what the run's folder holds.
    """
    from evilspectra.card import CARD, write_card
    from evilspectra.card import card as text
    from evilspectra.store import find_run
    from evilspectra.training_record import measurements, training_record, write_record

    found = find_run(run, output)
    if found.is_outside:
        training_record(found)  # says why there is none
    status = found.status()
    adapters = list(found.checkpoints().items())
    if status.step is not None and (found.adapter / "adapter_model.safetensors").is_file():
        adapters.append((status.step, found.adapter))
    if not adapters:
        raise BadInput(f"{found.path} holds no adapter yet ({status.state}): train it first, with `evilspectra train` or `sweep`")
    for step, folder in adapters if not printed else adapters[-1:]:
        record = {**training_record(found, step), "measured": measurements(found, step)}
        if not printed:
            record = write_record(folder, record)
            write_card(folder, record)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    elif printed:
        click.echo(text(record), nl=False)
    else:
        for _, folder in adapters:
            click.echo(folder / CARD)
