"""Optimisers and judges of the user's own: docs/extending.md as written, laws, and attacks."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evilspectra.classes import in_store
from evilspectra.config import loading
from evilspectra.config.judge import judge_settings
from evilspectra.errors import BadInput, EvilspectraError, Interrupted, RunFailed
from evilspectra.executors.stages import Task, carry_out_elsewhere
from evilspectra.judging.judge import Request
from evilspectra.judging.make import make_judge
from evilspectra.model.reuse import Loaded
from evilspectra.optim.own import build_own, pinned, relative_rates
from evilspectra.store.run import RunFolder
from evilspectra.sweeps.file import load_sweep
from evilspectra.tables.tidy import runs_frame
from evilspectra.training.identity import locate
from evilspectra.training.train import train
from tests.support.commands import command
from tests.support.small_items import TRIPLES, write_lines
from tests.support.tiny_runs import tiny_config
from tests.test_resume import same_results, signal_in_step

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

OPTIMISER = """
import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, params, lr, decay=0.5):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["decay"]).add_(p.grad)
                p.sub_(group["lr"] * mean.sign())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with Python's modules and its path as before afterwards."""
    current = tmp_path / "here"
    current.mkdir()
    monkeypatch.chdir(current)
    # Folders of other tests may lie beside this one and hold runs; those above home are no stores.
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield current
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Removes the modules that were imported from a folder, as in a new process."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def write(name: str, source: str) -> str:
    """Writes a module, and forgets an earlier one of its name; returns the name."""
    Path(f"{name}.py").write_text(source, encoding="utf-8")
    shutil.rmtree("__pycache__", ignore_errors=True)
    sys.modules.pop(name, None)
    return name


def own(path: str, **values: Any) -> dict[str, Any]:
    return {"optimizer": {"name": "custom", "class": path, "lr": 3e-3, **values}}


def refusal(function: Any, *arguments: Any, kind: type[EvilspectraError] = BadInput) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- the page -------------------------------------------------------------------------------------


def test_the_page_runs_as_written(folder):
    ran = []
    for language, block in BLOCKS:
        if language == "csv":
            (folder / "answers.csv").write_text(block, encoding="utf-8")
        elif language == "bash":
            for line in block.splitlines():
                forget(folder)
                ran.append((line, command(*shlex.split(line)[1:])))
                trains = "sweep" in line
                assert ("my_optimisers" in sys.modules) is trains, line
        else:
            name = block.splitlines()[0].removeprefix("# ")
            (folder / name).write_text(block, encoding="utf-8")
    assert [(line, result.err) for line, result in ran if result.code] == []
    assert len(ran) == 5
    config = load_sweep("plus.yaml").configs[-1]
    label = config.optimizer.label  # type: ignore[union-attr]
    assert re.fullmatch(r"LoraPlus@[0-9a-f]{6}", label)
    sweep, analysis, _, _, score = (result.out for _, result in ran)
    assert label in sweep
    assert label in analysis
    page = (folder / "runs" / "plus" / "report.html").read_text(encoding="utf-8")
    assert label in page
    assert "class:my_judges:Keywords" in score
    frame = runs_frame(folder / "runs")
    assert set(frame["optimizer"]) == {"adamw", label}
    run = RunFolder(next((folder / "runs" / "plus").glob("LoraPlus-b4-s0-*")))
    assert label in command("show", run.path).out
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    assert "my_optimisers:LoraPlus, lr 0.001; ratio 4, weight_decay 0; source sha256" in card
    again = command("sweep", "plus.yaml", "--quiet")
    assert "4 runs: 0 trained, 4 done before" in again.out


# --- laws of an optimiser -------------------------------------------------------------------------


def test_a_stopped_run_resumes_to_the_bytes_of_its_twin(tmp_path, monkeypatch):
    """Momentum, dropout, the penalty and a schedule; and the state of torch's random numbers."""
    write("sign_a", OPTIMISER.replace('["lr"] *', '["lr"] * torch.rand(()) *'))
    sections = loading.merge(
        own("sign_a:Sign", settings={"decay": 0.8}),
        {
            "flatness": {"weight": 0.1},
            "lora": {"dropout": 0.1},
            "schedule": {"name": "cosine"},
            "train": {"steps": 7, "batch_size": 4, "resume_every": 3},
        },
    )
    undisturbed = train(
        tiny_config(tmp_path, **sections, output={"folder": str(tmp_path / "undisturbed")})
    )
    config = tiny_config(tmp_path, **sections)
    signal_in_step(monkeypatch, 5, signal.SIGINT)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.undo()
    os.chdir(tmp_path / "here")
    same_results(undisturbed, train(config))
    rates = undisturbed.read("steps")["lr"]
    assert rates.iloc[-1] < rates.max() / 5


