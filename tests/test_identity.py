"""The id of a run: the settings and contents that it depends on, and those that it does not."""

from __future__ import annotations

import hashlib
import itertools
import json
import typing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.config.loading import build, dump, identity, load, schema
from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.config.section import Section
from evilspectra.config.sections import Config
from tests.support.any_config import valid

DATA, BASE = "a" * 64, "b" * 64


#: Pinned: when one of these changes, every stored run is orphaned. Raise RECIPE and say so in the
#: changelog if that is meant.
PINNED = {
    "a36d09cb77": {},
    "1d381c4b5f": {"optimizer": {"name": "lion"}},
    "5e59e82d4b": {"lora": {"targets": ["q_proj"]}, "flatness": {"weight": 3}},
}
PINNED_DEFAULTS = (3, "1b73365b1a")


@pytest.mark.parametrize(("digest", "values"), PINNED.items())
def test_old_runs_keep_their_names(digest: str, values: dict[str, Any]) -> None:
    assert identity(build(values), DATA, BASE) == digest


def test_a_change_of_a_default_raises_the_recipe() -> None:
    """Identity leaves defaults out, so a run with an old default would be taken for a new one.

    When this fails, raise RECIPE, then pin both again.
    """
    defaults = [
        build({"optimizer": {"name": name}}).model_dump(mode="json", exclude=configs.NOT_IDENTITY)
        for name in OPTIMIZERS
    ]
    assert (
        sections.RECIPE,
        hashlib.sha256(json.dumps(defaults).encode()).hexdigest()[:10],
    ) == PINNED_DEFAULTS


def test_an_own_held_out_file_counts_with_its_content() -> None:
    assert identity(build({}), DATA, BASE, "c" * 64) == "d11ebd0e2e"
    assert identity(build({}), DATA, BASE, "d" * 64) != "d11ebd0e2e"


IGNORED = {
    "model.base",
    "model.local_files_only",
    "data.train",
    "data.heldout",
    "data.local_files_only",
    "data.control",
    "train.resume_every",
    "output.folder",
    "output.experiment",
}


def _another(name: str, kind: type[Section]) -> Any:
    """A valid value of a field that is not its default."""
    field = kind.model_fields[name]
    special = {
        "accumulation": 2,
        "targets": ["q_proj"],
        "betas": [0.5, 0.5],
        "checkpoints": [3],
        "device": "cpu",
        "steps": 5,
        "clip_norm": None,
        "warmup_steps": 4,
    }
    kinds = (field.annotation, *typing.get_args(field.annotation))
    literal_kinds = [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]
    literals = [value for kind in literal_kinds for value in typing.get_args(kind)]
    match field.default:
        case _ if name in special:
            return special[name]
        case bool():
            return not field.default
        case int():
            return field.default + 1
        case float():
            return field.default / 2 or 0.5
    return next((value for value in literals if value != field.default), "other")


SECTIONS = {name: field for name, field in Config.model_fields.items() if name != "optimizer"}
FIELDS = [
    (section, name, None)
    for section, field in SECTIONS.items()
    for name in field.annotation.model_fields  # type: ignore[union-attr]
]
SETTINGS = {
    optimizer: [name for name in kind.model_fields if name != "name"]
    for optimizer, kind in OPTIMIZERS.items()
}
FIELDS += [
    ("optimizer", name, optimizer)  # type: ignore[misc]
    for optimizer, names in SETTINGS.items()
    for name in names
]


@pytest.mark.parametrize(("section", "name", "optimizer"), FIELDS)
def test_each_field_counts_unless_it_cannot_matter_and_a_default_written_out_never_does(
    section: str, name: str, optimizer: str | None
) -> None:
    block = {"name": optimizer} if optimizer else {}
    plain = build({section: block} if block else {})
    kind = type(getattr(plain, section))
    changed = build({section: block | {name: _another(name, kind)}})
    assert changed != plain
    assert (identity(changed, DATA, BASE) == identity(plain, DATA, BASE)) == (
        f"{section}.{name}" in IGNORED
    )
    default = json.loads(kind.model_validate(block).model_dump_json())[name]
    assert identity(build({section: block | {name: default}}), DATA, BASE) == identity(
        plain, DATA, BASE
    )


def test_optimizers_and_contents_have_names_of_their_own() -> None:
    names = {
        identity(build({"optimizer": {"name": name}}), data, base)
        for name, data, base in itertools.product(OPTIMIZERS, (DATA, BASE), (DATA, BASE))
    }
    assert len(names) == 4 * len(OPTIMIZERS)
    assert all(len(name) == 10 and int(name, 16) >= 0 for name in names)


def test_the_recipe_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(build({}), DATA, BASE)
    monkeypatch.setattr(configs, "RECIPE", sections.RECIPE + 1)
    assert identity(build({}), DATA, BASE) != before


@given(valid())
def test_identity_needs_only_what_the_dump_holds(values: dict[str, Any]) -> None:
    config = build(values)
    assert identity(build(yaml.safe_load(dump(config))), DATA, BASE) == identity(config, DATA, BASE)


def test_an_optimizer_without_a_name_keeps_its_settings_to_itself(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 1.0e-3}\n")
    assert load(str(tmp_path / "c.yaml")).optimizer == OPTIMIZERS["adamw"](lr=1e-3)
    assert load(str(tmp_path / "c.yaml"), ["optimizer.name=sgd"]).optimizer == OPTIMIZERS["sgd"]()
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid({"optimizer": {"lr": 1e-3}})
    assert not validator.is_valid({"optimizer": {"lr": 1e-3, "ns_steps": 5}})
