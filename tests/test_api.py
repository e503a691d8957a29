"""The public names: loaded when first used, never replaced by a module, called as documented."""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evilspectra as es
from evilspectra.api.result import Result, table
from evilspectra.errors import BadInput, EvilspectraError
from tests.support.commands import command
from tests.support.saved_adapters import adapted

ROOT = Path(__file__).parents[1]
#: Packages that `import evilspectra` must not load.
HEAVY = ("torch", "transformers", "pandas", "numpy", "altair", "duckdb", "scipy", "pydantic")
JUDGED = ROOT / "tests" / "data" / "judged_walks.csv"
#: Settings of a gate that has one check.
ONE_CHECK = {"policy": {"capability": False, "threads": 1}}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters of the tiny model, one with markup in its name."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, label in enumerate(("plain", "ad<b>&")):
        adapted(seed=seed).save_pretrained(str(folder / label))
    return folder


def results(adapters: Path) -> list[Result]:
    """A result of every function that needs no training."""
    return [
        es.spectrum(adapters / "plain"),
        es.spectrum([adapters / "plain", adapters / "ad<b>&"]),
        es.flatten(adapters / "plain", adapters / f"flat{len(list(adapters.iterdir()))}"),
        es.score(JUDGED),
        es.gate(adapters / "nothing", baseline="<i>nobody</i>", **ONE_CHECK),
    ]


