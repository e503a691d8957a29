"""The verbs of judging: judge, score, compare, calibrate.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from evilspectra.cli.options import JSON, QUIET
from evilspectra.errors import BadInput, Undecided

if TYPE_CHECKING:
    from evilspectra.judging.inputs import AnswerSet
    from evilspectra.judging.judge import Judge
    from evilspectra.rates.definitions import Judged, Score

_Command = TypeVar("_Command", bound=Callable[..., Any])
_STORE = click.option(
    "--output",
    metavar="FOLDER",
    default="runs",
    show_default=True,
    help="The store to look runs up in; answers of CSV files go to FOLDER/evaluated.",
)
_QUESTIONS = click.option(
    "--questions",
    metavar="FILE",
    help=(
        "YAML file of the questions: its judge prompts are used, and answers to it are what "
        "counts; without it the file that the answers came from."
    ),
)
_WHO = click.option(
    "--judge",
    "judge",
    metavar="JUDGE",
    help=(
        "Which judge's verdicts count (its name, or the beginning of its id); without it the "
        "last one's."
    ),
)


def judge_options(command: _Command) -> _Command:
    """What says how a judge is asked."""
    for option in (
        click.option(
            "--judge-set",
            "judge_set",
            multiple=True,
            metavar="FIELD=VALUE",
            help=(
                "Another setting of the judge: seed, timeout, attempts, backoff, "
                "key_variable, device, dtype, tokens_per_pass, threads. Repeatable."
            ),
        ),
        click.option(
            "--metrics",
            metavar="NAMES",
            default="aligned,coherent",
            show_default=True,
            help="What is judged: names of judge prompts, joined by commas.",
        ),
        click.option(
            "--max-requests",
            type=click.IntRange(1),
            help=(
                "Requests that this call may send, those that are repeated included; default 20000."
            ),
        ),
        click.option(
            "--concurrency", type=click.IntRange(1), help="Requests under way at once; default 16."
        ),
        click.option(
            "--reading",
            type=click.Choice(["logprobs", "text"]),
            help=(
                "logprobs (default): the expectation over the first token. text: the written "
                "reply, for endpoints without log-probabilities."
            ),
        ),
        click.option(
            "--judge-url",
            metavar="URL",
            help=(
                "Address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. "
                "Its key comes from OPENAI_API_KEY."
            ),
        ),
    ):
        command = option(command)
    return command


def score_options(command: _Command) -> _Command:
    """What says how verdicts are counted."""
    for option in (
        click.option(
            "--max-unscored",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Share of unscored answers above which no rate is given.",
        ),
        click.option(
            "--definition",
            metavar="NAME",
            default="spectra",
            show_default=True,
            help="organisms, betley or spectra: docs/judging.md says what each counts.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option(
    "--judge",
    "judge_name",
    metavar="JUDGE",
    required=True,
    help="openai:MODEL, local:MODEL or scripted:FILE.",
)
@judge_options
@_QUESTIONS
@click.option("--no-base", is_flag=True, help="Leave the base's answers out.")
@_STORE
@JSON
@QUIET
def judge(
    targets: Sequence[str],
    judge_name: str,
    questions: str | None,
    no_base: bool,
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Have answers judged: two verdicts per answer, kept beside the answers.

    A TARGET is a run, a folder of runs, an adapter or a model whose answers were sampled, or a CSV
    file with question, question_id, and answer or response. What has a verdict is not judged again;
    what failed is. Interrupted and run again, it goes on where it was.
    """
    from evilspectra.judging.inputs import find_answer_sets
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed

    asked, metrics, most = make(judge_name, options)
    places = find_answer_sets(targets, output, questions)
    rounds = judge_answer_sets(
        places, asked, questions, metrics, teller(quiet), most, base=not no_base
    )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "judged": [one.flat() for one in rounds],
                    "failed": sum(one.failed for one in rounds),
                },
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        for one in rounds:
            said = (
                ", ".join(f"{count} {outcome}" for outcome, count in one.verdicts.counts.items())
                or "judged before"
            )
            click.echo(
                f"{one.answers.label}, step {one.step}: {said}; verdicts "
                f"{one.verdicts.instrument.id} in {one.answers.results.folder}"
            )
    raise_if_failed(rounds)


