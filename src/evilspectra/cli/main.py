"""The command line: the entry point and the list of commands.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

import evilspectra
from evilspectra.cli.adapters import flatten, spectrum
from evilspectra.cli.analyze import analyze
from evilspectra.cli.calibrate import calibrate
from evilspectra.cli.card import card
from evilspectra.cli.data import data
from evilspectra.cli.gate import gate
from evilspectra.cli.judge import judge
from evilspectra.cli.measure import evaluate, generate, probe
from evilspectra.cli.query import query_verb
from evilspectra.cli.report import report
from evilspectra.cli.score import compare, score
from evilspectra.cli.show import config, show
from evilspectra.cli.sweep import sweep
from evilspectra.cli.train import demo, train
from evilspectra.cli.tune import tune
from evilspectra.errors import EvilspectraError, packages_explained, require

EXIT_CODES = (
    "Exit codes: 0 done; 1 the answer is no, or a run failed; 2 usage or bad input; "
    "3 could not be decided; 130 interrupted."
)
VERBS = (
    *(train, demo, sweep, tune, show, config, data),
    *(probe, generate, evaluate, judge, score, compare, calibrate),
    *(report, analyze, query_verb, spectrum, flatten, gate, card),
)
#: Those that load a model, whatever they lack first.
MODEL_VERBS = (
    *(train, demo, tune, probe, generate, evaluate, gate),
    *(sweep.commands[name] for name in ("run", "retry")),
)


def _with_packages(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    """A command's function, which names the extra `train` for whatever package is not installed.

    The packages that write tables are looked for before any work, unless that is a dry run.
    """
    if callback is None:
        raise ValueError("a command without a function cannot load a model")

    @functools.wraps(callback)
    @packages_explained("train")
    def checked(*arguments: Any, **options: Any) -> Any:
        if not options.get("dry"):
            require("pandas", "pyarrow", extra="train")
        return callback(*arguments, **options)

    return checked


@click.group(
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(evilspectra.__version__, prog_name="evilspectra")
def cli() -> None:
    """Fine-tune LoRA adapters under any optimiser, and watch and flatten their spectra.

    The spectra are the singular values of the updates; probes and judges measure what else the
    training changed. Start with `evilspectra demo`: a real language model, six ways to train it,
    a report to open.
    """


for _verb in VERBS:
    cli.add_command(_verb)
for _verb in MODEL_VERBS:
    _verb.callback = _with_packages(_verb.callback)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command, and exits with its code.

    Every expected failure becomes one sentence on standard error.
    """
    try:
        with packages_explained():
            code = cli.main(
                args=list(arguments) if arguments is not None else None,
                prog_name="evilspectra",
                standalone_mode=False,
            )
        sys.stdout.flush()
    except EvilspectraError as error:
        click.echo(f"evilspectra: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes a file that ends too early for ^D
            raise error.__cause__ from None
        click.echo(
            "evilspectra: interrupted; what was saved is kept, "
            "run the same command again to resume",
            err=True,
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
