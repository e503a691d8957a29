"""Warnings about a design: settings that change together, and cells with one run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sweep_files import ONE_EACH, sweep

OWN_RATES = "each optimiser has a single learning rate"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"axes": {"train.batch_size": [2, 4], "lora.rank": [1, 2]}, "seeds": 2}, []),
        ({"axes": {"lora.rank": [1, 2]}}, [ONE_EACH]),
        (
            {"zip": [{"train.batch_size": [2, 4], "lora.rank": [1, 2]}], "seeds": 2},
            [
                (
                    "lora.rank and train.batch_size always change together, so their effects "
                    "cannot be separated"
                )
            ],
        ),
        (
            {"zip": [{"train.batch_size": [2, 4, 4], "lora.rank": [1, 2, 3]}], "seeds": 2},
            [
                (
                    "train.batch_size never varies apart from lora.rank: each value of lora.rank "
                    "occurs with one value of train.batch_size only"
                )
            ],
        ),
        ({"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 4]}], "seeds": 2}, []),
        ({"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 8]}], "seeds": 2}, []),
        (
            {"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 5]}], "seeds": 2},
            ["train.steps and train.batch_size always change together"],
        ),
        (
            {
                "axes": {"optimizer": [{"name": "sgd", "lr": 0.1}, {"name": "muon", "lr": 0.2}]},
                "seeds": 2,
            },
            [OWN_RATES],
        ),
        (
            {
                "axes": {
                    "optimizer": [
                        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
                        {"name": "muon", "lr": 0.1},
                    ]
                },
                "seeds": 2,
            },
            [],
        ),
        ({"axes": {"optimizer.lr": [0.1, 0.2], "optimizer.name": ["sgd", "muon"]}, "seeds": 2}, []),
        (
            {"zip": [{"optimizer.lr": [0.1, 0.2], "train.batch_size": [2, 4]}], "seeds": 2},
            ["optimizer.lr and train.batch_size always change together"],
        ),
        (
            {
                "zip": [
                    {
                        "optimizer.name": ["sgd", "muon"],
                        "flatness.weight": [0, 1],
                        "flatness.measure": ["entropy", "participation"],
                    }
                ],
                "seeds": 2,
            },
            ["optimizer.name and flatness.weight always change together", OWN_RATES],
        ),
        (
            {
                "axes": {"lora.rank": [1, 2]},
                "seeds": 2,
                "exclude": [{"lora.rank": 1, "train.seed": 1}],
            },
            ["1 of 2 cells have one run"],
        ),
    ],
)
def test_a_design_is_warned_of_what_it_cannot_tell(values: Any, parts: list[str]) -> None:
    warnings = sweep(**values).warnings
    assert len(warnings) == len(parts), warnings
    for text, part in zip(warnings, parts, strict=True):
        assert part in text
