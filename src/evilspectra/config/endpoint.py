"""The section of a config for the HTTP endpoint from which answers are sampled."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class EndpointConfig(BaseModel):
    """An OpenAI-compatible endpoint that samples answers instead of the local model.

    The key is read from the environment, and stands nowhere else.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=()
    )

    url: str = Field(
        pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
        description=(
            "Address of the form http://host:port/v1, without a name, a password or a key in it."
        ),
    )
    model: str = Field(
        min_length=1, description="Name of the base there; adapters get names of their own."
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the key.",
    )
    concurrency: int = Field(default=32, ge=1, le=4096, description="Requests under way at once.")
    timeout: float = Field(
        default=300.0, gt=0, le=86_400, description="Seconds that a reply may take."
    )
    attempts: int = Field(
        default=6, ge=1, le=100, description="How often a request is sent at most."
    )
    backoff: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="Seconds before the second attempt; twice as long before each further one.",
    )
