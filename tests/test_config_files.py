"""Config files, presets and assignments, and how mappings of settings are merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given

from evilspectra.config.loading import build, load, schema
from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import (
    assignment,
    assignments,
    merge,
    parse_yaml,
)
from evilspectra.errors import BadInput
from tests.support.any_config import valid

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


# --- the page -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")


def test_the_page_lists_every_setting_with_its_default() -> None:
    sections = {name: part for name, part in schema()["properties"].items() if name != "optimizer"}
    expected = {
        f"{section}.{setting}": default
        for section, part in sections.items()
        for setting, default in part["default"].items()
    }
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (.*?) \|", PAGE, re.MULTILINE)
    assert len(rows) == len(expected)
    assert {setting: yaml.safe_load(default) for setting, default in rows} == expected


def test_the_page_names_every_optimizer_and_the_default_one() -> None:
    optimizer = schema()["properties"]["optimizer"]
    (text,) = re.findall(r"### `optimizer`\n(.*?)###", PAGE, re.DOTALL)
    for name in optimizer["discriminator"]["mapping"]:
        assert f"`{name}`" in text
    default = optimizer["default"]
    assert f"The default\nis `{default['name']}` with `lr` {default['lr']}." in text
