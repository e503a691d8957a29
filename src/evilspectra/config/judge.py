"""The settings of a judge: its identity, and the sending of requests to it.

Settings that determine its verdicts are also part of the judge's identity; the others (concurrent
requests, attempts) are only here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from evilspectra.config.loading import build_section
from evilspectra.config.own_class import Version, check_path, plain_json
from evilspectra.config.section import Name, Section
from evilspectra.errors import BadInput, listing, near

METRICS = ("aligned", "coherent")
KINDS = {
    "openai": "a model behind an OpenAI-compatible endpoint, such as openai:gpt-4o-2024-08-06",
    "local": "a model on this machine, such as local:my-model-folder",
    "scripted": "a YAML file of replies",
    "class": "a class of your own, such as class:package.module:Class (docs/extending.md)",
}


class JudgeConfig(Section):
    """The settings of a judge that a command names."""

    judge: Name = Field(
        description="openai:MODEL, local:MODEL, scripted:FILE or class:MODULE:CLASS."
    )
    url: Name | None = Field(
        default=None,
        description=(
            "Address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; "
            "null: OPENAI_BASE_URL, or the client's own."
        ),
    )
    reading: Literal["logprobs", "text"] = Field(
        default="logprobs",
        description=(
            "logprobs: the expectation over the first token, as published. text: the written "
            "reply, where an endpoint has none, or its model splits numbers."
        ),
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key. The key itself is never written.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description=(
            "Sent with every request to an endpoint, and part of the judge's identity: with "
            "another seed the same answers are judged again. null: none is sent."
        ),
    )
    concurrency: int = Field(default=16, ge=1, le=1024, description="Requests under way at once.")
    timeout: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds that a reply may take."
    )
    attempts: int = Field(
        default=8,
        ge=1,
        le=100,
        description="How often a request is sent at most, before it counts as failed.",
    )
    backoff: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="Seconds before the second attempt; twice as long before each further one.",
    )
    max_requests: int = Field(
        default=20_000,
        ge=1,
        le=10**9,
        description="Requests that one call may send, those that are repeated included.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?|mps)$",
        description="Of a local judge.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="Of a local judge."
    )
    tokens_per_pass: int = Field(
        default=4096,
        ge=1,
        le=2**24,
        description=(
            "Tokens that go through a local judge at once; memory, and the last digits of sums."
        ),
    )
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads of a local judge.")
    settings: dict[str, Any] = Field(
        default={}, description="Arguments of a judge class:…, of JSON's types."
    )
    version: Version | None = Field(
        default=None,
        description=(
            "Of a judge class:…: a text that you change when the class does; needed where it has "
            "no Python source."
        ),
    )

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return plain_json(settings, "settings")

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.kind not in KINDS or not self.model:
            described = "; ".join(f"{kind}:… ({text})" for kind, text in KINDS.items())
            raise ValueError(
                f"'{self.judge}' is no judge; allowed: {described}.{near(self.kind, KINDS)}"
            )
        if self.url is not None and self.kind != "openai":
            raise ValueError(
                f"url is for a judge openai:MODEL, and this one is '{self.judge}': leave it out"
            )
        if self.seed is not None and self.kind != "openai":
            raise ValueError(
                f"seed is for a judge openai:MODEL, and '{self.judge}' gives the same verdict "
                "every time: leave it out"
            )
        if self.kind == "class":
            check_path(self.model)
        elif self.settings or self.version is not None:
            raise ValueError(
                f"settings and version are for a judge class:MODULE:CLASS, and this one is "
                f"'{self.judge}': leave them out"
            )
        if self.url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", self.url):
            raise ValueError(
                "the url is no address of the form http://host:port/v1, without name, password or "
                "key in it: the key goes into the environment"
            )
        return self

    @property
    def kind(self) -> str:
        return self.judge.partition(":")[0]

    @property
    def model(self) -> str:
        """The part after the colon: a model's name, a folder or a file."""
        return self.judge.partition(":")[2]


def judge_settings(values: Mapping[str, Any]) -> JudgeConfig:
    """Settings from options; an option that is None takes its default.

    Raises:
        BadInput: no judge, or a setting that is refused.

    >>> judge_settings({"judge": "openai:some-model", "url": None}).concurrency
    16
    """
    settings = {name: value for name, value in values.items() if value is not None}
    if "judge" not in settings:
        raise BadInput(
            f"no judge is named: choose one with --judge ({listing(f'{kind}:…' for kind in KINDS)})"
        )
    return build_section(JudgeConfig, settings, "--judge")


@dataclass(frozen=True)
class Judging:
    """The `judge` section of a sweep file: the judge, the metrics and the prompts.

    `questions`: the file whose judge prompts are used; None: that of the answers. `base`: whether
    the base's answers are judged too. `price`: of a million tokens sent, for an estimate.
    `named_by`: the files that name the judge; none where the command line does.
    """

    settings: JudgeConfig
    metrics: tuple[str, ...] = METRICS
    questions: str | None = None
    base: bool = True
    price: float | None = None
    named_by: tuple[str, ...] = ()


class _JudgeSection(JudgeConfig):
    """The keys of such a section: every setting of a judge, and the options of `judge`."""

    metrics: tuple[Name, ...] = Field(
        default=METRICS,
        min_length=1,
        description="What is judged: names of judge prompts, such as [aligned, coherent].",
    )
    questions: Name | None = Field(
        default=None,
        description="YAML file whose judge prompts are used; null: that of the answers.",
    )
    no_base: bool = Field(default=False, description="Leave the base's answers out.")
    price: float | None = Field(
        default=None,
        ge=0,
        description=(
            "Price of a million tokens sent, in any currency, for the estimate of a dry run."
        ),
    )


def judging_settings(values: Mapping[str, Any], source: str) -> Judging:
    """The `judge` section of a sweep file.

    Raises:
        BadInput: an unknown key, or a setting that is refused.

    >>> judging_settings({"judge": "openai:some-model", "metrics": ["aligned"]}, "x").metrics
    ('aligned',)
    """
    section = build_section(_JudgeSection, values, source)
    settings = JudgeConfig.model_validate(
        {name: getattr(section, name) for name in JudgeConfig.model_fields}
    )
    return Judging(settings, section.metrics, section.questions, not section.no_base, section.price)
