"""Loss scaling of float16 training: the penalty is the same, and a skipped step is skipped."""

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from evilspectra.integrations.transformers import SpectralFlatness
from tests.support.tiny_trainers import PLAIN, adapted, apart, dialogues, factors, trained

#: Relative norm of the difference per factor: the same sums in the same order.
SAME_ORDER = 1e-6


class Scaled(TrainerCallback):
    """Turns on accelerate's loss scaler on a CPU, as if for float16, once the model is prepared."""

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
    )
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
