"""A generated base model and tokenizer: no download, no files, the same bytes each time.

For tests and dry runs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: The built-in name that stands for this model wherever a base model is named.
TINY = "tiny-random"
CONTEXT = 1024
_RECIPE = "tiny-random-1"
_SEED = 20250201
_PAD, _START, _END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# ChatML: every turn between a start and an end marker, and no text that is not the caller's.
_TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_sha256() -> str:
    """A hash in place of the tiny model's content; it changes with the code that makes the model.

    >>> len(tiny_sha256())
    64
    """
    return hashlib.sha256(_RECIPE.encode()).hexdigest()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per UTF-8 byte (256) and three special ones.

    These are pad, and start and end of a turn; the end doubles as end of sequence. Any text
    survives a round trip. The chat template is ChatML without a default system prompt.

    >>> tokenizer = tiny_tokenizer()
    >>> tokenizer.decode(tokenizer("½ ok").input_ids), len(tokenizer("½ ok").input_ids)
    ('½ ok', 5)
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[assignment]
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (_PAD, _START, _END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        name_or_path=TINY,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_START],
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        chat_template=_TEMPLATE,
    )


def tiny_model(dtype: torch.dtype | None = None) -> LlamaForCausalLM:
    """A Llama of 2 layers and about 91,000 random weights, in evaluation mode.

    Its width is 64, with 4 heads (2 for keys and values). Weight matrices are drawn in float64 from
    N(0, 1/columns) with a fixed seed and then rounded to `dtype` (default: float32), so that models
    of two types differ by rounding alone; norms are 1. The caller's random state is neither read
    nor changed.

    >>> tiny_model().config.hidden_size
    64
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.vocab[_PAD],
        bos_token_id=None,
        eos_token_id=tokenizer.vocab[_END],
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).to(dtype=dtype or torch.float32)  # type: ignore[call-arg]
    draw = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(
                    torch.randn(weight.shape, dtype=torch.float64, generator=draw)
                    / weight.shape[1] ** 0.5
                )
    model.name_or_path = TINY
    return model.eval()
