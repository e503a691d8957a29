"""The config of a run, read from YAML, checked and written: one frozen tree of settings.

A config is refused, with a one-sentence message, if a key is unknown, a value is out of bounds, or
two settings contradict each other. Files may be partial: omitted settings take the default in
`evilspectra.config.sections`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.optimizers import KINDS, AdamW, Custom
from evilspectra.config.section import Section, SectionKind
from evilspectra.config.sections import RECIPE, Config
from evilspectra.config.yaml_files import assignments, find, merge, presets, read_mapping
from evilspectra.errors import BadInput, listing, near
from evilspectra.text import short_repr

#: Settings that do not determine a run's result, so that they are not part of its identity. Of data
#: and base the content is part of it, not the name.
NOT_IDENTITY: dict[str, Any] = {
    "output": True,
    "model": {"base", "local_files_only"},
    "data": {"train", "heldout", "local_files_only", "control"},
    "train": {"resume_every"},
}
# An optimizer block without a name means the default optimizer: `--set optimizer.lr=1e-4` works on
# a config without the block.
_NO_OPTIMIZER = {"optimizer": {"name": AdamW().name}}


def build(values: Mapping[str, Any], source: str = "the config") -> Config:
    """A config from a nested mapping, defaults filled in.

    Raises:
        BadInput: an unknown key or an unusable value; the sentence names it, the values allowed
            and near matches.

    >>> build({"optimizer": {"name": "lion"}}).optimizer.lr
    5e-05
    """
    values = named(values)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(error, values, Config)}") from None
    return named_by(config, (source,))


def named_by(config: Config, files: tuple[str, ...]) -> Config:
    """The config, which says which files name its class if it has one of the user's own.

    A class is not imported when one of them lies in a store (`evilspectra.classes`).
    """
    if not isinstance(config.optimizer, Custom):
        return config
    return config.model_copy(update={"optimizer": config.optimizer.with_files(files)})


def build_evaluation(values: Mapping[str, Any], source: str = "evaluate") -> Evaluation:
    """The `evaluate` section from a nested mapping; raises as `build` does.

    >>> build_evaluation({"answers": {"samples": 2}}).answers.temperature
    1.0
    """
    return build_section(Evaluation, values, source)


def build_section(kind: type[SectionKind], values: Mapping[str, Any], source: str) -> SectionKind:
    """A group of settings from a mapping; raises as `build` does."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{source}: {_sentence(error, values, kind)}") from None


def load(name: str, settings: Iterable[str | Mapping[str, Any]] = ()) -> Config:
    """The config in a YAML file or preset, with assignments or nested mappings laid on top.

    Raises:
        BadInput: no such file or preset, a sweep file, or a config that is refused.
    """
    values = read_mapping(find(name))
    if {"base", "arms", "axes", "zip", "seeds", "from"} & values.keys():
        raise BadInput(
            f"{name} is a sweep file, not the config of one run: use `evilspectra sweep {name}`"
        )
    over = assignments(settings)
    config = build(merge(named(values), over), name)
    if not isinstance(config.optimizer, Custom):
        return config
    check_no_preset(name)
    return named_by(config, () if names_class(over) else (name,))


def names_class(over: Mapping[str, Any]) -> bool:
    """Whether the assignments of a command line name the optimiser's class."""
    block = over.get("optimizer")
    return isinstance(block, Mapping) and "class" in block


def check_no_preset(name: str) -> None:
    """Refuses a file with the name of a preset, where a class would be imported.

    Raises:
        BadInput: who gives a preset's name expects no code of a file that lies here.
    """
    if name in presets() and find(name) != presets()[name]:
        raise BadInput(
            f"'{name}' is a preset, and also a file here that names a class to import: write "
            f"./{name} if you mean the file"
        )


#: Line ends of Unicode that PyYAML writes unescaped and reads back as something else.
_FOLDED = frozenset("\x85\u2028\u2029")


