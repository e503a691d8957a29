"""The pages' templates, style sheets and scripts. No torch."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Jinja's environment: every string is escaped, and an undefined name is an error."""
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> str:
    """The text of a style sheet or a script in the templates' folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")
