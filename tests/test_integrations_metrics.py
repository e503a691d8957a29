"""Metrics of the callbacks in the trainer's log, and in trackers that read it."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from tests.support.tiny_trainers import sft, trained


class Reporter(TrainerCallback):
    """Stands in for a tracker: keeps every log that it receives."""

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
def test_reporters_before_the_callbacks_get_the_metrics(tmp_path, how):
    reporter = Reporter()
    flat = SpectralFlatness(weight=1.0, record=False)
    monitor = SpectrumMonitor(every=2, record=False)
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
    handler.on_train_begin(None, None, type("Control", (), {})())
    assert [len(callback.logs) for callback in counting] == [1, 1, 1, 1]


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
    for folder in {path.parent for path in tmp_path.rglob("events.out.tfevents*")}:
        scalars = accumulator.EventAccumulator(str(folder))
        scalars.Reload()
        events |= {
            tag: {event.step: event.value for event in scalars.Scalars(tag)}
            for tag in scalars.Tags()["scalars"]
        }
    for tag in (
        "loss",
        "flatness/mean",
        "flatness/penalty",
        "spectrum/stable_rank",
        "spectrum/spectral_entropy",
    ):
        assert list(events[f"train/{tag}"]) == [2, 4, 6], tag
    logged = {
        log["step"]: log["flatness/mean"]
        for log in trainer.state.log_history
        if "flatness/mean" in log
    }
    assert events["train/flatness/mean"] == pytest.approx(logged, rel=1e-6)  # float32 there


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a W&B run file.

    It is a log in LevelDB's format (blocks of 32 KiB; checksum, length and kind before each piece)
    after a head of 7 bytes.
    """
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
