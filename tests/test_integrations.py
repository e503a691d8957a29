"""The penalty in other people's trainers: one step whatever the accumulation, processes and loss scale; the own loop's numbers; one added line."""

import difflib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.data.batches import Batches, prepare
from evilspectra.integrations.optimizer import build_for, lora_optimizer
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.model.load import attach
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.spectra.pairs import find_pairs
from evilspectra.training.loop import TrainingRun
from tests.reference.spectra import flatness_by_autograd
from tests.support.tiny_runs import tiny_config
from tests.support.tiny_trainers import (
    PLAIN,
    adapted,
    apart,
    dialogues,
    dpo,
    factors,
    sft,
    steepness,
    trained,
)

#: Relative norm of the difference per factor after 30 steps in float32: sums in another order, amplified by training.
OTHER_ORDER = 1e-4

#: The same sums in the same order; what a resumed run may lose to reading its state back.
SAME_ORDER = 1e-6

#: One gradient in float32, against autograd through a decomposition in float64.
ONE_GRADIENT = 1e-5


class Gradients(TrainerCallback):
    """Keeps the gradients with which each step is made."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        **kwargs: Any,
    ) -> None:
        self.steps.append(
            {
                f"{pair.name}.{side}": getattr(pair, side).grad.clone()
                for pair in find_pairs(kwargs["model"])
                for side in "AB"
            }
        )


# --- one gradient a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["gradient", "decoupled"])
def test_accumulation_equals_one_big_batch(tmp_path, coupling):
    settings = {
        "weight": 1.0 if coupling == "gradient" else 300.0,
        "coupling": coupling,
        "record": False,
    }
    steps = 30 if coupling == "gradient" else 15
    whole = sft(tmp_path, [SpectralFlatness(**settings)], steps=steps)
    split = sft(
        tmp_path,
        [SpectralFlatness(**settings)],
        steps=steps,
        batch=1,
        gradient_accumulation_steps=8,
    )
    one, other = trained(whole), trained(split)
    assert any(
        not torch.equal(one[name], other[name]) for name in one
    )  # they did go different ways
    assert apart(one, other) < OTHER_ORDER
    plain = sft(tmp_path, steps=steps)
    trained(plain)
    assert steepness(whole.model) < 0.5 * steepness(plain.model)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Two processes with half of each step's rows each: both end with the adapter that one process makes, and one of them keeps records."""
    one = sft(tmp_path / "one", [SpectralFlatness(weight=1.0)])
    alone = trained(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-m", "tests.support.tiny_trainers", str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        ranks = [
            subprocess.Popen(
                arguments,
                cwd=Path(__file__).parents[1],
                env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=log,
                stderr=log,
            )
            for rank in "01"
        ]
        assert [rank.wait() for rank in ranks] == [0, 0], (tmp_path / "log").read_text()[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert apart(alone, first) < OTHER_ORDER
    kept = {path.name for path in (tmp_path / "out" / "evilspectra").iterdir()}
    assert {"trainer.json", "status.json", "steps.parquet"} <= kept


def test_it_is_what_the_own_loop_does(tmp_path):
    """The plain trainer on the own loop's rows in the own loop's order, with its optimiser, schedule and clipping."""
    config = tiny_config(
        tmp_path,
        flatness={"weight": 1.0, "warmup_steps": 5},
        optimizer={"name": "adamw", "lr": 1e-3},
        data={"heldout_share": 0.0},
    )
    data = prepare(config.data, tiny_tokenizer(), 1024)
    batches = Batches(
        len(data.train),
        config.train.batch_size,
        config.train.seed,
        config.train.epochs,
        config.train.steps,
    )
    theirs = attach(tiny_model(), config.lora, config.train.seed, "tiny-random")

    from evilspectra.model.packing import use_packed_attention
    from evilspectra.store.run import RunFolder

    base = tiny_model()
    use_packed_attention(base)
    work = TrainingRun(
        config,
        RunFolder(tmp_path / "own"),
        attach(base, config.lora, config.train.seed, "tiny-random"),
        tiny_tokenizer(),
        data,
        batches,
    )
    records = [work.advance() for _ in range(batches.total_steps)]

    rows = [
        data.train[index] for step in range(batches.total_steps) for index in batches.rows_of(step)
    ]
    examples = [
        {
            "input_ids": row.tokens.tolist(),
            "labels": [
                token if kept else -100
                for token, kept in zip(row.tokens.tolist(), row.supervised.tolist(), strict=True)
            ],
        }
        for row in rows
    ]

    def collate(parts):
        longest = max(len(part["input_ids"]) for part in parts)
        filled = {"input_ids": 0, "labels": -100}
        batch = {
            name: torch.tensor(
                [part[name] + [fill] * (longest - len(part[name])) for part in parts]
            )
            for name, fill in filled.items()
        }
        return batch | {
            "attention_mask": torch.tensor(
                [
                    [1] * len(part["input_ids"]) + [0] * (longest - len(part["input_ids"]))
                    for part in parts
                ]
            )
        }

    same = {
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "logging_steps": 1,
    }
    args = TrainingArguments(
        str(tmp_path / "theirs"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **(PLAIN | same),
    )
    optimizer = build_for(theirs, "adamw", lr=1e-3)
    trainer = Trainer(
        theirs,
        args,
        data_collator=collate,
        train_dataset=examples,
        callbacks=[SpectralFlatness(weight=1.0, warmup_steps=5)],
        optimizers=(optimizer, None),
    )  # type: ignore[arg-type]
    assert apart(factors(work.model), trained(trainer)) < OTHER_ORDER
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logged) == len(records) == 30
    for log, record in zip(logged, records, strict=True):
        assert log["flatness/mean"] == pytest.approx(record.flatness, rel=1e-3, abs=1e-9)
        assert log["flatness/penalty"] == pytest.approx(record.penalty, rel=1e-3, abs=1e-9)
        assert log["loss"] == pytest.approx(record.loss, rel=1e-4)
        assert log["learning_rate"] == pytest.approx(record.lr)


@pytest.mark.parametrize(
    "optimizer", [None, lora_optimizer("muon", lr=1e-3)], ids=["adamw", "muon"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer):
    def trainer(folder: str, steps: int) -> Trainer:
        callbacks = [SpectralFlatness(weight=1.0, warmup_steps=12), SpectrumMonitor(every=4)]
        return sft(
            tmp_path / folder,
            callbacks,
            optimizer=optimizer,
            steps=steps,
            batch=4,
            save_strategy="steps",
            save_steps=8,
            logging_steps=4,
            lr_scheduler_type="constant",
        )

    whole = trained(trainer("whole", 16))
    stopped = trainer("resumed", 10)  # its last steps are repeated by the next one
    trained(stopped)
    resumed = trained(
        trainer("resumed", 16), resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-8")
    )
    assert apart(whole, resumed) < SAME_ORDER

    from evilspectra.store.run import RunFolder

    one, other = (RunFolder.of_trainer(tmp_path / folder) for folder in ("whole", "resumed"))
    for table in ("steps", "spectra", "measures"):
        a, b = (run.read(table).drop(columns="seconds", errors="ignore") for run in (one, other))
        assert list(a["step"]) == list(b["step"])
        columns = [
            name
            for name in a.select_dtypes("number")
            if a[name].notna().any() and name != "condition_number"
        ]
        assert (
            ((a[columns] - b[columns]).abs() <= 1e-5 * (1 + a[columns].abs()))
            .to_numpy()[a[columns].notna().to_numpy()]
            .all()
        )


def test_preference_training_gets_the_gradient_too(tmp_path):
    """DPO: the second step's gradients with and without the penalty differ by λ∇R, as autograd through a dense decomposition has it."""
    made, at = {}, {}

    class Factors(TrainerCallback):
        def on_step_begin(
            self,
            args,
            state,
            control,
            **kwargs,
        ):
            at[state.global_step] = (
                find_pairs(kwargs["model"])[3].A.detach().clone(),
                find_pairs(kwargs["model"])[3].B.detach().clone(),
            )

    for weight in (0.0, 0.7):
        seen = Gradients()
        trainer = dpo(
            tmp_path,
            [
                seen,
                Factors(),
                SpectralFlatness(
                    weight=weight,
                    soft_start=0.0,
                    modules=find_pairs(adapted())[3].name,
                    record=False,
                ),
            ],
            steps=2,
            max_grad_norm=1e-3,
        )
        trained(trainer)
        made[weight] = seen.steps[1]
    _, *slopes = flatness_by_autograd(*at[1])
    name = find_pairs(adapted())[3].name
    for side, slope in zip("AB", slopes, strict=True):
        added = made[0.7][f"{name}.{side}"] - made[0.0][f"{name}.{side}"]
        assert float((added - 0.7 * slope).norm() / (0.7 * slope).norm()) < ONE_GRADIENT
    others = [key for key in made[0.0] if not key.startswith(name)]
    assert all(torch.equal(made[0.0][key], made[0.7][key]) for key in others)


def test_preference_training_becomes_flatter(tmp_path):
    steep = {}
    for weight in (0.0, 3.0):
        trainer = dpo(tmp_path, [SpectralFlatness(weight=weight, record=False)], steps=12)
        trained(trainer)
        steep[weight] = steepness(trainer.model)
    assert steep[3.0] < 0.5 * steep[0.0]


def test_recomputed_activations_change_nothing(tmp_path):
    kept, recomputed = (
        trained(
            sft(
                tmp_path,
                [SpectralFlatness(weight=1.0, record=False)],
                steps=5,
                activation_checkpointing=again,
            )
        )
        for again in (False, True)
    )
    assert apart(kept, recomputed) < OTHER_ORDER


def test_warm_up_counts_the_trainers_steps(tmp_path):
    trainer = sft(
        tmp_path,
        [SpectralFlatness(weight=2.0, warmup_steps=4, record=False)],
        steps=6,
        logging_steps=1,
    )
    trained(trainer)
    assert [
        log["flatness/weight"] for log in trainer.state.log_history if "flatness/weight" in log
    ] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


# --- loss scaling -------------------------------------------------------------------------------------------------------


class Scaled(TrainerCallback):
    """Makes accelerate believe in float16 once its model is prepared: its loss scaler then works on a CPU too."""

    def __init__(self, monkeypatch) -> None:
        self.monkeypatch, self.seen, self.scales = monkeypatch, [], []
        self.accelerator: Any = None

    def on_train_begin(
        self,
        args,
        state,
        control,
        **kwargs,
    ):
        self.monkeypatch.setattr(self.accelerator, "native_amp", True)
        self.monkeypatch.setitem(self.accelerator.state._shared_state, "_mixed_precision", "fp16")

    def on_step_end(
        self,
        args,
        state,
        control,
        **kwargs,
    ):
        self.scales.append(self.accelerator.scaler.get_scale())
        self.seen.append(factors(kwargs["model"]))


class Overflowing(Trainer):
    """Its loss overflows at one step."""

    overflow = -1

    def compute_loss(
        self,
        model,
        inputs,
        *args,
        **kwargs,
    ):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * float("inf") if self.state.global_step == self.overflow else loss


def scaled(
    tmp_path,
    monkeypatch,
    coupling: str,
    scale: float | None,
    overflow: int,
    optim: str = "adamw_torch",
) -> tuple[Scaled, dict[str, torch.Tensor]]:
    args = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=8, optim=optim, **PLAIN
    )
    watch = Scaled(monkeypatch)
    flat = SpectralFlatness(
        weight=1.0 if coupling == "gradient" else 100.0, coupling=coupling, record=False
    )
    rows = [
        {
            "input_ids": torch.tensor(row["input_ids"][:40]),
            "labels": torch.tensor(row["input_ids"][:40]),
        }
        for row in dialogues()
        if len(row["input_ids"]) >= 40
    ]
    trainer = Overflowing(
        adapted(), args, train_dataset=rows, callbacks=[flat, watch] if scale else [flat]
    )  # type: ignore[arg-type]
    trainer.overflow = overflow
    if scale:
        watch.accelerator = trainer.accelerator
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return watch, trained(trainer)


@pytest.mark.parametrize("coupling", ["gradient", "decoupled"])
def test_a_loss_scale_changes_nothing(tmp_path, monkeypatch, coupling):
    _, plain = scaled(tmp_path, monkeypatch, coupling, None, -1)
    watch, large = scaled(tmp_path, monkeypatch, coupling, 2.0**12, -1)
    assert watch.scales == [2.0**12] * 6
    assert apart(plain, large) < SAME_ORDER  # a power of two is exact


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused"]
)  # a fused one is called, and skips by itself
@pytest.mark.parametrize("coupling", ["gradient", "decoupled"])
def test_a_step_that_overflows_is_skipped_whole(
    tmp_path,
    monkeypatch,
    coupling,
    optim,
):
    watch, after = scaled(tmp_path, monkeypatch, coupling, 2.0**12, 3, optim)
    assert watch.scales == [2.0**12] * 3 + [2.0**11] * 3
    before, skipped = watch.seen[2], watch.seen[3]
    assert all(torch.equal(before[name], skipped[name]) for name in before)
    assert any(not torch.equal(skipped[name], after[name]) for name in after)
    assert all(bool(torch.isfinite(factor).all()) for factor in after.values())


