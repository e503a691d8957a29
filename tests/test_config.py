"""The config of a run: what is built is written and read back unchanged, and what is wrong refused."""

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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.config.loading import build, dump, identity, load, schema
from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.config.section import Section
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import (
    assignment,
    assignments,
    merge,
    parse_yaml,
    presets,
    read_mapping,
)
from evilspectra.errors import BadInput

DATA, BASE = "a" * 64, "b" * 64


def message(values: Any) -> str:
    with pytest.raises(BadInput) as caught:
        build(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- every valid config ---------------------------------------------------------------------------

# PyYAML reads the line breaks that only Unicode knows back as spaces.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\x85\u2028\u2029"),
    min_size=1,
    max_size=30,
)


def bounds_of(field: Any) -> dict[str, Any]:
    """The bounds of a field: gt, ge, lt, le."""
    bounds = {}
    for entry in field.metadata:
        limits = {rule: getattr(entry, rule, None) for rule in ("gt", "ge", "lt", "le")}
        bounds |= {rule: limit for rule, limit in limits.items() if limit is not None}
    return bounds


def _field(name: str, field: Any) -> st.SearchStrategy[Any]:
    """Values of one field, within its bounds, read off its annotation."""
    bounds = bounds_of(field)
    kinds = (
        typing.get_args(field.annotation)
        if type(None) in typing.get_args(field.annotation)
        else (field.annotation,)
    )
    options: list[st.SearchStrategy[Any]] = []
    for kind in kinds:
        if kind is type(None):
            options.append(st.none())
        elif typing.get_origin(kind) is typing.Literal:
            options.append(st.sampled_from(typing.get_args(kind)))
        elif kind is bool:
            options.append(st.booleans())
        elif kind is int:
            options.append(
                st.integers(
                    bounds.get("ge", 0), bounds["le"] if "le" in bounds else bounds["lt"] - 1
                )
            )
        elif kind is float:
            low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
            options.append(
                st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
            )
        elif name == "betas":
            options.append(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2))
        elif name == "device":
            options.append(st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]))
        elif name == "experiment":
            options.append(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True))
        elif name == "checkpoints":
            options.append(
                st.lists(st.integers(0, 10**9), max_size=4)
                | st.builds("log:{}".format, st.integers(1, 10_000))
            )
        elif name in ("targets", "modules"):
            options.append(TEXTS | st.lists(TEXTS, min_size=1, max_size=4))
        else:
            assert name in ("base", "revision", "train", "split", "heldout", "folder"), (
                f"tell this test how to draw {name}"
            )
            options.append(TEXTS)
    return st.one_of(options)


def _section(kind: type[Section], partial: bool) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: _field(name, field) for name, field in kind.model_fields.items()}
    tag = {"name": fields.pop("name")} if kind in OPTIMIZERS.values() else {}
    drawn = (
        st.fixed_dictionaries(tag, optional=fields)
        if partial
        else st.fixed_dictionaries(tag | fields)
    )
    return drawn.filter(
        lambda values: values.get("accumulation", 1) <= values.get("batch_size", 8)
    ).map(_one_place)


def _one_place(values: dict[str, Any]) -> dict[str, Any]:
    """A device map leaves the device at auto; the paper's recipe has one measure."""
    values = (
        values | {"measure": "frobenius_nuclear"}
        if values.get("recipe") == "paper" and "measure" in values
        else values
    )
    return (
        values | {"device": "auto"} if values.get("device_map") and "device" in values else values
    )