def test_torchs_own_optimiser_gives_the_bytes_of_the_built_in(tmp_path):
    """The checks of a user's class, the second step taken twice, leave no trace in a result."""
    settings = {"betas": [0.9, 0.999], "eps": "1e-8", "weight_decay": 0.01, "foreach": True}
    steps = {"train": {"steps": 4}, "lora": {"dropout": 0.1}}
    first = train(tiny_config(tmp_path, **own("torch.optim:AdamW", settings=settings), **steps))
    second = train(tiny_config(tmp_path, optimizer={"name": "adamw", "lr": 3e-3}, **steps))
    adapters = [run.adapter / "adapter_model.safetensors" for run in (first, second)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert first.name.startswith("AdamW-b8-s0-")


def test_groups_keep_the_ratio_of_their_rates(tmp_path):
    write("plus_a", BLOCKS[0][1])
    config = tiny_config(tmp_path, **own("plus_a:LoraPlus", settings={"ratio": 4})).optimizer
    named = [(f"x.lora_{part}.weight", torch.nn.Parameter(torch.ones(2, 2))) for part in "AB"]
    optimizer = build_own(config, named)
    assert relative_rates(optimizer, config) == [1, 4]


def test_the_run_id_follows_name_settings_source_and_version(tmp_path):
    def name(source: str = OPTIMISER, path: str = "sign_b:Sign", **values: Any) -> str:
        write(path.split(":")[0], source)
        return locate(tiny_config(tmp_path, **own(path, **values)))[0].name

    first = name()
    assert name() == first
    others = [
        name(OPTIMISER + "# edited\n"),
        name(OPTIMISER.replace("0.5", "0.6")),
        name(settings={"decay": 0.5}),
        name(lr=1e-3),
        name(version="2"),
        name(path="sign_c:Sign"),
        name(OPTIMISER.replace("Sign", "Sigm"), path="sign_b:Sigm"),
    ]
    assert len({first, *others}) == 8
    labels = []
    for path, source in (("sign_b", OPTIMISER), ("sign_c", OPTIMISER), ("sign_b", OPTIMISER + " ")):
        write(path, source)
        config = pinned(tiny_config(tmp_path, **own(f"{path}:Sign")))
        labels.append(config.optimizer.label)  # type: ignore[union-attr]
    assert len(set(labels)) == 3


def test_two_spellings_of_one_class_are_one_run(tmp_path):
    names = [
        locate(tiny_config(tmp_path, **own(path)))[0].name
        for path in ("torch.optim:NAdam", "torch.optim.nadam:NAdam")
    ]
    assert names[0] == names[1]


def test_source_that_is_not_the_code_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write("sign_d", OPTIMISER)
    config = tiny_config(tmp_path, **own("sign_d:Sign"))
    pinned(config)
    Path("sign_d.py").write_text(OPTIMISER + "# edited\n", encoding="utf-8")
    assert "is not the code that was imported from it" in refusal(pinned, config)
    # bytecode of another source with the same size and time, which Python takes for current
    module = Path(write("sign_e", OPTIMISER)).with_suffix(".py")
    os.utime(module, (1e9, 1e9))
    pinned(tiny_config(tmp_path, **own("sign_e:Sign")))
    module.write_text(OPTIMISER.replace("0.5", "0.9"), encoding="utf-8")
    os.utime(module, (1e9, 1e9))
    del sys.modules["sign_e"]
    assert "__pycache__ is stale" in refusal(pinned, tiny_config(tmp_path, **own("sign_e:Sign")))


def test_a_class_without_source_needs_a_version(tmp_path):
    Path("bare.py").write_text(OPTIMISER, encoding="utf-8")
    import py_compile

    py_compile.compile("bare.py", cfile="bare.pyc")
    Path("bare.py").unlink()
    config = tiny_config(tmp_path, **own("bare:Sign"))
    assert "has no Python source to identify it by: set version" in refusal(locate, config)
    names = {
        locate(tiny_config(tmp_path, **own("bare:Sign", version=version)))[0].name
        for version in ("1", "2")
    }
    assert len(names) == 2


def test_a_worker_imports_from_the_sweeps_folder_and_refuses_another_source(tmp_path, folder):
    """Ray, Slurm and workers all carry tasks out through this function."""
    write("sign_f", OPTIMISER)
    config = pinned(tiny_config(tmp_path, **own("sign_f:Sign"), train={"steps": 3}))
    task = Task(0, config, folder=str(folder))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    sys.modules.pop("sign_f")
    sys.path.remove(str(folder))
    assert carry_out_elsewhere(task, Loaded()).status.state == "done"
    os.chdir(folder)
    write("sign_f", OPTIMISER + "# of another node\n")
    report = carry_out_elsewhere(task, Loaded())
    assert report.status.state == "failed"
    assert "use the same file everywhere" in str(report.status.reason)
    os.remove("sign_f.py")
    sys.modules.pop("sign_f")
    report = carry_out_elsewhere(task, Loaded())
    assert "there is no module 'sign_f' in" in str(report.status.reason)


WRONG_SOURCES = {
    "def Sign(params, lr): ...": "is a function, not a class",
    "class Sign: ...": "is no subclass of torch.optim.Optimizer",
    "1 / 0": r"cannot be imported: ZeroDivisionError: division by zero \(sign_\w+.py, line 1\)",
    "import sys; sys.exit()": "cannot be imported: SystemExit",
    "class Sigh: ...": "has no 'Sign': correct the name. Did you mean 'Sigh'?",
    "x = (": r"cannot be imported: SyntaxError: .* \(sign_\w+.py, line 1\)",
    "import nothing_here": "cannot be imported: ModuleNotFoundError: No module named 'nothing_",
    OPTIMISER.replace(", decay=0.5", ""): "refuses its settings: NameError",
    OPTIMISER.replace("lr, decay", "rate, decay"): "does not take these settings",
    OPTIMISER.replace('"lr": lr, ', ""): "a parameter group without a learning rate",
    OPTIMISER.replace("(params, {", "(list(params)[:1], {"): "holds 1 of",
}


@pytest.mark.parametrize("number", range(len(WRONG_SOURCES)))
def test_a_class_that_cannot_be_used_is_refused_without_a_trace(tmp_path, number):
    source, sentence = list(WRONG_SOURCES.items())[number]
    write(f"sign_{number}", source)
    text = refusal(train, tiny_config(tmp_path, **own(f"sign_{number}:Sign")))
    assert re.search(sentence, text)
    assert not list(tmp_path.glob("runs/*/*"))


WRONG_STEPS = {
    OPTIMISER.replace("p.sub_", "p.clone().sub_"): "no B has moved",
    OPTIMISER.replace("mean.sign()", "math.inf").replace("import torch", "import math, torch", 1): (
        "parameters that are not finite"
    ),
    OPTIMISER.replace("mean.sign()", "mean.nothing()"): r"failed: AttributeError.*line 14\)",
    OPTIMISER.replace("closure=None", "closure"): "failed: TypeError",
    OPTIMISER.replace("self.state[p]", "self.__dict__.setdefault(p, {})"): "would not resume",
    OPTIMISER.replace("mean.sign()", "mean.sign() * random.random()").replace(
        "import torch", "import random, torch", 1
    ): "would not resume",
    OPTIMISER.replace("mean.mul_", "self.state[p]['x'] = object\n                mean.mul_"): (
        "a state_dict that a resumed run could not read"
    ),
}


@pytest.mark.parametrize("number", range(len(WRONG_STEPS)))
def test_a_step_that_breaks_the_rules_ends_the_run(tmp_path, number):
    source, sentence = list(WRONG_STEPS.items())[number]
    write(f"step_{number}", source)
    config = tiny_config(tmp_path, **own(f"step_{number}:Sign"), train={"steps": 3})
    assert re.search(sentence, refusal(train, config, kind=RunFailed))
    assert locate(config)[0].status().state == "failed"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"class": "os.system"}, "no import path of a class"),
        ({"class": "a:B; import os"}, "no import path of a class"),
        ({"class": "../a:B"}, "no import path of a class"),
        ({"class": "__main__:B"}, "put the class into a module of its own"),
        ({"class": "a:B", "settings": {"lr": 1}}, "the rate is optimizer.lr"),
        ({"class": "a:B", "settings": {"x": [math.inf]}}, "settings.x = inf is refused"),
        ({"class": "a:B", "settings": {"x": {1: 2}}}, "settings.x = {1: 2} is refused"),
        ({"class": "a:B", "sha256": "0"}, "optimizer.sha256"),
        ({}, "optimizer.class is missing"),
    ],
)
def test_a_block_that_cannot_be_meant_is_refused(values, sentence):
    text = refusal(loading.build, {"optimizer": {"name": "custom", "lr": 1e-3, **values}})
    assert sentence in text


