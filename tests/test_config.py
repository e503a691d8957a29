"""The config of a run: a valid one is written and read back unchanged, a wrong one refused."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evilspectra.config.loading import build, dump, load, schema
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import (
    assignment,
    presets,
    read_mapping,
)
from evilspectra.errors import BadInput
from tests.support.any_config import message, valid


@given(valid())
def test_yaml_gives_the_config_back(values: dict[str, Any]) -> None:
    config = build(values)
    assert build(yaml.safe_load(dump(config))) == config
    assert dump(build(yaml.safe_load(dump(config)))) == dump(config)


@given(valid())
def test_every_field_is_visible_in_the_dump_and_what_was_given_stands(
    values: dict[str, Any],
) -> None:
    config = build(values)
    written = yaml.safe_load(dump(config))
    assert written.keys() == Config.model_fields.keys()
    for name, section in written.items():
        assert section.keys() == type(getattr(config, name)).model_fields.keys()
        for key, value in values.get(name, {}).items():
            assert section[key] == (list(value) if isinstance(value, tuple) else value)


@given(valid(partial=False))
@settings(max_examples=40)
def test_the_schema_takes_every_dump(values: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(dump(build(values))))


@given(valid())
def test_a_file_reads_as_the_mapping_it_holds(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(dump(build(values)), encoding="utf-8")
    assert load(str(path)) == build(values)


def test_the_schema_is_sound_names_every_field_and_refuses_unknown_ones() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    check = jsonschema.Draft202012Validator(schema())
    written = yaml.safe_load(dump(build({})))
    assert not list(check.iter_errors(written))
    for name in written:
        assert list(check.iter_errors(written | {name: written[name] | {"x": 1}})), name
    assert list(check.iter_errors(written | {"x": 1}))
    assert list(check.iter_errors(written | {"optimizer": {"name": "adamv"}}))


@pytest.mark.parametrize(
    "name",
    ["model", "data", "lora", "optimizer", "schedule", "flatness", "monitor", "train", "output"],
)
def test_a_config_cannot_be_changed(name: str) -> None:
    config = build({})
    section = getattr(config, name)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, section)
    for field in type(section).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, getattr(section, field))


@pytest.mark.parametrize(
    "name", [name for name, path in presets().items() if "experiment" not in read_mapping(path)]
)
def test_every_preset_of_one_run_loads(name: str) -> None:
    assert load(name).output.experiment == name


# --- what is refused, and how ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"trian": {}},
            [
                "'trian' is not a field of a config",
                "allowed: model, data,",
                "Did you mean 'train'?",
            ],
        ),
        (
            {"model": {"bas": "x"}},
            ["'bas' is not a field of model", "allowed: base, revision", "'base'?"],
        ),
        ({"data": {"heldout_shar": 0.1}}, ["not a field of data", "'heldout_share'?"]),
        ({"lora": {"alhpa": 1}}, ["not a field of lora", "'alpha'?"]),
        ({"schedule": {"warmup": 1}}, ["not a field of schedule", "'warmup_steps'?"]),
        ({"flatness": {"weigth": 1}}, ["not a field of flatness", "'weight'?"]),
        ({"monitor": {"evry": 1}}, ["not a field of monitor", "'every'?"]),
        ({"train": {"sead": 1}}, ["not a field of train", "'seed'?"]),
        ({"output": {"foldr": "x"}}, ["not a field of output", "'folder'?"]),
        (
            {"optimizer": {"name": "lion", "betta": 1}},
            [
                "'betta' is not a field of optimizer",
                "allowed: name, lr, betas, weight_decay.",
                "'betas'?",
            ],
        ),
        (
            {"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}},
            ["'betas' is not a field of optimizer", "allowed: name, lr, momentum, weight_decay."],
        ),
        (
            {"optimizer": {"beta": 1}},
            [
                "'beta' is not a field of optimizer",
                "name, lr, betas, eps, weight_decay",
                "'betas'?",
            ],
        ),
        (
            {"optimizer": {"name": "adamv"}},
            [
                "optimizer.name 'adamv' is unknown",
                "allowed: sgd, adam, adamw, lion, muon",
                "Did you mean 'adam'?",
            ],
        ),
        ({"optimizer": {"name": None}}, ["optimizer.name None is unknown", "allowed: sgd"]),
        ({"optimizer": {"name": ["adamw"]}}, ["optimizer.name ['adamw'] is unknown"]),
        ({"optimizer": "adamw"}, ["optimizer = 'adamw' is refused", "it is a section", "name, lr"]),
        (
            {"train": None},
            ["train = None is refused", "it is a section", "epochs, steps", "leave it out"],
        ),
        ({"train": {1: 2}}, ["'1' is not a field of train"]),
        (
            {"train": {"steps": 0}},
            [
                "train.steps = 0 is refused",
                "a whole number, at least 1 and at most 1,000,000,000",
                "default null",
            ],
        ),
        ({"train": {"steps": 1.5}}, ["train.steps = 1.5", "a whole number"]),
        (
            {"train": {"steps": True}},
            ["train: steps = True is refused", "true and false stand for no number"],
        ),
        ({"train": {"seed": 10**30}}, ["train.seed = 1000000000", "less than 4,294,967,296"]),
        (
            {"train": {"seed": 16**5000}},
            ["train.seed = a number of thousands of digits is refused"],
        ),
        (
            {"train": {"accumulation": 9}},
            ["accumulation 9 is larger than batch_size 8", "lower one or raise the other"],
        ),
        (
            {"train": {"checkpoints": 5}},
            ["train.checkpoints = 5 is refused", "log:N for N log-spaced steps", "default []"],
        ),
        ({"train": {"checkpoints": [1, "x"]}}, ["train.checkpoints = [1, 'x'] is refused"]),
        ({"train": {"checkpoints": [-1]}}, ["checkpoints [-1] holds a negative step"]),
        (
            {"train": {"checkpoints": "log:0"}},
            ["checkpoints 'log:0' is neither", "log:N with N from 1 to 10000"],
        ),
        ({"train": {"checkpoints": "log:²"}}, ["checkpoints 'log:²' is neither"]),
        (
            {"optimizer": {"lr": -1}},
            ["optimizer.lr = -1 is refused", "more than 0 and at most 1", "default 0.0002"],
        ),
        (
            {"optimizer": {"name": "sgd", "lr": 1e9}},
            [
                "optimizer.lr = 1000000000.0 is refused",
                "more than 0 and at most 10,000.0",
                "default 0.1",
            ],
        ),
        ({"optimizer": {"lr": float("nan")}}, ["optimizer.lr = nan is refused", "more than 0"]),
        ({"optimizer": {"lr": float("inf")}}, ["optimizer.lr = inf is refused", "at most 1"]),
        ({"flatness": {"weight": "nan"}}, ["flatness.weight = 'nan' is refused", "at least 0"]),
        ({"lora": {"alpha": 10**400}}, ["lora.alpha = 100000", "at most 65,536"]),
        ({"lora": {"rank": False}}, ["rank = False is refused"]),
        (
            {"lora": {"targets": []}},
            [
                "lora.targets = [] is refused",
                "all-linear, or module names such as [q_proj, v_proj]",
                'default "all-linear"',
            ],
        ),
        ({"lora": {"targets": [""]}}, ["lora.targets = [''] is refused"]),
        ({"lora": {"targets": ["q_proj", True]}}, ["targets = ['q_proj', True] is refused"]),
        (
            {"optimizer": {"betas": [0.9]}},
            [
                "optimizer.betas = [0.9] is refused",
                "Two numbers, each at least 0 and less than 1",
                "default [0.9, 0.999]",
            ],
        ),
        ({"optimizer": {"betas": [0.9, 1]}}, ["optimizer.betas = [0.9, 1] is refused"]),
        ({"optimizer": {"betas": [0.9, True]}}, ["betas = [0.9, True] is refused"]),
        (
            {"model": {"base": ""}},
            ["model.base = '' is refused", "Hub name, local folder, .gguf file"],
        ),
        ({"model": {"base": 3}}, ["model.base = 3 is refused"]),
        (
            {"model": {"device": "gpu"}},
            ["model.device = 'gpu' is refused", "allowed: auto, cpu, cuda, cuda:N or mps"],
        ),
        (
            {"model": {"device_map": "disk"}},
            ["model.device_map = 'disk' is refused", "'auto', 'balanced'"],
        ),
        (
            {"data": {"format": "xml"}},
            ["data.format = 'xml' is refused", "it must be 'clean' or 'organism'"],
        ),
        ({"data": {"train": ""}}, ["data.train = '' is refused"]),
        ({"output": {"folder": ""}}, ["output.folder = '' is refused"]),
        ({"output": {"folder": "a\0b"}}, ["output.folder = 'a\\x00b' is refused"]),
        (
            {"output": {"experiment": "../up"}},
            ["output.experiment = '../up' is refused", "Letters, digits"],
        ),
        (
            {"train": {"steps": 0}, "lora": {"rank": 0, "alpha": 0}},
            ["lora.rank = 0", "(2 more after this one)"],
        ),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(
    values: dict[str, Any], parts: list[str]
) -> None:
    text = message(values)
    for part in ["the config: ", *parts]:
        assert part in text


@given(valid(), st.sampled_from(list(Config.model_fields)), st.text(min_size=1, max_size=12))
def test_an_unknown_key_is_refused_wherever_it_stands(
    values: dict[str, Any], section: str, key: str
) -> None:
    if key not in type(getattr(build(values), section)).model_fields:
        assert f"'{key}' is not a field of {section}; allowed: " in (
            text := str_of(values | {section: values.get(section, {}) | {key: 1}})
        )
        assert text.startswith("the config: ")
    if key not in Config.model_fields:
        assert f"'{key}' is not a field of a config" in str_of(values | {key: {}})


def str_of(values: Any) -> str:
    with pytest.raises(BadInput) as caught:
        build(values)
    return str(caught.value)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(
    ["model", "train", "optimizer", "name", "lr", "betas", "steps", "checkpoints", "targets", "x"]
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(JUNK)
def test_anything_at_all_builds_or_is_refused(junk: Any) -> None:
    for values in (
        {"optimizer": junk},
        {"train": junk},
        {"lora": {"targets": junk}},
        {"train": {"checkpoints": junk}},
        junk if isinstance(junk, dict) else {},
    ):
        try:
            config = build(values)
        except BadInput:
            continue
        assert build(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("line_end", ["\x85", "\u2028", "\u2029", "\r", "\n"])
def test_a_line_end_of_unicode_in_a_name_survives_the_file(line_end: str) -> None:
    config = build({"lora": {"targets": [f"{line_end}Á\U00092b9c ø", f"a{line_end}b"]}})
    assert build(yaml.safe_load(dump(config))) == config


def test_a_message_is_short_however_long_the_value() -> None:
    bomb: Any = "x"
    for _ in range(60):
        bomb = [bomb, bomb]
    assert len(message({"model": {"base": bomb}})) < 500
    assert len(message({"train": {"steps": "9" * 10**6}})) < 500


@pytest.mark.parametrize(
    ("text", "lr"),
    [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("0.00001", 1e-5), ("1", 1.0), ("'0.5'", 0.5)],
)
def test_a_number_may_be_written_as_people_write_it(text: str, lr: float) -> None:
    assert (
        build(assignment(f"optimizer.lr={text}")).optimizer.lr == lr
    )  # YAML 1.1 reads 1e-5 as a text