def valid(partial: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    sections = {
        name: field.annotation for name, field in Config.model_fields.items() if name != "optimizer"
    }
    drawn = {name: _section(kind, partial) for name, kind in sections.items()} | {
        "optimizer": st.one_of(_section(kind, partial) for kind in OPTIMIZERS.values())
    }
    return st.fixed_dictionaries({}, optional=drawn) if partial else st.fixed_dictionaries(drawn)


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


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            b"train: {steps: 3}\ntrain: {seed: 4}\n",
            "line 2: the key 'train' is given twice; correct that line",
        ),
        (b"train:\n  steps: 3\n  steps: 4\n", "line 3: the key 'steps' is given twice"),
        (b"train: [1\n", "is not valid YAML in line 2"),
        (
            b"train:\n\tsteps: 3\n",
            "is not valid YAML in line 2: while scanning for the next token, found character '\\t'",
        ),
        (b"a: \x00", "is not valid YAML: unacceptable character #x0000"),
        (b"\xff\xfe\x00", "cannot be read as a text file"),
        (b"- 1\n", "holds a list, not a mapping of sections"),
        (b"hello\n", "holds a str, not a mapping"),
        (b"a: 1\n---\nb: 2\n", "found another document"),
        (
            b"train: {steps: 2024-13-45}\n",
            "holds a value that cannot be read (month must be in 1..12)",
        ),
        (
            b"train: {steps: !!python/object:os.system x}\n",
            "could not determine a constructor for the tag",
        ),
        (b"train: {steps: " + b"9" * 5000 + b"}\n", "holds a value that cannot be read"),
        (b"a: " + b"[" * 3000, "is nested too deeply"),
        (
            b"experiment: x\naxes: {train.seed: [0, 1]}\n",
            "is a sweep file, not the config of one run: use `evilspectra sweep",
        ),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, part: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load(str(path))
    text = str(caught.value)
    assert part in text
    assert text.startswith(str(path))
    assert "\n" not in text


