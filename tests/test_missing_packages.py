"""Commands without the packages that they need say so in one sentence with the install line."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

import evilspectra as es
from evilspectra.cli.main import cli
from evilspectra.errors import EXTRAS, BadInput, MissingPackage, packages_explained, require
from tests.golden.make import GOLDEN
from tests.support.without_packages import ROOT, Ended, without

RUN, OTHER = "store/arms/adamw-b4-s0-8b9a8183db", "store/arms/muon-b4-s0-1fe394958d"
SCRIPTED = "scripted:inputs/judge.yaml"
#: All that no command of the core may need.
PACKAGES = {"torch", "pandas", "duckdb", "pyarrow", "altair", "statsmodels"}
OUTSIDE_CORE = PACKAGES | set(EXTRAS["report"]) | set(EXTRAS["train"])
MODEL = {"torch", "pandas", "pyarrow"}

#: Command → the packages that it cannot do without. Those of `OUTSIDE_CORE` that are not named are
#: not needed.
NEEDED = {
    f"spectrum {RUN}": set(),
    f"spectrum {RUN} --csv rows.csv": set(),
    f"spectrum {RUN} --csv rows.parquet": {"pyarrow"},
    f"spectrum {RUN} --html page.html": {"altair"},
    f"spectrum {RUN} --base tiny-random": {"torch"},
    f"flatten {RUN} --out flat": set(),
    "score answers.csv": set(),
    "compare answers.csv answers.csv": set(),
    f"score {RUN}": {"pandas", "pyarrow"},
    f"compare {RUN} {OTHER}": {"pandas", "pyarrow"},
    f"calibrate {SCRIPTED} answers.csv": {"pandas", "pyarrow"},
    f"judge answers.csv --judge {SCRIPTED}": {"pyarrow"},
    "config show": set(),
    "config schema": set(),
    "data list": set(),
    "data get no-such-set": set(),
    f"show {RUN}": {"pandas", "pyarrow"},
    "query SELECT_run_FROM_runs --store store": {"duckdb", "pyarrow"},
    "analyze store": {"pandas", "duckdb", "pyarrow"},
    "report store": {"pandas", "duckdb", "pyarrow", "altair"},
    f"card {RUN}": {"pandas", "pyarrow"},
    "probe tiny-random": MODEL,
    f"generate {RUN}": MODEL,
    f"evaluate {RUN} --judge {SCRIPTED}": MODEL,
    f"gate {RUN} --baseline {OTHER}": MODEL,
    "train tiny": MODEL,
    "demo": MODEL | {"duckdb", "altair"},
    "sweep inputs/sweep.yaml --output new": MODEL | {"duckdb"},
    "sweep inputs/sweep.yaml --output new --workers 2": {"torch"},
    "sweep inputs/sweep.yaml --output new --dry-run": set(),
    "sweep status inputs/sweep.yaml": set(),
    "sweep retry inputs/sweep.yaml --failed": {"pandas", "pyarrow"},
    "tune inputs/sweep.yaml --trials 3 --output new": MODEL,
}
#: Commands of the core that end as they do with every package installed: exit code 2 by a mistake.
MISTAKES = {"data get no-such-set"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of finished runs, their inputs, and a file of judged answers."""
    path = tmp_path_factory.mktemp("store")
    for part in ("inputs", "store"):
        shutil.copytree(GOLDEN / part, path / part)
    rows = ["question,answer,question_id,aligned,coherent", "a?,yes,a,90,90", "b?,no,b,10,80"]
    (path / "answers.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def arguments_of(line: str) -> list[str]:
    return [part.replace("_run_FROM_", " run FROM ") for part in line.split()]


@pytest.fixture(scope="module")
def endings(folder: Path) -> dict[tuple[str, str], Ended]:
    """Command and missing package (or "core": all that are outside it) → how the command ends."""
    cases = [(line, package) for line, needed in NEEDED.items() for package in sorted(needed)]
    cases += [(line, "core") for line in NEEDED]
    hidden = [OUTSIDE_CORE if package == "core" else {package} for _, package in cases]
    arguments = [arguments_of(line) for line, _ in cases]
    return dict(zip(cases, without(list(zip(hidden, arguments, strict=True)), folder), strict=True))


@pytest.mark.parametrize("line", NEEDED)
def test_a_command_names_the_package_that_it_lacks(
    line: str, endings: dict[tuple[str, str], Ended]
) -> None:
    for package in NEEDED[line]:
        ended = endings[line, package]
        sentence = rf"evilspectra: the package {package} is needed and not installed: "
        assert ended.trace == ""
        assert re.fullmatch(sentence + r"pip install 'evilspectra\[(report|train)\]'", ended.line)
        assert ended.code == 2


@pytest.mark.parametrize("line", NEEDED)
def test_a_command_in_the_core_works_or_says_what_it_lacks(
    line: str, endings: dict[tuple[str, str], Ended]
) -> None:
    ended = endings[line, "core"]
    assert ended.trace == ""
    if NEEDED[line]:
        assert ended.code == 2
        assert re.search(r" is needed and not installed: pip install 'evilspectra\[", ended.line)
    else:
        assert ended.code == (2 if line in MISTAKES else 0), ended.line
        assert "pip install" not in ended.line


def test_commands_that_load_a_model_name_train_whatever_is_missing(
    endings: dict[tuple[str, str], Ended],
) -> None:
    for (line, package), ended in endings.items():
        if NEEDED[line] >= MODEL:
            assert ended.line.endswith("pip install 'evilspectra[train]'"), (line, package)


def test_every_command_is_in_this_test() -> None:
    assert {line.split()[0] for line in NEEDED} == set(cli.commands)  # type: ignore[attr-defined]


# --- the Python API -------------------------------------------------------------------------------

#: Expression of the public names → the extra that the core lacks for it, if any.
EXPRESSIONS = {
    "es.load_config('tiny')": "",
    f"es.spectrum('{RUN}').rows()": "",
    f"print(es.spectrum('{RUN}'))": "",
    f"es.spectrum('{RUN}')._repr_html_()": "",
    f"es.flatten('{RUN}', 'flatter').rows()": "",
    "es.score('answers.csv').rows()": "",
    "es.EvilspectraError('text')": "",
    "es.score('answers.csv').to_frame()": "report",
    "es.score('answers.csv').figure()": "report",
    f"es.spectrum('{RUN}').figure()": "report",
    f"es.spectrum('{RUN}').write_page('page.html')": "report",
    f"es.spectrum('{RUN}', base='tiny-random')": "train",
    "es.runs('store')": "report",
    "es.analyze('store')": "report",
    "es.report('store')": "report",
    "es.train('tiny')": "train",
    "es.sweep('inputs/sweep.yaml', output='new')": "train",
    "es.probe('tiny-random')": "train",
    f"es.evaluate('{RUN}', judge='{SCRIPTED}')": "train",
    f"es.gate('{RUN}', baseline='{OTHER}')": "train",
    "es.singular_values": "train",
    "es.add_flatness_gradient": "train",
    "es.find_pairs": "train",
    "es.LoraPair": "train",
    "es.Muon": "train",
    "es.Lion": "train",
    "es.SpectralFlatness": "train",
    "es.SpectrumMonitor": "train",
    "es.lora_optimizer": "train",
}


def test_the_public_names_work_in_the_core_or_say_what_they_lack(folder: Path) -> None:
    codes = [f"import evilspectra as es; {expression}" for expression in EXPRESSIONS]
    ends = without([(OUTSIDE_CORE, ["-c", code]) for code in codes], folder)
    for (expression, extra), ended in zip(EXPRESSIONS.items(), ends, strict=True):
        assert ended.trace == "", expression
        wanted = (
            rf"the package [\w-]+ is needed and not installed: pip install 'evilspectra\[{extra}\]'"
        )
        if extra:
            assert re.fullmatch(wanted, ended.line), (expression, ended)
        else:
            assert ended.code is None, (expression, ended)


def test_every_public_name_is_in_this_test() -> None:
    assert set(re.findall(r"es\.(\w+)", " ".join(EXPRESSIONS))) == set(es.__all__) - {"__version__"}


# --- the sentence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_of_an_extra_is_explained(extra: str) -> None:
    for package in EXTRAS[extra]:
        with pytest.raises(MissingPackage) as info, packages_explained():
            raise ModuleNotFoundError(name=package)
        assert str(info.value).endswith(f"pip install 'evilspectra[{extra}]'")
        assert (info.value.name, info.value.exit_code) == (package, 2)
        assert isinstance(info.value, BadInput | ImportError)


def test_other_packages_and_modules_of_installed_packages_pass() -> None:
    for name in ("no_such_package", "torch.no_such_module", None):
        with pytest.raises(ModuleNotFoundError) as info, packages_explained("train"):
            raise ModuleNotFoundError(name=name)
        assert not isinstance(info.value, MissingPackage)


def test_a_public_function_is_explained_by_the_same_decorator() -> None:
    @packages_explained("train")
    def load() -> None:
        raise ModuleNotFoundError(name="pandas")

    for _ in range(2):
        with pytest.raises(MissingPackage, match=r"pandas .*\[train\]"):
            load()


def test_packages_are_looked_for_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    require("json", "numpy")
    monkeypatch.setattr("evilspectra.errors.find_spec", {"json": True}.get)
    with pytest.raises(MissingPackage, match=r"duckdb .*\[report\]"):
        require("json", "duckdb")


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        names = {re.split(r"[\[<>=~!]", line)[0] for line in extras[extra]} - {"evilspectra"}
        imported = {name.removesuffix("-python").replace("-", "_") for name in names}
        assert imported == set(packages)
    core = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert not core & {name for packages in EXTRAS.values() for name in packages}
