"""False statements on simulated pages of factorials, penalties, losses, checkpoints, judges."""

from __future__ import annotations

import pytest

from tests.false_sentences import DESIGNS, measure
from tests.test_false_sentences import TABLES


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_pages_of_designs_keep_their_level(name):
    measured = measure(name, TABLES)
    assert measured.keeps_level, measured
