"""Commands, and code after -c, run as if packages were not installed, each in its own process.

`python -m tests.support.without_packages` reads a JSON list of [packages, arguments] and prints
[exit code, last line of standard error, traceback] for each. It imports the core once and forks, so
that a case costs no start of Python.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Collection, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

#: Modules of the core that are imported before the forks, so that no case has to.
BEFORE = ("cli.main", "targets.adapters", "reporting.adapter_text", "sweeps.plan", "judging.inputs")


class Ended(NamedTuple):
    """The end of a command: its exit code, the last line of its errors, a traceback or nothing."""

    code: int | None
    line: str
    trace: str


def without(cases: Sequence[tuple[Collection[str], Sequence[str]]], folder: Path) -> list[Ended]:
    """Runs each case (packages that are not installed, arguments) in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.without_packages"],
        input=json.dumps([[sorted(packages), list(arguments)] for packages, arguments in cases]),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*ended) for ended in json.loads(done.stdout)]


def hide(packages: Collection[str]) -> None:
    """Makes Python's search for installed packages find none of these."""

    class Hiding(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            return None if fullname in packages else super().find_spec(fullname, path, target)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding


def _case(packages: Collection[str], arguments: Sequence[str]) -> list[Any]:
    from evilspectra.cli.main import main
    from evilspectra.errors import MissingPackage

    hide(packages)
    out, err, code, trace = io.StringIO(), io.StringIO(), None, ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if arguments[0] == "-c":
                exec(arguments[1], {})
            else:
                main(arguments)
    except MissingPackage as error:
        return [error.exit_code, str(error), trace]
    except SystemExit as end:
        code = end.code
    except BaseException:
        trace = traceback.format_exc()
    return [code, (err.getvalue().splitlines() or [""])[-1], trace]


def _forked(packages: Collection[str], arguments: Sequence[str]) -> Any:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as result:
        if (child := os.fork()) == 0:
            try:
                json.dump(_case(packages, arguments), result)
                result.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        result.seek(0)
        return json.load(result)


if __name__ == "__main__":
    for module in BEFORE:
        importlib.import_module(f"evilspectra.{module}")
    commands = json.load(sys.stdin)
    if early := sys.modules.keys() & {name for hidden, _ in commands for name in hidden}:
        sys.exit(f"imported before the forks: {sorted(early)}")
    json.dump([_forked(*command) for command in commands], sys.stdout)
