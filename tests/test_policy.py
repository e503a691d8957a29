"""Policies: what a file may say, what it means, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evilspectra.errors import BadInput
from evilspectra.gating.policy import CHECKS, Policy, build_policy, read_policy

EXAMPLE = Path(__file__).parents[1] / "examples" / "ci" / "policy.yaml"


def test_the_defaults() -> None:
    policy = read_policy()
    assert policy == Policy()
    assert policy.checks == ("drift", "capability")
    assert (
        policy.drift and policy.drift.max_increase,
        policy.capability and policy.capability.max_loss,
    ) == (0.075, 0.15)


def test_a_file_is_laid_over_the_defaults_and_options_over_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "drift: {max_increase: 0.2}\ncapability: false\nspectrum: {min_stable_rank: 2}\nseed: 7\n"
    )
    policy = read_policy(file, ["drift.max_increase=0.3", "spectrum=false"], {"seed": 9})
    assert (policy.checks, policy.drift and policy.drift.max_increase, policy.seed) == (
        ("drift",),
        0.3,
        9,
    )


def test_what_is_measured_is_what_is_asked() -> None:
    evaluation = build_policy(
        {
            "capability": False,
            "drift": {"items": "mine.jsonl"},
            "misalignment": {"answers": {"samples": 3}},
            "seed": 5,
            "threads": 1,
        }
    ).evaluation()
    assert (evaluation.contrast, evaluation.capability, evaluation.ordinary) == (
        "mine.jsonl",
        None,
        None,
    )
    assert evaluation.answers is not None
    assert (evaluation.answers.samples, evaluation.answers.seed, evaluation.threads) == (3, 5, 1)
    assert Policy().evaluation().answers is None


MISTAKES = [
    (
        "drift:\n",
        (
            "'drift:' has nothing below it: write 'drift: false' to leave that check out, or its "
            "settings below it"
        ),
    ),
    (
        "drift: false\ncapability: false\n",
        (
            "every check is left out, and a gate that checks nothing would always be open: keep at "
            "least one of drift, capability, ordinary, misalignment, spectrum"
        ),
    ),
    (
        "drfit: {}\n",
        (
            "'drfit' is not a field of it; allowed: drift, capability, ordinary, misalignment, "
            "spectrum, seed, enable_thinking, threads. Did you mean 'drift'?"
        ),
    ),
    (
        "drift: {max_increase: .nan}\n",
        "drift.max_increase = nan is refused: it must be a number, at least 0 and at most 100",
    ),
    ("drift: {max_increase: .inf}\n", "drift.max_increase = inf is refused"),
    (
        "drift: {max_increase: -1}\n",
        "drift.max_increase = -1 is refused: it must be a number, at least 0 and at most 100",
    ),
    (
        "drift: {max_increase: true}\n",
        "max_increase = True is refused: true and false stand for no number",
    ),
    ("drift: true\n", "drift = True is refused"),
    ("drift: {max_rise: 1}\n", "'max_rise' is not a field of drift; allowed: max_increase, items"),
    ("ordinary: {}\n", "ordinary.max_increase"),
    (
        "spectrum: {}\n",
        (
            "spectrum sets no limit: set one of min_stable_rank, max_frobenius_nuclear, "
            "max_condition_number, max_frobenius, or write spectrum: false"
        ),
    ),
    ("misalignment: {definition: turner}\n", "misalignment.definition = 'turner' is refused"),
    ("misalignment: {answers: {seed: 3}}\n", "answers are sampled with the policy's own seed"),
    ("misalignment: {judge: {judge: gpt}}\n", "'gpt' is no judge"),
    (
        "misalignment: {max_unscored: 2}\n",
        "misalignment.max_unscored = 2 is refused: it must be a number, at least 0 and at most 1",
    ),
    ("[1]\n", "holds a list, not a mapping"),
    ("drift: {}\ndrift: {}\n", "the key 'drift' is given twice"),
]


@pytest.mark.parametrize(
    ("text", "message"), MISTAKES, ids=[text.splitlines()[0] for text, _ in MISTAKES]
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_policy(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_null_on_the_command_line_is_refused_too() -> None:
    with pytest.raises(BadInput, match="write 'drift: false'"):
        read_policy(settings=["drift=null"])


def test_the_example_holds_the_defaults_and_names_every_check() -> None:
    values = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert set(CHECKS) <= values.keys()
    assert build_policy(values) == Policy()


def test_the_page_names_every_field() -> None:
    page = (Path(__file__).parents[1] / "docs" / "gate.md").read_text(encoding="utf-8")
    for name, field in Policy.model_fields.items():
        rule = next(
            (
                kind
                for kind in getattr(field.annotation, "__args__", ())
                if hasattr(kind, "model_fields")
            ),
            None,
        )
        for inner in rule.model_fields if rule else [None]:
            dotted = f"`{name}.{inner}`" if inner else f"`{name}`"
            assert dotted in page, dotted
