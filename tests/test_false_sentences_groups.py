"""False statements on simulated pages of 2 to 8 equal groups, unequal spreads, heavy tails."""

from __future__ import annotations

import pytest

from tests.false_sentences import GROUPS, measure
from tests.test_false_sentences import TABLES


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_pages_of_equal_groups_keep_their_level(name):
    measured = measure(name, TABLES)
    assert measured.keeps_level, measured