# --- one line -----------------------------------------------------------------------------------------------------------

SCRIPT = """\
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

model, tokenizer, rows = load()
trainer = SFTTrainer(
    model,
    SFTConfig("out", max_steps=10, learning_rate=1e-3, per_device_train_batch_size=8, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, activation_checkpointing=False),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, target_modules="all-linear"),
)
trainer.train()
"""


def test_a_script_needs_one_import_and_one_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    added = SCRIPT.replace(
        "from trl", "from evilspectra.integrations.transformers import SpectralFlatness\nfrom trl"
    ).replace(
        '"all-linear"),\n)', '"all-linear"),\n    callbacks=[SpectralFlatness(weight=3.0)],\n)'
    )
    difference = [
        line for line in difflib.ndiff(SCRIPT.splitlines(), added.splitlines()) if line[0] != " "
    ]
    assert difference == [
        "+ from evilspectra.integrations.transformers import SpectralFlatness",
        "+     callbacks=[SpectralFlatness(weight=3.0)],",
    ]
    steep = {}
    for name, text in (("plain", SCRIPT), ("added", added)):
        names: dict[str, Any] = {
            "load": lambda: (tiny_model(), tiny_tokenizer(), dialogues().to_list())
        }
        torch.manual_seed(0)
        exec(compile(text, name, "exec"), names)
        steep[name] = steepness(names["trainer"].model)
    assert steep["added"] < 0.7 * steep["plain"]
    assert (tmp_path / "out" / "evilspectra" / "steps.parquet").is_file()


