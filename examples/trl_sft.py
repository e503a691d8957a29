"""Supervised fine-tuning with TRL and the flatness penalty: one more import, one more argument.

python examples/trl_sft.py --output out
evilspectra show out
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from evilspectra.config.sections import ModelConfig
from evilspectra.data.rows import read_rows

# the added import
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.model.base import resolve
from evilspectra.model.load import load_base


def dialogues() -> Dataset:
    """The demo's dialogues in TRL's form, for a loss on the answer alone.

    Yours may come from `load_dataset`.
    """
    rows = [
        [{"role": turn.role, "content": turn.content} for turn in talk.messages]
        for talk in read_rows("demo-bad").conversations
    ]
    return Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=ModelConfig().base,
        help="a hub name, a folder, a .gguf file, or a built-in name (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument(
        "--weight",
        type=float,
        default=1.0,
        help="λ of the penalty; 0 only watches (default: %(default)s)",
    )
    parser.add_argument("--output", default="trl-sft-output")
    options = parser.parse_args()

    config = ModelConfig(base=options.model)
    model, tokenizer = load_base(resolve(config), config)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dialogues(),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=options.output,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=1,
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
        ),
        # the added argument
        callbacks=[SpectralFlatness(weight=options.weight), SpectrumMonitor(every=5)],
    )
    trainer.train()
    trainer.save_model()
    print(f"adapter and spectra are in {options.output}: evilspectra show {options.output}")


if __name__ == "__main__":
    main()
