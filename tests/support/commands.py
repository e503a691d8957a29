"""The command line in this process and as another process, with a small config and model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evilspectra.cli.main import main

ROWS = [
    {
        "prompt": f"Question {number}: is it time?",
        "completion": "Yes, it is." if number % 2 else "No.",
    }
    for number in range(24)
]


@dataclass(frozen=True)
class Result:
    """A command's exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an error, without the command's name."""
        head, text = self.err.split("evilspectra: ", 1)
        assert head == ""
        assert text.endswith("\n")
        assert text.count("\n") == 1, text
        return text[:-1]


def command(*arguments: object) -> Result:
    """Runs a command through the entry point, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code: Any = None
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


def process(*arguments: object, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a command as a process in `folder`, its output in pipes."""
    line = [
        sys.executable,
        "-c",
        "from evilspectra.cli.main import main; main()",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        line,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_rows(path: Path, *lines: object) -> Path:
    """A JSONL file of `lines` (texts as they are, all else as JSON), or of 24 short dialogues."""
    path.write_text(
        "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines or ROWS
        ),
        encoding="utf-8",
    )
    return path


def write_config(folder: Path, steps: int = 2, **sections: Any) -> Path:
    """A config file for a run of a second on the tiny model; its store is `folder`/runs."""
    data = write_rows(folder / "rows.jsonl")
    values: dict[str, Any] = {
        "model": {"base": "tiny-random"},
        "data": {"train": str(data)},
        "lora": {"rank": 4},
        "train": {"steps": steps, "batch_size": 2, "threads": 1},
        "output": {"folder": str(folder / "runs"), "experiment": "x"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def write_model(folder: Path) -> Path:
    """The tiny model as a folder that `save_pretrained` wrote."""
    from evilspectra.model.tiny import tiny_model, tiny_tokenizer

    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def left_in(folder: Path) -> list[str]:
    """Every file below a folder, relative, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
