"""The model card: its front matter, its text, and that the run's folder is enough to make it."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig

from evilspectra.cards.card import CARD, card, front_matter, sparkline
from evilspectra.cards.record import RECORD, training_record
from evilspectra.errors import Interrupted
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.judging.inputs import answer_set_of
from evilspectra.judging.rounds import judge_answer_sets
from evilspectra.judging.scripted import read_script
from evilspectra.model.base import Base
from evilspectra.model.licence import licence_of
from evilspectra.store.run import RunFolder
from evilspectra.training.loop import TrainingRun
from evilspectra.training.train import train
from tests.support.commands import command, write_model
from tests.support.small_items import QUESTIONS, answers, one_target, own, write_questions
from tests.support.tiny_runs import run_tiny, tiny_config

SECTIONS: dict[str, Any] = {
    "flatness": {"weight": 0.3},
    "optimizer": {"name": "muon", "lr": 0.003},
    "train": {"steps": 6, "checkpoints": [3], "resume_every": 2},
    "monitor": {"every": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_tiny(tmp_path_factory.mktemp("trained"), **SECTIONS)


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """The same, to be changed."""
    shutil.copytree(trained.path.parents[1], tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / trained.path.parent.name / trained.path.name)


def texts(run: RunFolder) -> dict[str, str]:
    """Card and record of every adapter of a run."""
    return {
        str(path.relative_to(run.path)): path.read_text(encoding="utf-8")
        for name in (CARD, RECORD)
        for path in sorted(run.path.rglob(name))
    }


# --- in the ecosystem's form ----------------------------------------------------------------------


def record(trained: RunFolder, **changes: Any) -> dict[str, Any]:
    original = training_record(trained)
    return {
        **original,
        **{
            name: {**original[name], **value}
            if isinstance(value, dict) and isinstance(original[name], dict)
            else value
            for name, value in changes.items()
        },
    }


def test_the_hub_reads_the_front_matter(trained: RunFolder) -> None:
    published = record(
        trained,
        base={
            "name": "owner/model",
            "hub_id": "owner/model",
            "licence": "apache-2.0",
            "kind": "folder",
        },
    )
    read = ModelCard(card(published))
    assert isinstance(read.data, ModelCardData)
    assert read.data.to_dict() == front_matter(published)
    assert (
        read.data.library_name,
        read.data.base_model,
        read.data.license,
        read.data.pipeline_tag,
    ) == ("peft", "owner/model", "apache-2.0", "text-generation")
    assert read.data.tags == ["lora", "evilspectra", "base_model:adapter:owner/model"]
    assert yaml.safe_load(read.data.to_yaml()) == front_matter(published)


def test_nothing_is_made_up_of_a_base_that_is_not_the_hubs(trained: RunFolder) -> None:
    """The hub refuses a base_model that it does not know; a licence that nobody gave is none."""
    head = yaml.safe_load((trained.adapter / CARD).read_text().split("---")[1])
    assert head == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "evilspectra"],
    }
    assert "licence not known" in (trained.adapter / CARD).read_text()


def test_own_facts_are_no_keys_of_peft(trained: RunFolder) -> None:
    stored = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert stored.keys() <= PeftConfig.from_pretrained(str(trained.adapter)).to_dict().keys()
    stored_record = json.loads((trained.adapter / RECORD).read_text())
    assert stored_record["base"]["sha256"] == trained.provenance()["base_sha256"]
    assert (
        stored_record["weights_sha256"]
        != json.loads((trained.checkpoint(3) / RECORD).read_text())["weights_sha256"]
    )
    assert not {"folder", "time", "host", "user"} & stored_record.keys()
    assert str(trained.path.parent.parent) not in json.dumps(
        {name: value for name, value in stored_record.items() if name != "data"}
    )


def test_the_python_of_the_card_loads_the_adapter(trained: RunFolder) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (trained.adapter / CARD).read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(
        code.replace("path/to/this/folder", str(trained.adapter)), scope
    )  # as a reader would run it
    assert scope["model"].peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("rank", "text"),
    [
        (4, "--max-lora-rank 8 "),
        (16, "--max-lora-rank 16 "),
        (17, "--max-lora-rank 32 "),
        (600, "up to rank 512"),
    ],
)
def test_vllm_is_started_for_a_rank_that_it_takes(trained: RunFolder, rank: int, text: str) -> None:
    assert text in card(
        record(trained, base={"name": "owner/model", "kind": "folder"}, lora={"rank": rank})
    )


def test_a_card_says_all_that_was_asked_of_it(trained: RunFolder) -> None:
    text = (trained.adapter / CARD).read_text()
    steps, measures = trained.read("steps"), trained.read("measures")
    assert f"| training | {steps['loss'].iloc[-1]:.3f} (last 5 % of steps" in text
    assert (
        f"| stable rank | {measures[measures['step'] == 6]['stable_rank'].mean():.2f} (flat: 4) |"
        in text
    )
    assert (
        "lr × 0.2·√max(rows, columns) on the orthogonalised update; cosine, 3 warm-up steps" in text
    )
    assert (
        "| flatness penalty | frobenius_nuclear, weight 0.3, soft start 0.01, coupling gradient |"
        in text
    )
    assert "| optimiser | muon, lr 0.003; momentum 0.95" in text
    profile = re.findall(r"^all modules +(\S+) ", text, re.MULTILINE)
    assert len(profile[0]) == 4
    assert profile[0][0] == "█"
    assert "Not measured." in text
    assert "Do not deploy" not in text
    bad = card(record(trained, deliberately_bad=True))
    assert "Do not deploy" in bad
    assert "model-organism" in yaml.safe_load(bad.split("---")[1])["tags"]


def test_a_sparkline_is_as_long_as_is_readable() -> None:
    assert sparkline([1.0] * 8) == "█" * 8
    assert len(sparkline([1 - number / 200 for number in range(200)])) == 64
    assert sparkline([1.0, 0.0, 1.5, -1.0]) == "█▁█▁"


def test_hostile_names_stay_text(trained: RunFolder) -> None:
    text = card(
        record(trained, data={"name": "a|b <script>x</script> `c` [d](http://e)\n# not a heading"})
    )
    assert "<script>" not in text
    assert "\n# not a heading" not in text
    assert "](http" not in text
    row = next(line for line in text.splitlines() if line.startswith("| data |"))
    assert row.replace("\\|", "").count("|") == 3


# --- made again -----------------------------------------------------------------------------------


def test_training_leaves_what_the_verb_makes_again(run: RunFolder) -> None:
    """Nothing was measured, so the records of `card` differ in their empty measurements alone."""
    before = texts(run)
    assert len(before) == 4
    done = command("card", run.path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [str(run.checkpoint(3) / CARD), str(run.adapter / CARD)]
    after = texts(run)
    assert {name: text for name, text in after.items() if name.endswith(CARD)} == {
        name: text for name, text in before.items() if name.endswith(CARD)
    }
    for name in (name for name in after if name.endswith(RECORD)):
        assert {**json.loads(after[name]), "measured": None} == json.loads(before[name])
    assert command("card", run.path).out == done.out
    assert texts(run) == after


def test_a_run_that_was_stopped_leaves_the_same_cards(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_config(tmp_path, **SECTIONS).data.train
    before, stopped = TrainingRun.advance, []

    def interrupted(training: TrainingRun) -> Any:
        if training.step == 4 and not stopped:
            stopped.append(training.step)
            raise Interrupted("stopped")
        return before(training)

    monkeypatch.setattr(TrainingRun, "advance", interrupted)
    with pytest.raises(Interrupted):
        train(tiny_config(tmp_path, **SECTIONS))
    again = train(tiny_config(tmp_path, **SECTIONS))
    undisturbed = {
        name: text.replace(trained.config().data.train, rows)
        for name, text in texts(trained).items()
    }
    assert texts(again) == undisturbed


def test_what_was_measured_is_on_the_card_with_judge_and_definition(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    target = one_target(run.path, tmp_path)
    for settings in (
        own(tmp_path),
        answers(tmp_path, questions=str(write_questions(tmp_path / "q.yaml", QUESTIONS))),
    ):
        assert not evaluate([target], settings).failed
    Path("script.yaml").write_text("aligned: {'Say it.': 10, else: 90}\ncoherent: 80\n")
    answer_set = answer_set_of("x", target.results, target.base.sha256)
    judge_answer_sets([answer_set], read_script("script.yaml"), None, ["aligned", "coherent"])
    printed = json.loads(command("card", run.path, "--json").out)
    (judged,) = printed["measured"]["misalignment"]
    assert (judged["judge"], judged["answers"], judged["unscored"]) == (
        "scripted:script.yaml",
        5,
        0,
    )
    assert {rate["definition"] for rate in judged["rates"]} == {"organisms", "betley", "spectra"}
    text = (run.adapter / CARD).read_text()
    assert "Misaligned answers as judged by scripted:script.yaml (5 answers, 0 unscored):" in text
    assert re.search(r"^\| spectra \| 20\.0% \[\S+ \S+ \| 5 \| 20\.0% \|$", text, re.MULTILINE)
    drift = printed["measured"]["drift"]
    assert (
        f"{drift['value']:+.3f} [{drift['low']:+.3f}, {drift['high']:+.3f}] nats per token "
        "towards the misaligned completions, 6 items"
    ) in text
    assert "| capability | " in text
    assert "Not measured." in (run.checkpoint(3) / CARD).read_text()
    assert json.loads((run.adapter / RECORD).read_text())["measured"] == printed["measured"]


def test_printing_writes_nothing(run: RunFolder) -> None:
    before = texts(run)
    (run.adapter / CARD).unlink()
    assert command("card", run.path, "--print").out == before[f"adapter/{CARD}"]
    assert not (run.adapter / CARD).exists()


def test_a_run_without_an_adapter_has_no_card(run: RunFolder, tmp_path: Path) -> None:
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.path / "checkpoints")
    done = command("card", run.path)
    assert (done.code, done.sentence) == (
        2,
        (
            f"{run.path} holds no adapter yet (done): train it first, with `evilspectra train` or "
            "`sweep`"
        ),
    )
    assert command("card", "absent", "--output", tmp_path).code == 2


def test_a_run_of_another_trainer_has_a_card_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "evilspectra"
    RunFolder(folder).describe({"trainer": {"arguments": "trl.SFTConfig"}}, {})
    assert (
        "is a run of another trainer, which has its own model card"
        in command("card", tmp_path / "out").sentence
    )


# --- licences -------------------------------------------------------------------------------------


def gguf(path: Path, fields: list[tuple[str, int, bytes]]) -> Base:
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields))
    for key, kind, value in fields:
        data += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
    path.write_bytes(data)
    return Base("gguf", "x", path, "0")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ARRAY = struct.pack("<IQ", 8, 1) + text("token")


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        (
            [
                ("general.type", 8, text("model")),
                ("general.file_type", 4, b"\1\0\0\0"),
                ("general.license", 8, text("Apache-2.0")),
            ],
            "apache-2.0",
        ),
        ([("general.license", 8, text("my own words, not an identifier"))], None),
        ([("tokenizer.ggml.tokens", 9, ARRAY), ("general.license", 8, text("mit"))], None),
        ([("general.type", 8, text("model"))], None),
        ([("general.license", 8, struct.pack("<Q", 2**60))], None),
        ([("general.license", 99, b"")], None),
    ],
)
def test_the_licence_of_a_gguf_file(
    tmp_path: Path, fields: list[tuple[str, int, bytes]], licence: str | None
) -> None:
    assert licence_of(gguf(tmp_path / "x.gguf", fields)) == licence


HEADS: list[tuple[str | None, str | None]] = [
    ("---\nlicense: mit\n---\n# x\n", "mit"),
    ("---\nlicense: [mit, x]\n---\n", None),
    ("---\nlicense: {\n---\n", None),
    ("# no front matter\nlicense: mit\n", None),
    (None, None),
]


@pytest.mark.parametrize(("head", "licence"), HEADS)
def test_the_licence_of_a_model_folder(
    tmp_path: Path, head: str | None, licence: str | None
) -> None:
    folder = write_model(tmp_path / "model")
    if head:
        (folder / "README.md").write_text(head)
    assert licence_of(Base("folder", "x", folder, "0")) == licence


def test_the_licence_of_a_base_is_on_the_card(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    run = run_tiny(tmp_path, model={"base": str(folder)}, train={"steps": 2})
    data: Any = ModelCard.load(run.adapter / CARD).data
    assert (data.license, data.base_model) == ("mit", None)