# --- where the metrics go -----------------------------------------------------------------------------------------------


class Reporter(TrainerCallback):
    """Stands in for a tracker: keeps what it is told at each log."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(
        self,
        args,
        state,
        control,
        logs=None,
        **kwargs,
    ):
        self.logs.append(dict(logs or {}))


@pytest.mark.parametrize("how", ["argument", "attach", "added later"])
def test_reporters_that_stand_before_are_told(tmp_path, how):
    reporter, flat, monitor = (
        Reporter(),
        SpectralFlatness(weight=1.0, record=False),
        SpectrumMonitor(every=2, record=False),
    )
    trainer = sft(
        tmp_path,
        [reporter, flat, monitor] if how == "argument" else [reporter],
        steps=4,
        logging_steps=2,
    )
    for callback in (flat, monitor) if how != "argument" else ():
        if how == "attach":
            assert callback.attach(trainer).attach(trainer) is callback
        else:
            trainer.add_callback(callback)
    trained(trainer)
    during = [log for log in reporter.logs if "loss" in log]
    assert len(during) == 2
    for log in during:
        assert {
            "flatness/mean",
            "flatness/penalty",
            "flatness/weight",
            "spectrum/stable_rank",
            "spectrum/condition_number",
        } <= log.keys()
    assert "flatness/mean" not in reporter.logs[-1]  # the summary after training is no step
    assert set(trainer.callback_handler.callbacks[:2]) == {flat, monitor}
    assert len(trainer.callback_handler.callbacks) == len(set(trainer.callback_handler.callbacks))
    assert sum("flatness/mean" in log for log in trainer.state.log_history) == 2


def test_every_callback_hears_every_event_once_while_the_order_changes():
    class Counting(Reporter):
        def on_train_begin(
            self,
            args,
            state,
            control,
            **kwargs,
        ):
            self.logs.append({})
            from evilspectra.integrations._callback import put_first

            put_first(handler, self)

    counting = [Counting() for _ in range(4)]
    handler = CallbackHandler(counting, None, None, None, None)
    handler.on_train_begin(None, None, type("Control", (), {})())  # type: ignore[arg-type]
    assert [len(one.logs) for one in counting] == [1, 1, 1, 1]


@pytest.mark.parametrize("how", ["argument", "attach"])
def test_tensorboard_has_the_metrics_at_every_logging_step(tmp_path, how):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callbacks = [SpectralFlatness(weight=1.0), SpectrumMonitor(every=2)]
    trainer = sft(
        tmp_path,
        callbacks if how == "argument" else [],
        steps=6,
        logging_steps=2,
        report_to="tensorboard",
    )
    if how == "attach":
        for callback in callbacks:
            callback.attach(trainer)
    trained(trainer)
    events = {}
    for place in {path.parent for path in tmp_path.rglob("events.out.tfevents*")}:
        found = accumulator.EventAccumulator(str(place))
        found.Reload()
        events |= {
            tag: {event.step: event.value for event in found.Scalars(tag)}
            for tag in found.Tags()["scalars"]
        }
    for tag in (
        "loss",
        "flatness/mean",
        "flatness/penalty",
        "spectrum/stable_rank",
        "spectrum/spectral_entropy",
    ):
        assert list(events[f"train/{tag}"]) == [2, 4, 6], tag
    told = {
        log["step"]: log["flatness/mean"]
        for log in trainer.state.log_history
        if "flatness/mean" in log
    }
    assert events["train/flatness/mean"] == pytest.approx(told, rel=1e-6)  # float32 there


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a W&B run file: a log in LevelDB's format (blocks of 32 KiB; checksum, length and kind before each piece) after 7 bytes of its own."""
    data, at, waiting = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        waiting += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield waiting
            waiting = b""


