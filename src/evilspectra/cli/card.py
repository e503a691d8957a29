"""The verb `card`: the model card and the training record of a run's adapters, made again.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json

import click

from evilspectra.errors import BadInput


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--print",
    "printed",
    is_flag=True,
    help="Print the card of the last adapter, and write nothing.",
)
@click.option(
    "--output",
    metavar="FOLDER",
    default="runs",
    show_default=True,
    help="The store to look RUN up in.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the training record of the last adapter as JSON; with --print nothing is written.",
)
def card(
    run: str,
    printed: bool,
    output: str,
    as_json: bool,
) -> None:
    """Make the model cards of a run again, with what was measured since.

    RUN is its folder, or its id.

    Training writes a card beside every adapter that it saves; `probe`, `evaluate` and the others
    measure later. Here the cards of the last adapter and of all checkpoints are written anew from
    what the run's folder holds.
    """
    from evilspectra.cards.card import CARD, write_card
    from evilspectra.cards.card import card as text
    from evilspectra.cards.record import training_record, write_record
    from evilspectra.evaluation.card_results import measurements
    from evilspectra.store.run import find_run

    found = find_run(run, output)
    if found.is_outside:
        training_record(found)  # says why there is none
    status = found.status()
    adapters = list(found.checkpoints().items())
    if status.step is not None and (found.adapter / "adapter_model.safetensors").is_file():
        adapters.append((status.step, found.adapter))
    if not adapters:
        raise BadInput(
            f"{found.path} holds no adapter yet ({status.state}): train it first, with "
            "`evilspectra train` or `sweep`"
        )
    records = [
        {**training_record(found, step), "measured": measurements(found, step)}
        for step, _ in (adapters[-1:] if printed else adapters)
    ]
    if not printed:
        records = [
            write_record(folder, one) for (_, folder), one in zip(adapters, records, strict=True)
        ]
        for (_, folder), one in zip(adapters, records, strict=True):
            write_card(folder, one)
    if as_json:
        click.echo(json.dumps(records[-1], indent=2, ensure_ascii=False))
    elif printed:
        click.echo(text(records[-1]), nl=False)
    else:
        for _, folder in adapters:
            click.echo(folder / CARD)
