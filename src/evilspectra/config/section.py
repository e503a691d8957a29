"""The base of every section of a config: frozen settings that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evilspectra.text import short_repr


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, values: Any) -> Any:
        """Refuses true and false for a number, which pydantic would read as 1 and 0."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            elements = value if isinstance(value, list | tuple) else [value]
            if (
                field
                and field.annotation is not bool
                and any(isinstance(item, bool) for item in elements)
            ):
                raise ValueError(
                    f"{name} = {short_repr(value)} is refused: true and false stand for no number "
                    "and no name: correct that value"
                )
        return values


SectionKind = TypeVar("SectionKind", bound=Section)
Name = Annotated[str, Field(min_length=1)]