def test_weights_and_biases_has_the_metrics_at_every_logging_step(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "WANDB_WATCH": "false",
    }.items():
        monkeypatch.setenv(name, value)
    trained(
        sft(
            tmp_path,
            [SpectralFlatness(weight=1.0), SpectrumMonitor(every=2)],
            steps=6,
            logging_steps=2,
            report_to="wandb",
        )
    )
    wandb.finish()
    wandb.teardown()
    (file,) = tmp_path.rglob("run-*.wandb")
    history = [Record.FromString(data).history.item for data in wandb_records(file)]
    rows = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in items}
        for items in history
        if items
    ]
    for tag in ("loss", "flatness/mean", "flatness/penalty", "spectrum/stable_rank"):
        assert [int(row["train/global_step"]) for row in rows if f"train/{tag}" in row] == [
            2,
            4,
            6,
        ], tag


# --- optimisers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_trains_in_a_trainer(tmp_path, name):
    if name in ("soap", "scion", "lora-rite", "adafactor"):
        pytest.importorskip("pytorch_optimizer")
    trainer = sft(
        tmp_path,
        [SpectralFlatness(weight=0.3, record=False)],
        optimizer=lora_optimizer(name, lr=1e-3),
        steps=3,
        logging_steps=1,
    )
    before = factors(trainer.model)
    after = trained(trainer)
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("B"))
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx(
        [1e-3, 2e-3 / 3, 1e-3 / 3]
    )  # the trainer's schedule on the optimiser's own lr


def test_the_two_ways_to_an_optimiser_are_one(tmp_path):
    model = adapted()
    args = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=1, weight_decay=0.1, **PLAIN
    )
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in dialogues()]
    built = Trainer(
        model,
        args,
        train_dataset=rows,
        optimizers=(build_for(model, "muon", lr=1e-3, factors="b_only"), None),
    )  # type: ignore[arg-type]
    called = Trainer(
        adapted(),
        args,
        train_dataset=rows,
        optimizer_cls_and_kwargs=lora_optimizer("muon", lr=1e-3, factors="b_only"),
    )  # type: ignore[arg-type]
    one, other = trained(built), trained(called)
    assert all(torch.equal(one[name], other[name]) for name in one)
    group = called.optimizer.param_groups[0]
    assert len(called.optimizer.param_groups) == 1
    assert group["weight_decay"] == 0.0  # its own, not the trainer's
    assert all("lora_" in name for name in group["param_names"])