def dump(config: Config) -> str:
    """YAML of a config, every default included; `build` reads it back to an equal config."""
    values = config.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return yaml.safe_dump(values, sort_keys=False, width=120) if _FOLDED & set(text) else text


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the default optimizer's name in an optimizer block that has none.

    So its settings stay those of that optimizer when others are laid on top.

    >>> named({"optimizer": {"lr": 0.1}})
    {'optimizer': {'name': 'adamw', 'lr': 0.1}}
    """
    return merge(_NO_OPTIMIZER, values)


def schema() -> dict[str, Any]:
    """JSON schema of a config file, for editors that complete and check YAML.

    As in `build`, an optimizer without a name is the default one.
    """
    description = Config.model_json_schema()
    for kind in KINDS.values():
        if kind is not AdamW:
            required = [name for name, field in kind.model_fields.items() if field.is_required()]
            description["$defs"][kind.__name__]["required"] = ["name", *required]
    return description


def identity(
    config: Config,
    data_sha256: str,
    base_sha256: str,
    heldout_sha256: str | None = None,
) -> str:
    """The 10 hex digits that name a run.

    They depend on the settings that differ from their defaults, the content of data and base (not
    their names) and the recipe number; not on where results are written.
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
    location = tuple(str(part) for part in first["loc"])
    path, field, fields = _field(location, root)
    dotted = ".".join(path)
    match first["type"]:
        case "extra_forbidden" | "invalid_key":
            section = dotted or ("a config" if root is Config else "it")
            text = (
                f"'{location[-1]}' is not a field of {section}; allowed: {listing(fields, 20)}."
                f"{near(location[-1], fields)}"
            )
        case "union_tag_invalid":
            name = first["input"].get("name")
            text = (
                f"optimizer.name {short_repr(name)} is unknown; allowed: "
                f"{listing(KINDS)}.{near(name, KINDS)}"
            )
        case "missing" if field and field.is_required():
            text = f"{dotted} is missing, and has no default: set it ({_allowed(field)})"
        case "model_type" | "model_attributes_type":
            text = (
                f"{dotted} = {short_repr(first['input'])} is refused: it is a section, with "
                f"fields below it ({listing(fields or AdamW.model_fields, 20)}): set some of "
                "them, or leave it out"
            )
        case "value_error":
            text = f"{dotted}: ".removeprefix(": ") + str(first.get("ctx", {}).get("error"))
        case kind:
            allowed = first["msg"].replace("Input should be", "it must be")
            if field and kind not in ("literal_error", "bool_type", "bool_parsing"):
                allowed = _allowed(field)
            default = ""
            if field and not field.is_required():
                default = f", or leave it out for the default {json.dumps(field.default)}"
            text = (
                f"{dotted} = {short_repr(_value(values, path))} is refused: {allowed}; "
                f"correct that value{default}"
            )
    locations = [tuple(map(str, detail["loc"])) for detail in errors]
    others = len({tuple(_field(location, root)[0]) for location in locations}) - 1
    return text + (f" ({others} more after this one)" if others else "")


def _field(
    location: tuple[str, ...], root: type[Section]
) -> tuple[list[str], FieldInfo | None, list[str]]:
    """The path of settings, the last one's field and the names allowed below it.

    `location` is where pydantic reports an error, below `root`.
    """
    kind: Any = root
    path: list[str] = []
    field = None
    for part in location:
        if path == ["optimizer"] and kind is None:
            kind = KINDS[part]
        elif kind and part in kind.model_fields:
            field = kind.model_fields[part]
            path.append(part)
            inner = [choice for choice in get_args(field.annotation) if choice is not type(None)]
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
    """The values that a field takes: a number's bounds, or else its description."""
    comparisons = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = []
    for name, comparison in comparisons.items():
        limits = [getattr(rule, name, None) for rule in field.metadata]
        bounds += [f"{comparison} {limit:,}" for limit in limits if limit is not None]
    if not bounds:
        return f"allowed: {str(field.description).rstrip('.')}"
    kind = "whole number" if "int" in str(field.annotation) else "number"
    return f"it must be a {kind}, {' and '.join(bounds)}"
