"""Effects of a known size are shown on enough simulated pages, and nothing else is.

`python -m tests.false_sentences --power --tables 500` measures more tables of each.
"""

from __future__ import annotations

import pytest

from tests.false_sentences import POWERED, measure
from tests.test_false_sentences import TABLES


@pytest.mark.slow
@pytest.mark.parametrize("name", POWERED)
def test_effects_are_shown_and_their_pages_keep_the_level(name):
    measured = measure(name, TABLES)
    print(f"power | {name} | {measured.power:.3f}")
    least = POWERED[name].expected.least
    assert least is None or measured.power >= least, measured
    assert measured.keeps_level, measured
