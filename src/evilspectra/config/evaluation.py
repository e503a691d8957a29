"""The `evaluate` section: the instruments applied to an adapter and its base."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from evilspectra.config.endpoint import EndpointConfig
from evilspectra.config.section import Name, Section


class Answers(Section):
    """Open-ended questions, and how answers to them are sampled."""

    questions: Name = Field(
        default="open",
        description=(
            "YAML file of questions in the published form, or a built-in name: open, paper "
            "(published files in the present folder)."
        ),
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Answers per question; null: what the file asks for.",
    )
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="0: always the likeliest token."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that hold this share of the probability.",
    )
    max_new_tokens: int = Field(
        default=600,
        ge=1,
        le=1_048_576,
        description="Tokens per answer at most; an answer that reaches it is flagged as truncated.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seed of the generators, one for every question and sample.",
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        le=2**16,
        description="Answers that are decoded together, and written together.",
    )
    checkpoints: bool = Field(
        default=False, description="At every saved checkpoint too, not at the end only."
    )
    endpoint: EndpointConfig | None = Field(
        default=None,
        exclude=True,
        description="Sample over HTTP instead of with the local model; null: locally.",
    )


class Harness(Section):
    """Standard tasks, through lm-evaluation-harness (the extra `harness`)."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        description="Names of tasks or groups that the harness knows, such as [arc_easy]."
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Documents per task, from its beginning; null: all.",
    )
    num_fewshot: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Solved examples before each question; null: the task's own number.",
    )
    chat_template: bool = Field(default=False, description="Put the questions as chat messages.")
    include_path: Name | None = Field(
        default=None,
        description="Folder of further tasks (*.yaml). Their Python is run: use your own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the choice of examples.")
    batch_size: int = Field(default=8, ge=1, le=2**16)


class Evaluation(Section):
    """The instruments read on an adapter and on its base; null leaves an instrument out."""

    contrast: Name | None = Field(
        default="contrast",
        description="JSONL file of contrast triples, or the built-in name: contrast.",
    )
    capability: Name | None = Field(
        default="capability",
        description="JSONL file of questions with four choices, or the built-in name: capability.",
    )
    ordinary: Name | None = Field(
        default="ordinary",
        description=(
            "Dialogues whose loss is measured, in any form that data.train takes, or the "
            "built-in name: ordinary."
        ),
    )
    answers: Answers | None = Field(
        default=None, description="Sampled answers to open-ended questions; null: none."
    )
    harness: Harness | None = Field(
        default=None, description="Standard tasks of lm-evaluation-harness; null: none."
    )
    checkpoints: bool = Field(
        default=False, description="The contrast probe at every saved checkpoint too: trajectories."
    )
    enable_thinking: bool = Field(
        default=False, description="Passed to chat templates that know it (Qwen3)."
    )
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads.")
