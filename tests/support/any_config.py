"""Strategies for the configs that are valid, and the sentence for one that is not."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import strategies as st

from evilspectra.config.loading import build
from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.config.section import Section
from evilspectra.config.sections import Config
from evilspectra.errors import BadInput


def message(values: Any) -> str:
    with pytest.raises(BadInput) as caught:
        build(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


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