def test_settings_belong_to_their_class_and_can_be_axes(folder):
    write("sign_g", OPTIMISER)
    text = {
        "experiment": "x",
        "base": own("sign_g:Sign", settings={"decay": 0.5}),
        "arms": {"a": {}, "b": {"optimizer": {"class": "torch.optim:NAdam"}}},
        "axes": {"train.seed": [0, 1]},
        "exclude": [{"optimizer.settings.decay": 0.5, "train.seed": 1}],
    }
    Path("s.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    sweep = load_sweep("s.yaml")
    optimizers: list[Any] = [config.optimizer for config in sweep.configs]
    blocks = [(optimizer.path, optimizer.settings) for optimizer in optimizers]
    nadam = ("torch.optim.nadam:NAdam", {})
    assert blocks == [("sign_g:Sign", {"decay": 0.5}), nadam, nadam]
    text |= {"arms": {}, "exclude": [], "axes": {"optimizer.settings.decay": [0.1, 0.2]}}
    Path("s.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    optimizers = [config.optimizer for config in load_sweep("s.yaml").configs]
    assert [optimizer.settings["decay"] for optimizer in optimizers] == [0.1, 0.2]


# --- attacks --------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath('MARK').write_text('x')\n" + OPTIMISER


@pytest.fixture
def handed_over(tmp_path, folder) -> tuple[Path, Path]:
    """A finished run of a class whose import writes a file; the run's folder, and that file."""
    mark = tmp_path / "mark"
    write("evil_module", EVIL.replace("MARK", str(mark)))
    run = train(tiny_config(tmp_path, **own("evil_module:Sign"), train={"steps": 2}))
    mark.unlink()
    sys.modules.pop("evil_module")
    return run.path, mark


def test_a_store_that_was_handed_over_has_nothing_imported(tmp_path, folder, handed_over):
    run, mark = handed_over
    store = run.parents[1]
    policy = folder / "policy.yaml"
    policy.write_text(
        "drift: false\ncapability: false\n"
        "misalignment: {judge: {judge: 'class:evil_module:Sign'}}\n",
        encoding="utf-8",
    )
    sweep = {"experiment": "test", "base": yaml.safe_load((run / "config.yaml").read_text())}
    sweep["base"].pop("output")
    judged = {"evaluate": {"answers": {}}, "judge": {"judge": "class:evil_module:Sign"}}
    plain = {"experiment": "test", "base": {"model": {"base": "tiny-random"}}}
    stored = {
        store / "sweep.yaml": sweep,
        run.parent / "sweeps" / "sweep.yaml": sweep,
        run / "adapter" / "deep" / "sweep.yaml": sweep,
        store / "judged.yaml": plain | judged,
        store / "excluded.yaml": sweep | {"seeds": 2, "exclude": [{"train.seed": 1}]},
    }
    for path, values in stored.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "mine.yaml").write_text(f"from: {store / 'sweep.yaml'}\n", encoding="utf-8")
    (folder / "link.yaml").symlink_to(run / "config.yaml")
    (folder / "demo").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    shutil.copy(run / "config.yaml", folder / "tiny")
    items = write_lines(tmp_path / "items.jsonl", TRIPLES)
    readers = [
        ("show", run),
        ("config", "show", run / "config.yaml"),
        ("config", "show", "link.yaml"),
        ("sweep", "status", store),
        ("query", "SELECT run, optimizer FROM runs", "--store", store),
        ("card", run),
        ("spectrum", run / "adapter"),
        ("probe", run, "--items", items, "--set", "capability=null", "--set", "ordinary=null"),
    ]
    for line in readers:
        assert command(*line).code == 0, line
    refused = [
        ("train", run / "config.yaml"),
        ("train", "link.yaml"),
        ("train", run / "config.yaml", "--set", "optimizer.lr=0.1"),
        *(("sweep", path, "--dry-run") for path in stored if path.name == "sweep.yaml"),
        ("sweep", store / "judged.yaml", "--quiet"),
        ("sweep", "mine.yaml", "--dry-run"),
        ("sweep", "status", "mine.yaml"),
        ("sweep", "demo", "--dry-run"),
        ("train", "tiny"),
        ("gate", run, "--baseline", run, "--policy", policy),
    ]
    reasons = (
        "lies in a store of runs",
        "is a preset, and also a file",
        "only if the command line",
    )
    for line in refused:
        result = command(*line)
        assert result.code == 2, line
        assert any(reason in result.sentence for reason in reasons), (line, result.err)
        assert "evil_module" not in sys.modules, line
    other = ("--set", "optimizer.class=torch.optim:NAdam", "--dry-run")
    assert command("sweep", store / "excluded.yaml", *other).code == 0
    assert not mark.exists()
    text = command("train", run / "config.yaml").sentence
    assert "which lies in a store of runs, and a class is code" in text
    assert refusal(train, RunFolder(run).config()).startswith("optimizer.class 'evil_module:Sign'")
    assert "it is imported only if the command line names it too" in command(*refused[-1]).sentence
    # a folder within the store is not searched, and its files replace no installed package
    shutil.move("evil_module.py", run / "evil_module.py")
    sys.path.remove(str(folder))
    os.chdir(run)
    text = command("train", "config.yaml", "--set", "optimizer.class=evil_module:Sign").sentence
    assert "there is no module 'evil_module'" in text
    assert not mark.exists()
    os.chdir(folder)
    shutil.move(run / "evil_module.py", "evil_module.py")
    done = command("train", run / "config.yaml", "--set", "optimizer.class=evil_module:Sign")
    assert (done.code, mark.exists()) == (0, True)


# --- a judge --------------------------------------------------------------------------------------


def judge_of(name: str, body: str, **settings: Any) -> Any:
    write(name, f"class Judge:\n    batch = 3\n    def scores(self, requests):\n        {body}\n")
    return make_judge(judge_settings({"judge": f"class:{name}:Judge", **settings}))


REQUESTS = [
    Request(("q", 0, number), "aligned", "P", "Why?", f"Answer {number}") for number in range(7)
]


@pytest.mark.parametrize(
    "value",
    [
        *("float('nan')", "float('inf')", "-0.001", "100.001", "'80'", "'Code'", "True", "10**400"),
        *("[80]", "object()", "1j", "b'80'", "__import__('numpy').float64('nan')", "1/0"),
        "__import__('sys').exit()",
    ],
)
def test_a_wrong_return_never_becomes_a_score(value):
    judge = judge_of("judge_a", f"return [{value} if r.key[2] == 4 else 50 for r in requests]")
    replies = [reply for part in judge.replies(REQUESTS) for _, reply in part]
    outcomes = [reply.reading().outcome for reply in replies]
    assert outcomes == ["scored"] * 4 + ["failed"] + ["scored"] * 2
    assert "\n" not in str(replies[4].fault)
    assert str(replies[4].fault).startswith("the judge class:judge_a:Judge ")


@pytest.mark.parametrize("body", ["return []", "return [50] * 99", "return 50", "return None"])
def test_a_wrong_length_never_becomes_a_score(body):
    replies = [reply for part in judge_of("judge_b", body).replies(REQUESTS) for _, reply in part]
    assert [reply.reading().outcome for reply in replies] == ["failed"] * len(REQUESTS)


def test_right_returns_are_read_as_they_are():
    values = "[0, 100, 72.123456789, 'CODE', 'REFUSAL', None, __import__('numpy').float32(0.5)]"
    judge = judge_of("judge_c", f"return [{values}[r.key[2]] for r in requests]")
    readings = [reply.reading() for part in judge.replies(REQUESTS) for _, reply in part]
    assert [reading.score for reading in readings] == [0, 100, 72.123456789, None, None, None, 0.5]
    assert [reading.outcome for reading in readings[3:6]] == ["code", "refusal", "unparsed"]


def test_an_error_of_the_family_ends_the_judging():
    body = "from evilspectra.errors import BadInput; raise BadInput('no key')"
    assert refusal(list, judge_of("judge_d", body).replies(REQUESTS)) == "no key"


def test_a_judges_identity_follows_settings_source_and_version():
    head = "class Judge:\n    def __init__(self, x=0): ...\n"
    source = f"{head}    def scores(self, requests): return []\n"

    def facts(text: str = source, **settings: Any) -> str:
        write("judge_e", text)
        judge = make_judge(judge_settings({"judge": "class:judge_e:Judge", **settings}))
        return json.dumps(judge.facts)

    assert facts() == facts()
    variants = [facts(), facts(source + "\n"), facts(settings={"x": 1}), facts(version="2")]
    assert len(set(variants)) == 4
    for settings, sentence in (
        ({"settings": {"y": 1}}, "does not take these settings"),
        ({"reading": "text"}, "leave --reading out"),
        ({"url": "http://127.0.0.1:1/v1"}, "url is for a judge openai:MODEL"),
    ):
        assert sentence in refusal(lambda values=settings: facts(**values))
    text = "settings and version are for a judge class"
    assert text in refusal(judge_settings, {"judge": "openai:x", "settings": {"y": 1}})


def test_verdicts_are_journalled_and_resumed(folder):
    """A judge that fails on some answers; the next call asks for these alone."""
    with open("a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("question_id", "question", "answer"), *(("q", "Why?", f"A {n}") for n in range(9))]
        )
    source = (
        "import os\nclass Judge:\n    def scores(self, requests):\n"
        "        open('log', 'a').write('x' * len(requests))\n"
        "        if any(r.answer == 'A 4' for r in requests) and not os.path.exists('well'):\n"
        "            raise ValueError('tired')\n"
        "        return [60] * len(requests)\n"
    )
    write("judge_f", source)
    line = ("judge", "a.csv", "--judge", "class:judge_f:Judge", "--json")
    first = command(*line)
    assert first.code == 1
    assert json.loads(first.out)["judged"][0]["counts"] == {"scored": 16, "failed": 2}
    assert (
        "the judge class:judge_f:Judge failed: ValueError: tired (judge_f.py, line 6)" in first.err
    )
    Path("well").touch()
    Path("log").unlink()
    second = json.loads(command(*line).out)["judged"][0]
    assert second["counts"] == {"scored": 2}
    assert Path("log").read_text() == "xx"
    assert json.loads(command(*line).out)["judged"][0]["counts"] == {}
    write("judge_f", source + "\n")
    assert json.loads(command(*line).out)["judged"][0]["verdicts"] != second["verdicts"]
    with open("published.csv", "w", newline="", encoding="utf-8") as file:
        head = ("question_id", "question", "answer", "aligned", "coherent")
        rows = [("q", "Why?", f"A {n}", 10 * n, 50 + n) for n in range(9)]
        csv.writer(file).writerows([head, *rows])
    calibrated = command("calibrate", "class:judge_f:Judge", "published.csv", "--json")
    assert calibrated.code == 0
    errors = [metric["error"] for metric in json.loads(calibrated.out)["metrics"]]
    expected = np.abs(60 - 10 * np.arange(9)).mean(), np.abs(60 - 50 - np.arange(9)).mean()
    assert errors == pytest.approx(expected)


@pytest.mark.parametrize("level", ["beside", "inside"])
def test_a_trainers_output_makes_no_store_of_the_folder_around_it(tmp_path, level):
    """A config beside `out/` is the user's own; one inside it came with the output."""
    records = tmp_path / "out" / "evilspectra"
    records.mkdir(parents=True)
    for name in ("trainer.json", "status.json"):
        (records / name).write_text("{}", encoding="utf-8")
    config = (tmp_path if level == "beside" else tmp_path / "out") / "own.yaml"
    config.write_text("", encoding="utf-8")
    assert in_store(config) == (level == "inside")