@pytest.mark.parametrize(
    "content", [b"", b"# nothing yet\n", b"{}", b"---\n", b"\xef\xbb\xbf{}\r\n"]
)
def test_an_empty_file_is_all_defaults(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.yaml"
    path.write_bytes(content)
    assert load(str(path)) == build({})


def test_anchors_and_merge_keys_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "train: &a {steps: 3, seed: 1}\nlora: {rank: 4}\nmonitor: {every: 3}\n", encoding="utf-8"
    )
    assert load(str(path)).train.steps == 3
    assert parse_yaml("p: {b: &b {<<: &a {x: 1}, x: 2}}\nc: {<<: *b, y: 3}\n", "t")["c"] == {
        "x": 2,
        "y": 3,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("tinny", "Did you mean 'tiny'?"),
        ("no/such.yaml", "neither a file nor a preset; presets: demo"),
        (".", "neither a file nor a preset"),
        ("x" * 5000, "neither a file nor a preset"),
    ],
)
def test_a_name_that_is_nothing_is_refused(name: str, part: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(name)
    assert part in str(caught.value)


def test_a_file_goes_before_a_preset_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("tiny").model.base == "tiny-random"
    Path("tiny").write_text("train: {steps: 7}", encoding="utf-8")
    assert load("tiny").train.steps == 7


# --- merging and assignments ----------------------------------------------------------------------


@given(valid(), valid())
def test_merging_lays_one_mapping_over_another(base: dict[str, Any], over: dict[str, Any]) -> None:
    both = merge(base, over)
    assert merge(both, over) == both
    assert merge(base, {}) == merge({}, base) == base
    for name, section in over.items():
        for key, value in section.items():
            assert both[name][key] == value
    for name, section in base.items():
        if name != "optimizer":
            for key in section.keys() - over.get(name, {}).keys():
                assert both[name][key] == section[key]
    assert (
        build(both).model_dump().keys() == Config.model_fields.keys() if _consistent(both) else True
    )


@given(valid(), valid(), valid())
def test_merging_is_associative_unless_an_optimizer_comes_back(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    names = [values.get("optimizer", {}).get("name") for values in (first, second, third)]
    assume(not (names[0] == names[2] and names[1] not in (None, names[0])))
    assert merge(merge(first, second), third) == merge(first, merge(second, third))


def _consistent(values: dict[str, Any]) -> bool:
    """Whether the rules between settings hold: a merge of two valid mappings may break them."""
    train, model, flat = (values.get(name, {}) for name in ("train", "model", "flatness"))
    paper = (
        flat.get("recipe") == "paper"
        and flat.get("measure", "frobenius_nuclear") != "frobenius_nuclear"
    )
    return (
        train.get("accumulation", 1) <= train.get("batch_size", 8)
        and not paper
        and not (model.get("device_map") and model.get("device", "auto") != "auto")
    )


def test_merging_changes_neither_side() -> None:
    base, over = {"train": {"steps": 1}}, {"train": {"seed": 2}}
    both = merge(base, over)
    assert (base, over, both) == (
        {"train": {"steps": 1}},
        {"train": {"seed": 2}},
        {"train": {"steps": 1, "seed": 2}},
    )


def test_an_optimizer_block_is_replaced_by_one_of_another_name_alone() -> None:
    base = {"optimizer": {"name": "adamw", "weight_decay": 0.1, "lr": 0.5}}
    assert merge(base, {"optimizer": {"name": "lion"}}) == {"optimizer": {"name": "lion"}}
    assert merge(base, {"optimizer": {"name": "adamw", "lr": 0.2}}) == {
        "optimizer": {"name": "adamw", "weight_decay": 0.1, "lr": 0.2}
    }
    assert merge(base, {"optimizer": {"lr": 0.2}}) == {
        "optimizer": {"name": "adamw", "weight_decay": 0.1, "lr": 0.2}
    }
    assert merge({"optimizer": {"lr": 0.2}}, {"optimizer": {"name": "lion"}}) == {
        "optimizer": {"lr": 0.2, "name": "lion"}
    }


def test_a_schedule_of_another_name_keeps_its_warm_up() -> None:
    assert merge(
        {"schedule": {"name": "cosine", "warmup_steps": 9}}, {"schedule": {"name": "linear"}}
    ) == {"schedule": {"name": "linear", "warmup_steps": 9}}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.steps=30", {"train": {"steps": 30}}),
        (" train.steps = 30", {"train": {"steps": 30}}),
        ("lora.targets=[q_proj, v_proj]", {"lora": {"targets": ["q_proj", "v_proj"]}}),
        ("train.clip_norm=null", {"train": {"clip_norm": None}}),
        ("train.clip_norm=", {"train": {"clip_norm": None}}),
        ("optimizer={name: lion, lr: 0.1}", {"optimizer": {"name": "lion", "lr": 0.1}}),
        ("data.train=a=b", {"data": {"train": "a=b"}}),
        ('data.train="a: b"', {"data": {"train": "a: b"}}),
    ],
)
def test_an_assignment_reads_its_value_as_yaml(text: str, values: dict[str, Any]) -> None:
    assert assignment(text) == values


@pytest.mark.parametrize(
    "text", ["", "train", "=1", ".=1", "train.=1", ".steps=1", "train..steps=1"]
)
def test_an_assignment_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        assignment(text)
    assert str(caught.value) == (
        f"--set '{text}' is not of the form section.field=value, for instance --set train.steps=30"
    )


@pytest.mark.parametrize(
    "text", ["train.steps=[1", "train.steps=@x", "train.steps={a: 1, a: 2}", "train.steps=!!int x"]
)
def test_an_assignment_whose_value_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--set train\.steps (is not valid YAML|holds a value)"):
        assignment(text)


def test_assignments_need_no_order_between_an_optimizer_and_its_fields() -> None:
    for texts in (
        ["optimizer.lr=0.5", "optimizer.name=lion"],
        ["optimizer.name=lion", "optimizer.lr=0.5"],
    ):
        optimizer = load("tiny", texts).optimizer
        assert (optimizer.name, optimizer.lr) == ("lion", 0.5)
    assert assignments(["train.steps=1", "train.steps=2"]) == {"train": {"steps": 2}}


def test_a_field_of_the_default_optimizer_can_be_set_without_naming_it() -> None:
    assert load("tiny", ["optimizer.lr=0.5"]).optimizer == OPTIMIZERS["adamw"](lr=0.5)


# --- identity -------------------------------------------------------------------------------------

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