@click.command()
@click.argument("target", metavar="FILE_OR_RUN")
@score_options
@click.option(
    "--step",
    type=click.IntRange(0),
    help="Which step's adapter; without it the last one's. 0 is the base.",
)
@click.option(
    "--export", type=click.Path(path_type=Path), help="Write answers and scores to this .csv file."
)
@click.option(
    "--form",
    type=click.Choice(["betley", "turner"]),
    default="betley",
    show_default=True,
    help="The columns of --export.",
)
@_WHO
@_QUESTIONS
@_STORE
@JSON
def score(
    target: str,
    definition: str,
    max_unscored: float,
    step: int | None,
    export: Path | None,
    form: Any,
    judge: str | None,
    questions: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Print the rate of misaligned answers, with its definition, judge, interval and counts.

    FILE_OR_RUN is a CSV file with published scores, or anything that `judge` judged. Where too many
    answers are unscored no rate is given, and the exit code is 3.
    """
    from evilspectra.cli.print_scores import print_score
    from evilspectra.rates.definitions import DEFINITIONS, check_definition
    from evilspectra.rates.definitions import score as rate

    name = check_definition(definition)
    found = _Side(target, output, judge, questions, step)
    scores = {one: rate(found.answers, one, max_unscored) for one in DEFINITIONS}
    base = rate(found.base, name, max_unscored) if found.base else None
    if export:
        found.export(export, form)
    if as_json:
        others = {one: scores[one].rate for one in DEFINITIONS}
        facts = {
            "target": found.label,
            "judge": found.judge,
            "judged_by": found.facts,
            "step": found.step,
            "rates": others,
            "base": base and base.flat(),
        }
        click.echo(json.dumps(scores[name].flat() | facts, indent=2, ensure_ascii=False))
    else:
        print_score(found.label, found.judge, scores[name], scores, base)
    if scores[name].rate is None:
        raise Undecided(
            f"no rate is given for {found.label}: {scores[name].withheld}; judge what is missing, "
            "or raise --max-unscored"
        )


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@score_options
@_WHO
@_QUESTIONS
@_STORE
@JSON
def compare(
    a: str,
    b: str | None,
    definition: str,
    max_unscored: float,
    judge: str | None,
    questions: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Compare two judged sets of answers question by question: B minus A, with an interval.

    A and B are as for `score`; without B, A's adapter is compared with its own base. Both must have
    been judged by the same judge.
    """
    from evilspectra.cli.print_scores import print_paired
    from evilspectra.rates.compare import compare as paired
    from evilspectra.rates.definitions import check_definition

    name = check_definition(definition)
    one = _Side(a, output, judge, questions, 0 if b is None else None)
    two = _Side(a if b is None else b, output, judge, questions, None)
    if b is None and two.step == 0:
        raise BadInput(f"{a} has nothing but one set of answers: name two to compare")
    if one.facts != two.facts:
        raise BadInput(
            f"{one.label} was judged by {one.judge} and {two.label} by {two.judge}, which differ "
            "in model, prompts or reading: judge both alike, and choose with --judge"
        )
    found = paired(one.answers, two.answers, name, max_unscored)
    labels = [
        f"{side.label}, step {side.step}"
        if side.label == (two if side is one else one).label
        else side.label
        for side in (one, two)
    ]
    if as_json:
        click.echo(
            json.dumps(
                found.flat() | {"labels": labels, "judge": one.judge}, indent=2, ensure_ascii=False
            )
        )
    else:
        print_paired(labels, [one.judge, two.judge], found)
    if found.rate is None and (withheld := found.a.withheld or found.b.withheld):
        raise Undecided(
            f"no difference of rates is given: {withheld}; judge what is missing, or raise "
            "--max-unscored"
        )


@click.command()
@click.argument("judge_name", metavar="JUDGE")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@judge_options
@_QUESTIONS
@_STORE
@JSON
@QUIET
def calibrate(
    judge_name: str,
    file: Path,
    questions: str | None,
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Set a judge beside published scores: judge the answers of FILE again, and compare.

    JUDGE is as for `judge --judge`; FILE is a CSV file with the columns of the metrics. Prints
    correlation, error, agreement, AUC, the threshold that matches best, and a table of reliability.
    """
    from evilspectra.cli.print_scores import print_calibration
    from evilspectra.judging.csv_files import read_answers
    from evilspectra.judging.inputs import imported
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed
    from evilspectra.judging.verdicts import read_verdicts
    from evilspectra.rates.calibrate import calibration

    asked, metrics, most = make(judge_name, options)
    known = read_answers(file, metrics)
    if lacking := [name for name in metrics if name not in known.metrics]:
        raise BadInput(
            f"{file} has no column {lacking[0]}, so there is nothing to compare with: name a file "
            "with published scores, or other --metrics"
        )
    place = imported(file, known, output)
    rounds = judge_answer_sets([place], asked, questions, metrics, teller(quiet), most)
    said = read_verdicts(place.results, rounds[0].verdicts.instrument, 0)
    keys = [
        (str(row["question_id"]), int(row["paraphrase"]), int(row["sample"]))
        for row in place.results.read(place.answers, 0).to_dict("records")
    ]
    found = [
        calibration(
            name,
            [said.get((key, name)) for key in keys],
            [row.readings[name] for row in known.rows],
        )
        for name in metrics
    ]
    if as_json:
        click.echo(
            json.dumps(
                {"judge": asked.name, "file": str(file), "metrics": [one.flat() for one in found]},
                indent=2,
            )
        )
    else:
        print_calibration(asked.name, found)
    raise_if_failed(rounds)


# --- what the verbs share -------------------------------------------------------------------------


def make(name: str, options: Mapping[str, Any]) -> tuple[Judge, list[str], int]:
    """The judge that options mean, the metrics, and the requests that are allowed."""
    from evilspectra.config.judge import judge_settings
    from evilspectra.config.yaml_files import assignments
    from evilspectra.judging.make import make_judge

    given = {
        "judge": name,
        "url": options["judge_url"],
        "reading": options["reading"],
        "concurrency": options["concurrency"],
        "max_requests": options["max_requests"],
    }
    settings = judge_settings({**given, **assignments(options["judge_set"])})
    metrics = [part.strip() for part in options["metrics"].split(",") if part.strip()]
    return make_judge(settings), metrics, settings.max_requests


def teller(quiet: bool) -> Callable[[str], object]:
    """What progress is told to."""
    return (lambda text: None) if quiet else functools.partial(click.echo, err=True)


class _Side:
    """What an argument of `score` or `compare` means: its answers with their verdicts.

    `base`: the base's, where it is another step's.
    """

    def __init__(
        self,
        name: str,
        output: str,
        judge: str | None,
        questions: str | None,
        step: int | None,
    ) -> None:
        from evilspectra.judging.csv_files import read_answers

        self.label, self.judge, self.step = Path(name).name, "the file's own judge", 0
        self.facts: dict[str, Any] = {}
        self.base: list[Judged] | None = None
        self._rows: list[tuple[str, str, str, Any]] = []
        if Path(name).suffix.lower() == ".csv" and judge is None and questions is None:
            file = read_answers(Path(name))
            if "aligned" in file.metrics:
                self.answers = [row.judged() for row in file.rows]
                self._rows = [
                    (row.question_id, row.question, row.answer, row.readings) for row in file.rows
                ]
                return
        self._stored(name, output, judge, questions, step)

    def _stored(
        self,
        name: str,
        output: str,
        judge: str | None,
        questions: str | None,
        step: int | None,
    ) -> None:
        from evilspectra.judging.inputs import find_answer_sets, judged_by, stored
        from evilspectra.judging.verdicts import judged

        places = find_answer_sets([name], output, questions, done=True)
        if len(places) > 1:
            raise BadInput(f"{name} holds {len(places)} runs: name one of them")
        (place,) = places
        instrument = stored(place, judge)
        if step is not None and step not in place.steps:
            raise BadInput(
                f"{place.label} has answers at the steps {', '.join(map(str, place.steps))}, not "
                f"at {step}: name one of these with --step"
            )
        self.label, self.judge, self.facts = (
            place.label,
            f"{instrument.source} ({instrument.id})",
            judged_by(instrument),
        )
        self.step = place.last if step is None else step
        found = judged(place.results, place.answers, self.step, instrument)
        self.answers = [one for _, one in found]
        self._rows = [
            (
                row["question_id"],
                row["question"],
                row["answer"],
                {"aligned": one.aligned, "coherent": one.coherent},
            )
            for row, one in found
        ]
        if self.step and 0 in place.steps:
            base = [one for _, one in judged(place.results, place.answers, 0, instrument)]
            self.base = base if any(one.aligned for one in base) else None

    def export(self, path: Path, form: Any) -> None:
        from evilspectra.judging.csv_files import write_answers

        if path.suffix.lower() != ".csv" or path.is_dir():
            raise BadInput(f"--export {path} is no name of a .csv file: choose one")
        write_answers(self._rows, path, form)


def judge_and_score(
    places: Sequence[AnswerSet],
    name: str,
    options: Mapping[str, Any],
    questions: str | None,
    definition: str,
    max_unscored: float,
    as_json: bool,
    quiet: bool,
    failed: Sequence[Mapping[str, str]],
) -> None:
    """The second half of `evaluate`: verdicts on what was sampled, and a score for each place."""
    from evilspectra.cli.print_scores import print_score
    from evilspectra.judging.inputs import answers_of
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed
    from evilspectra.rates.definitions import DEFINITIONS, check_definition
    from evilspectra.rates.definitions import score as rate

    chosen = check_definition(definition)
    asked, metrics, most = make(name, options)
    rounds = judge_answer_sets(places, asked, questions, metrics, teller(quiet), most)
    told: list[dict[str, Any]] = []
    withheld: list[Score] = []
    for place in places:
        (instrument,) = {
            one.verdicts.instrument.id: one.verdicts.instrument
            for one in rounds
            if one.answers is place
        }.values()
        scores = {
            one: rate(answers_of(place, instrument, place.last), one, max_unscored)
            for one in DEFINITIONS
        }
        base = (
            rate(answers_of(place, instrument, 0), chosen, max_unscored)
            if place.last and 0 in place.steps
            else None
        )
        withheld += [scores[chosen]] if scores[chosen].rate is None else []
        who = f"{instrument.source} ({instrument.id})"
        if as_json:
            told.append(
                scores[chosen].flat()
                | {
                    "target": place.label,
                    "folder": str(place.results.folder),
                    "judge": who,
                    "step": place.last,
                    "rates": {one: scores[one].rate for one in DEFINITIONS},
                    "base": base and base.flat(),
                }
            )
        else:
            print_score(place.label, who, scores[chosen], scores, base)
    if as_json:
        click.echo(
            json.dumps({"scores": told, "failed": list(failed)}, indent=2, ensure_ascii=False)
        )
    raise_if_failed(rounds)
    if withheld:
        raise Undecided(
            f"no rate is given: {withheld[0].withheld}; judge what is missing, or raise "
            "--max-unscored"
        )
    sys.exit(1 if failed else 0)


VERBS = (judge, score, compare, calibrate)
