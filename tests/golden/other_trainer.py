"""A training in the Trainer of transformers with this package's callbacks; argument: a folder."""

import sys


def train(output: str) -> None:
    """Trains an adapter on a random Llama for eight steps and saves it in the folder `output`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    base = LlamaForCausalLM(config)
    base.name_or_path = "random-llama"
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    tokens = [[(7 * row + 3 * step) % 64 for step in range(12)] for row in range(16)]
    arguments = TrainingArguments(
        output,
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[SpectralFlatness(weight=0.3), SpectrumMonitor(every=4)],
    )
    trainer.train()
    model.save_pretrained(output)


if __name__ == "__main__":
    train(sys.argv[1])
