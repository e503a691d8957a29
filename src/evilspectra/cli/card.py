"""The command `card`: it rebuilds the model card and the training record of a run's adapters.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json

import click

from evilspectra.cli.options import STORE
from evilspectra.errors import BadInput


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--print",
    "printed",
    is_flag=True,
    help="Print the card of the last adapter, and write nothing.",
)
@STORE
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
    """Make the model cards of a run again, with its measurements. RUN is its folder, or its id.

    Training writes a card beside every adapter that it saves; `probe`, `evaluate` and the others
    measure later. This command writes the cards of the last adapter and of all checkpoints anew,
    from the run's folder.
    """
    from evilspectra.cards.card import CARD, write_card
    from evilspectra.cards.card import card as text
    from evilspectra.cards.record import training_record, write_record
    from evilspectra.evaluation.card_results import measurements
    from evilspectra.store.run import find_run

    run_folder = find_run(run, output)
    if run_folder.is_outside:
        training_record(run_folder)  # its error says why there is no card
    status = run_folder.status()
    adapters = list(run_folder.checkpoints().items())
    if status.step is not None and (run_folder.adapter / "adapter_model.safetensors").is_file():
        adapters.append((status.step, run_folder.adapter))
    if not adapters:
        raise BadInput(
            f"{run_folder.path} holds no adapter yet ({status.state}): "
            "train it first, with `evilspectra train` or `sweep`"
        )
    records = [
        {**training_record(run_folder, step), "measured": measurements(run_folder, step)}
        for step, _ in (adapters[-1:] if printed else adapters)
    ]
    if not printed:
        pairs = list(zip([folder for _, folder in adapters], records, strict=True))
        records = [write_record(folder, record) for folder, record in pairs]
        for (_, folder), record in zip(adapters, records, strict=True):
            write_card(folder, record)
    if as_json:
        click.echo(json.dumps(records[-1], indent=2, ensure_ascii=False))
    elif printed:
        click.echo(text(records[-1]), nl=False)
    else:
        for _, folder in adapters:
            click.echo(folder / CARD)
