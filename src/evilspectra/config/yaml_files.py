"""Nested settings from YAML files, presets and `--set` assignments.

Their meaning is checked in `evilspectra.config.loading`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evilspectra.errors import BadInput, first_line, listing, near


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping.

    An optimizer block with another `name` replaces the old block as a whole.

    >>> merge({"optimizer": {"name": "adamw", "eps": 1e-6}}, {"optimizer": {"name": "sgd"}})
    {'optimizer': {'name': 'sgd'}}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = value
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            continue
        if key != "optimizer" or not _other_name(old, value):
            merged[key] = merge(old, value)
    return merged


def _other_name(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]


def assignment(text: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping, the value read as YAML.

    >>> assignment("train.steps=30")
    {'train': {'steps': 30}}
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise BadInput(
            f"--set '{text}' is not of the form section.field=value, for instance --set "
            "train.steps=30"
        )
    return nested(keys, parse_yaml(value, f"--set {path}"))


def assignments(layers: Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Several assignments as one mapping, a later one over an earlier one.

    A layer is the text of an assignment, or a nested mapping.

    >>> assignments(["optimizer.lr=0.1", {"optimizer": {"name": "sgd"}}])
    {'optimizer': {'lr': 0.1, 'name': 'sgd'}}
    """
    mappings = (assignment(layer) if isinstance(layer, str) else layer for layer in layers)
    return functools.reduce(merge, mappings, {})


def nested(keys: Iterable[str], value: Any) -> dict[str, Any]:
    """`value` under a path of keys."""
    for key in reversed(list(keys)):
        value = {key: value}
    return value


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted path → value.

    >>> flat({"a": {"b": 1, "c": [2]}, "d": 3})
    {'a.b': 1, 'a.c': [2], 'd': 3}
    """
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{before}{key}"
        flattened |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flattened


def parse_yaml(text: str, source: str) -> Any:
    """YAML by the safe loader, no key twice; a syntax error names the source and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(
            f"{source} is not valid YAML in line {line}: "
            f"{', '.join(filter(None, [error.context, error.problem]))}; correct that line"
        ) from None
    except yaml.YAMLError as error:
        raise BadInput(f"{source} is not valid YAML: {first_line(error)}; correct it") from None
    except (
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        TypeError,
    ) as error:  # a date such as 2024-13-45, a tag such as !!int abc or !!bool perhaps
        raise BadInput(
            f"{source} holds a value that cannot be read ({error}): correct it, or put it in quotes"
        ) from None
    except RecursionError:
        raise BadInput(
            f"{source} is nested too deeply: a config has two levels; correct it"
        ) from None


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice in one mapping.

    YAML would silently take the last.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadInput: no such file, not text, not YAML, or not a mapping.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise BadInput(
            f"{path} does not exist: name a YAML file, or a preset ({listing(presets())})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a text file ({error}): name a YAML file"
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(
            f"{path} holds a {type(values).__name__}, not a mapping of sections: begin with a "
            "line such as 'optimizer:'"
        )
    return values


def presets() -> dict[str, Path]:
    """Name → file of the presets that come with the package."""
    folder = Path(__file__).parents[1] / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file that a command's argument means: a path, or the name of a preset."""
    files = presets()
    if os.path.exists(name) and not os.path.isdir(name):  # a pipe will do
        return Path(name)
    if name not in files:
        raise BadInput(
            f"'{name}' is neither a file nor a preset; presets: "
            f"{listing(files)}.{near(name, files)}"
        )
    return files[name]
