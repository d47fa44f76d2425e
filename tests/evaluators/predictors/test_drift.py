"""Drift: shifts between blocks are found where they are, and none where there are none."""

import numpy as np
import pytest
from bodyplan.evaluators.predictors import find_drift


def noise(rows, seed=0):
    return 0.03 * np.random.default_rng(seed).standard_t(3, rows)


def test_shifted_blocks_are_found_at_their_borders():
    rest = noise(600)
    rest[200:300] += 0.2
    found = find_drift(np.arange(600.0), rest)
    assert len(found.sessions) == 3
    assert [session.first for session in found.sessions] == pytest.approx([0, 200, 300], abs=4)
    assert found.largest == pytest.approx(0.2, abs=0.03)
    assert "3 sessions" in str(found)


def test_noise_alone_is_one_session():
    lone = [len(find_drift(np.arange(300.0), noise(300, seed)).sessions) for seed in range(40)]
    assert lone.count(1) >= 38


def test_rows_may_come_in_any_order():
    rest, order = noise(200), np.arange(200.0)
    rest[:80] += 0.2
    shuffled = np.random.default_rng(1).permutation(200)
    assert find_drift(order[shuffled], rest[shuffled]) == find_drift(order, rest)


def test_what_cannot_be_looked_at_is_said():
    with pytest.raises(ValueError, match="at least 20 rows: got 5"):
        find_drift(np.arange(5.0), np.zeros(5))
    with pytest.raises(ValueError, match="one finite rest per row"):
        find_drift(np.arange(30.0), np.full(30, np.nan))
