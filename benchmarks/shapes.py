"""The linear layers of the models whose LoRA factors the benchmarks draw: shapes, no weights."""

from __future__ import annotations

from dataclasses import dataclass

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shapes:
    """The projections of one block as (d_in, d_out), the number of blocks, and the rank."""

    layers: int
    linear: tuple[tuple[int, int], ...]
    rank: int

    def modules(self, layers: int | None = None) -> list[tuple[str, tuple[int, int]]]:
        """Name and (d_in, d_out) of every projection, block by block."""
        return [
            (f"{block}.{name}", shape)
            for block in range(layers or self.layers)
            for name, shape in zip(PROJECTIONS, self.linear, strict=True)
        ]


def decoder(
    hidden: int,
    query: int,
    keys: int,
    inner: int,
) -> tuple[tuple[int, int], ...]:
    """q, k, v, o, gate, up, down of a block."""
    return (
        (hidden, query),
        (hidden, keys),
        (hidden, keys),
        (query, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    )


MODELS = {
    "smollm2-135m": Shapes(30, decoder(576, 576, 192, 1536), 16),
    "qwen3-0.6b": Shapes(28, decoder(1024, 2048, 1024, 3072), 32),
    "qwen3-8b": Shapes(36, decoder(4096, 4096, 1024, 12288), 32),
}

#: Read by the X-ray's benchmark only: too large for those that hold all factors in memory.
LARGE = {"llama-70b": Shapes(80, decoder(8192, 8192, 1024, 28672), 64)}