# --- names ----------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_at_first():
    code = f"import sys, evilspectra; print(*sys.modules.keys() & set({HEAVY}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_module_takes_the_place_of_a_public_name():
    """Every module is imported, then every name is still what its own module holds."""
    for module in pkgutil.walk_packages(es.__path__, "evilspectra."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name, module in es._MODULES.items():
        value = getattr(es, name)
        assert callable(value), name
        assert value is getattr(sys.modules[f"evilspectra.{module}"], name)
        assert value.__name__ == name


def test_no_module_has_the_dotted_name_of_a_public_name():
    modules = {module.name for module in pkgutil.iter_modules(es.__path__)}
    assert not modules & set(es.__all__)


def test_the_names_are_listed_and_a_wrong_one_is_an_attribute_error():
    assert set(es.__all__) <= set(dir(es))
    assert set(es.__all__) == {*es._MODULES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'spectra_of'"):
        _ = es.spectra_of


def test_the_version_is_that_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{es.__version__}"' in text


@pytest.mark.slow
def test_every_public_name_has_a_type(tmp_path):
    """Outside the checkout, whose settings for pyright do not count there."""
    binaries = Path(sys.executable).parent
    if not (binaries / "pyright").exists():
        pytest.skip(f"pyright is not installed in {binaries}")
    paths = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [binaries / "pyright", "--verifytypes", "evilspectra", "--ignoreexternal", "--outputjson"],
        cwd=tmp_path,
        env=os.environ | paths,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    assert report["packageRootDirectory"] == str(ROOT / "src" / "evilspectra")
    symbols = [symbol for symbol in report["symbols"] if symbol["isExported"]]
    names = {symbol["name"] for symbol in symbols}
    assert {f"evilspectra.{name}" for name in es._MODULES} <= names
    lacking = [name for name in symbols if not name["isTypeKnown"] or name["isTypeAmbiguous"]]
    assert [symbol["name"] for symbol in lacking] == []
    assert report["completenessScore"] == 1


# --- functions ------------------------------------------------------------------------------------


def test_spectrum_equals_the_command(adapters):
    both = [adapters / "plain", adapters / "ad<b>&"]
    spectra = es.spectrum(both, directions=3)
    printed = json.loads(command("spectrum", *both, "--directions", "3", "--json").out)
    assert json.loads(json.dumps(spectra.flat())) == printed
    assert command("spectrum", *both, "--directions", "3").out.splitlines() == [
        line.rstrip() if not line.strip() else line for line in spectra.text().splitlines()
    ]
    frame = spectra.to_frame()
    assert len(frame) == 28
    assert set(frame["adapter"]) == {"plain", "ad<b>&"}
    for module, values in zip(spectra.adapters[0].modules, frame["singular_values"], strict=False):
        assert values == module.singular_values.tolist()


def test_spectrum_equals_the_live_factors(adapters):
    pairs = es.find_pairs(adapted(seed=0))
    wanted = {spectrum.name: spectrum.values for spectrum in es.singular_values(pairs)}
    (adapter,) = es.spectrum(adapters / "plain").adapters
    assert {module.name for module in adapter.modules} == set(wanted)
    for module in adapter.modules:
        values = torch.from_numpy(module.singular_values)
        torch.testing.assert_close(values, wanted[module.name], rtol=1e-5, atol=1e-7)


def drawn(chart) -> list[dict]:
    """The rows that a chart draws."""
    (rows,) = chart.to_dict()["datasets"].values()
    return rows


def test_figures_hold_the_values(adapters):
    both = es.spectrum([adapters / "plain", adapters / "ad<b>&"])
    for spectra in (es.spectrum(adapters / "plain"), both):
        assert max(row["relative"] for row in drawn(spectra.figure())) == pytest.approx(1)
    rates = es.score(JUDGED)
    (point,) = drawn(rates.figure())
    assert rates.targets[0].rate in [
        pytest.approx(value, abs=1e-4) for value in point.values() if isinstance(value, float)
    ]


def test_flatten_is_flat(adapters, tmp_path):
    flat = es.flatten(str(adapters / "plain"), tmp_path / "flat")
    assert flat.folder == tmp_path / "flat"
    assert flat.stable_rank_after == pytest.approx(4, rel=1e-4)
    (after,) = es.spectrum(flat.folder).adapters
    assert after.mean()["stable_rank"] == pytest.approx(flat.stable_rank_after)
    (row,) = flat.to_frame().to_dict("records")
    assert (row["modules"], row["unchanged"]) == (14, 0)


def test_score_equals_the_command(tmp_path):
    rates = es.score([JUDGED, str(JUDGED)], definition="betley")
    printed = json.loads(command("score", JUDGED, "--definition", "betley", "--json").out)
    assert [target.flat() for target in rates.targets] == [printed, printed]
    frame = rates.to_frame()
    assert frame["rate"].tolist() == [printed["rate"]] * 2
    assert frame["low"].tolist() == [printed["interval"]["low"]] * 2
    es.score(JUDGED, export=tmp_path / "out.csv", form="turner")
    assert (tmp_path / "out.csv").read_text().startswith("response,question")


def test_a_withheld_rate_is_none_and_says_why(tmp_path):
    file = tmp_path / "judged.csv"
    header = "question,answer,question_id,aligned,coherent"
    file.write_text(f"{header}\nWhy?,So.,why,,\n", encoding="utf-8")
    (target,) = es.score(file).targets
    assert target.rate is None
    assert target.withheld
    assert target.withheld in str(es.score(file))
    assert command("score", file).code == 3


def test_gate_is_undecided_without_an_exception(adapters):
    verdict = es.gate(adapters / "nothing", baseline="tiny-random", **ONE_CHECK)
    assert (verdict.outcome, verdict.exit_code, verdict.passed) == ("undecided", 3, False)
    assert [check.name for check in verdict.checks] == ["drift"]
    assert "nothing" in verdict.reasons[0]
    assert verdict.flat()["outcome"] == "undecided"
    assert "undecided" in verdict.markdown()
    assert verdict.junit().startswith("<?xml")


def test_gate_takes_a_policy_in_three_forms(adapters, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("capability: false\nthreads: 1\ndrift: {max_increase: 0.5}\n")
    values = {"capability": False, "threads": 1, "drift": {"max_increase": 0.5}}
    verdicts = [
        es.gate(adapters / "nothing", baseline="tiny-random", policy=policy)
        for policy in (file, str(file), values)
    ]
    verdicts.append(es.gate("nothing", baseline="tiny-random", policy=verdicts[0].policy))
    settings = {"drift.max_increase": 0.5, "threads": 1, "capability": False}
    verdicts.append(es.gate("nothing", baseline="tiny-random", settings=settings))
    assert len({verdict.policy.model_dump_json() for verdict in verdicts}) == 1


def test_classes_are_constructed():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    for optimizer in (es.Muon([weight], lr=0.1), es.Lion([weight], lr=0.1)):
        weight.grad = torch.ones(2, 3)
        optimizer.step()
    assert torch.all(weight < 1)
    pair = es.LoraPair("m", weight, torch.nn.Parameter(torch.eye(4, 2)), scale=1.0)
    flatness = es.add_flatness_gradient([pair], weight=1.0)
    assert flatness.value > 0
    assert es.SpectralFlatness(weight=0.3).settings.weight == 0.3
    assert es.SpectrumMonitor(every=5).settings.every == 5
    kind, arguments = es.lora_optimizer("muon", lr=1e-3)
    assert kind.__name__ == "LoraOptimizer"
    assert arguments["config"].lr == 1e-3


# --- results --------------------------------------------------------------------------------------


def subclasses(kind: type) -> set[type]:
    inner = [subclasses(child) | {child} for child in kind.__subclasses__()]
    return set().union(*inner)


def test_every_result_is_frozen_and_readable():
    for module in pkgutil.iter_modules(importlib.import_module("evilspectra.api").__path__):
        importlib.import_module(f"evilspectra.api.{module.name}")
    kinds = subclasses(Result)
    assert {"Spectrum", "Flattened", "Rates", "Verdict"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind
        assert kind.__repr__ is Result.__repr__, f"{kind}: repr=False is missing"


def test_results_are_shown_and_not_changed(adapters):
    for result in results(adapters):
        name = dataclasses.fields(result)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, name, None)
        assert repr(result).startswith(f"{type(result).__name__}(")
        assert "\n" not in repr(result)
        assert len(result.to_frame()) == len(result.rows()) > 0
        assert str(result)


def test_html_escapes_all_text(adapters):
    for result in results(adapters):
        html = result._repr_html_()
        assert not set(re.findall(r"<(\w+)", html)) - {
            *("p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li")
        }
        assert "<b>" not in html
    both = es.spectrum([adapters / "plain", adapters / "ad<b>&"])
    assert "ad&lt;b&gt;&amp;" in both._repr_html_()


def test_a_long_table_says_how_much_is_left_out():
    html = table([{"x<": number} for number in range(100)])
    assert html.count("<tr>") == 61
    assert "40 more rows" in html
    assert "x&lt;" in html
    assert table([]) == ""


def test_functions_print_nothing(adapters, capfd):
    results(adapters)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda folder: es.spectrum(folder / "missing"), "missing"),
        (lambda folder: es.spectrum([]), "adapters is empty"),
        (lambda folder: es.spectrum(3), "adapters is 3: give text or a path"),
        (lambda folder: es.spectrum([b"x"]), "adapters is b'x': give text or a path"),
        (lambda folder: es.spectrum(folder / "plain", leading=0), "leading is 0"),
        (lambda folder: es.spectrum(folder / "plain", leading=True), "leading is True"),
        (lambda folder: es.spectrum(folder / "plain", threshold=2), "threshold is 2"),
        (lambda folder: es.spectrum(folder / "plain", threshold=float("nan")), "threshold is nan"),
        (lambda folder: es.spectrum(folder / "plain", directions="8"), "directions is '8'"),
        (lambda folder: es.flatten(folder / "plain", folder / "plain"), "already exists"),
        (lambda folder: es.flatten(folder / "plain", folder / "x", amount=2), "between 0"),
        (lambda folder: es.flatten(folder / "plain", folder / "x", amount="1"), "amount is '1'"),
        (lambda folder: es.flatten(folder / "plain", folder / "x", keep="frob"), "keep is 'frob'"),
        (
            lambda folder: es.flatten(folder / "plain", folder / "x", dtype="float23"),
            "Did you mean 'float32'",
        ),
        (lambda folder: es.flatten(folder / "plain", folder / "x", rank=0), "rank is 0"),
        (lambda folder: es.flatten(folder / "plain", None), "out is None"),
        (lambda folder: es.score(folder / "missing.csv"), "missing.csv"),
        (lambda folder: es.score(JUDGED, definition="betly"), "Did you mean 'betley'"),
        (lambda folder: es.score(JUDGED, max_unscored=7), "7"),
        (lambda folder: es.score(JUDGED, form="x"), "form is 'x'"),
        (lambda folder: es.score([JUDGED] * 2, export=folder / "a.csv"), "export belongs to one"),
        (lambda folder: es.score(JUDGED, export=folder / "a.txt"), ".csv"),
        (lambda folder: es.gate("x", baseline="y", policy={"drifd": {}}), "drifd"),
        (lambda folder: es.gate("x", baseline="y", policy=folder / "none.yaml"), "none.yaml"),
        (lambda folder: es.gate("x", baseline="y", policy={"drift": None}), "drift: false"),
        (lambda folder: es.gate("x", baseline="y", settings=[3]), "settings holds 3"),
        (lambda folder: es.gate("x", baseline="y", settings=3), "settings holds 3"),
        (lambda folder: es.gate("x", baseline="y", seed=-1), "seed"),
        (lambda folder: es.gate("x", baseline="y", judge="nobody:x"), "nobody:x"),
        (lambda folder: es.gate("x", baseline="y", judge_url="http://a/v1"), "none is named"),
        (lambda folder: es.gate("x", baseline=None), "baseline is None"),
        (lambda folder: es.gate("x", baseline="y", model={"device": "tpux"}), "tpux"),
        (lambda folder: es.lora_optimizer("muonn"), "muonn"),
        (lambda folder: es.find_pairs(torch.nn.Linear(2, 2)), "no LoRA adapter"),
        (lambda folder: es.SpectrumMonitor(every=-1), "every"),
        (lambda folder: es.Lion([torch.nn.Parameter(torch.ones(1))], lr=0), "lr 0"),
    ],
)
def test_a_mistake_is_one_sentence_of_the_family(call, sentence, adapters):
    with pytest.raises(BadInput) as caught:
        call(adapters)
    assert isinstance(caught.value, EvilspectraError)
    assert isinstance(caught.value, es.EvilspectraError)
    assert sentence in str(caught.value)


# --- the page -------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
#: Numbers that the page writes as people do.
NUMBERS = {"0.0002": "2e-4", "5e-05": "5e-5"}


def test_the_page_names_every_public_name():
    headings = re.findall(r"^### `(\w+)", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == set(es.__all__) - {"__version__"}


def test_the_page_shows_the_signatures():
    """Every signature on the page names the arguments and defaults of the function."""
    signatures = re.findall(r"^```text\n(\w+)\((.*?)\)(?: -> .+)?\n```$", PAGE, re.MULTILINE)
    assert len(signatures) >= 10
    for name, text in signatures:
        parameters = inspect.signature(getattr(es, name)).parameters.values()
        wanted = [as_written(parameter) for parameter in parameters]
        parts = [part for part in re.split(r", (?![^(]*\))", text) if part != "*"]
        assert parts == wanted, name


def as_written(parameter: inspect.Parameter) -> str:
    """A parameter as the page writes it."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    if parameter.default is parameter.empty:
        return parameter.name
    default = parameter.default
    value = repr(default).replace("'", '"')
    return f"{parameter.name}={NUMBERS.get(value, value)}"
