"""What a run is made of: one frozen tree of settings, read from YAML, every default visible.

A config is refused, with one sentence, when a key is unknown, a value is out of bounds, or two settings
contradict each other. Files may be partial: what they leave out takes the default written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from evilspectra.config.sections import (
    OPTIMIZERS,
    RECIPE,
    AdamW,
    Config,
    Evaluation,
    Section,
    _Section,
)
from evilspectra.config.yaml_files import assignments, find, merge, read_mapping
from evilspectra.errors import BadInput, listing, near
from evilspectra.text import short_repr

#: Settings that do not determine a run's result, so they are no part of its identity; of data and base the content is, not the name.
NOT_IDENTITY: dict[str, Any] = {
    "output": True,
    "model": {"base", "local_files_only"},
    "data": {"train", "heldout", "local_files_only", "control"},
    "train": {"resume_every"},
}
# An optimizer block that names none means the default's: `--set optimizer.lr=1e-4` works on a config without the block.
_NO_OPTIMIZER = {"optimizer": {"name": AdamW().name}}


def build(values: Mapping[str, Any], source: str = "the config") -> Config:
    """A config from a nested mapping, defaults filled in.

    Raises:
        BadInput: an unknown key or an unusable value, in one sentence that names it, what is allowed and near matches.

    >>> build({"optimizer": {"name": "lion"}}).optimizer.lr
    5e-05
    """
    values = named(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(error, values, Config)}") from None


def build_evaluation(values: Mapping[str, Any], source: str = "evaluate") -> Evaluation:
    """What to measure, from a nested mapping; raises as `build` does.

    >>> build_evaluation({"answers": {"samples": 2}}).answers.temperature
    1.0
    """
    return build_section(Evaluation, values, source)


def build_section(kind: type[_Section], values: Mapping[str, Any], source: str) -> _Section:
    """A group of settings from a mapping; raises as `build` does."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(error, values, kind)}") from None


def load(name: str, settings: Iterable[str] = ()) -> Config:
    """The config in a YAML file or preset, with `--set` assignments laid on top.

    Raises:
        BadInput: no such file or preset, a sweep file, or a config that is refused.
    """
    values = read_mapping(find(name))
    if {"base", "arms", "axes", "zip", "seeds", "from"} & values.keys():
        raise BadInput(
            f"{name} is a sweep file, not the config of one run: use `evilspectra sweep {name}`"
        )
    return build(merge(named(values), assignments(settings)), name)


#: Line ends of Unicode that PyYAML writes as they are and reads back as something else.
_FOLDED = frozenset("\x85\u2028\u2029")


def dump(config: Config) -> str:
    """YAML of the whole config, every default included; `build` reads it back to an equal config."""
    values = config.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return yaml.safe_dump(values, sort_keys=False, width=120) if _FOLDED & set(text) else text


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the default optimizer's name in an optimizer block that has none, so that its settings stay its own.

    >>> named({"optimizer": {"lr": 0.1}})
    {'optimizer': {'name': 'adamw', 'lr': 0.1}}
    """
    return merge(_NO_OPTIMIZER, values)


def schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors that complete and check YAML; as in `build`, an optimizer without a name is the default one."""
    found = Config.model_json_schema()
    for kind in OPTIMIZERS.values():
        if kind is not AdamW:
            found["$defs"][kind.__name__]["required"] = ["name"]
    return found


def identity(
    config: Config,
    data_sha256: str,
    base_sha256: str,
    heldout_sha256: str | None = None,
) -> str:
    """The 10 hex digits that name a run: settings that differ from their defaults, content of data and base, recipe number.

    The names of data and base do not count, their content does; where results are written does not count either.
    """
    values = config.model_dump(mode="json", exclude_defaults=True, exclude=NOT_IDENTITY)
    values["optimizer"] = {"name": config.optimizer.name} | values.get("optimizer", {})
    content = {
        "recipe": RECIPE,
        "data": data_sha256,
        "heldout": heldout_sha256,
        "base": base_sha256,
        "config": {key: value for key, value in values.items() if value},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _sentence(error: ValidationError, values: Mapping[str, Any], root: type[Section]) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    place = tuple(str(part) for part in first["loc"])
    path, field, fields = _field(place, root)
    dotted = ".".join(path)
    match first["type"]:
        case "extra_forbidden" | "invalid_key":
            text = f"'{place[-1]}' is not a field of {dotted or ('a config' if root is Config else 'it')}; allowed: {listing(fields, 20)}.{near(place[-1], fields)}"
        case "union_tag_invalid":
            name = first["input"].get("name")
            text = f"optimizer.name {short_repr(name)} is unknown; allowed: {listing(OPTIMIZERS)}.{near(name, OPTIMIZERS)}"
        case "model_type" | "model_attributes_type":
            text = f"{dotted} = {short_repr(first['input'])} is refused: it is a section, with fields below it ({listing(fields or AdamW.model_fields, 20)}); give some, or leave it out"
        case "value_error":
            text = f"{dotted}: ".removeprefix(": ") + str(first.get("ctx", {}).get("error"))
        case kind:
            allowed = (
                _allowed(field)
                if field and kind not in ("literal_error", "bool_type", "bool_parsing")
                else first["msg"].replace("Input should be", "it must be")
            )
            default = (
                f", or leave it out for the default {json.dumps(field.default)}"
                if field and not field.is_required()
                else ""
            )
            text = f"{dotted} = {short_repr(_value(values, path))} is refused: {allowed}; correct that value{default}"
    others = len({tuple(_field(tuple(map(str, one["loc"])), root)[0]) for one in errors}) - 1
    return text + (f" ({others} more after this one)" if others else "")


def _field(
    place: tuple[str, ...], root: type[Section]
) -> tuple[list[str], FieldInfo | None, list[str]]:
    """Of pydantic's place of an error below `root`: the path of settings, the last one's field, and the names allowed below it."""
    kind: Any = root
    path: list[str] = []
    field = None
    for part in place:
        if path == ["optimizer"] and kind is None:
            kind = OPTIMIZERS[part]
        elif kind and part in kind.model_fields:
            field = kind.model_fields[part]
            path.append(part)
            inner = [one for one in get_args(field.annotation) if one is not type(None)]
            kind = inner[0] if len(inner) == 1 else field.annotation  # a section that may be null
            kind = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        else:
            break
    return path, field, list(kind.model_fields) if kind else []


def _value(values: Any, path: Iterable[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else values
    return values


def _allowed(field: FieldInfo) -> str:
    """What a field takes, in words: a number's bounds, or else its description."""
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [
        f"{word} {bound:,}"
        for name, word in words.items()
        for rule in field.metadata
        if (bound := getattr(rule, name, None)) is not None
    ]
    if not bounds:
        return f"allowed: {str(field.description).rstrip('.')}"
    return f"it must be a {'whole ' if 'int' in str(field.annotation) else ''}number, {' and '.join(bounds)}"
