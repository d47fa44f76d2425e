"""Fronts, ranks, crowding and volume against brute force."""

import itertools

import numpy as np
import pytest
from bodyplan.search.pareto import (
    constrained_ranks,
    crowding,
    fronts,
    hypervolume,
    nondominated,
    ranks,
    reference_point,
)

GOALS = [["min"], ["min", "max"], ["min", "min", "max"], ["max", "min", "min", "max"]]


def points(seed, count, columns, levels=5):
    """Integer levels make ties and duplicates common."""
    return np.random.default_rng(seed).integers(0, levels, size=(count, columns)).astype(float)


def dominates(a, b, goals):
    signs = np.array([-1 if goal == "max" else 1 for goal in goals])
    return bool(np.all(a * signs <= b * signs) and np.any(a * signs < b * signs))


def brute_nondominated(values, goals):
    return [not any(dominates(other, one, goals) for other in values) for one in values]


@pytest.mark.parametrize("goals", GOALS)
@pytest.mark.parametrize("seed", range(5))
def test_nondominated_is_what_no_other_point_dominates(goals, seed):
    values = points(seed, 30, len(goals))
    assert nondominated(values, goals).tolist() == brute_nondominated(values, goals)


@pytest.mark.parametrize("goals", GOALS)
def test_ranks_peel_one_front_after_the_other(goals):
    values = points(7, 40, len(goals))
    left, level, expected = list(range(40)), 0, np.full(40, -1)
    while left:
        best = [i for i, keep in zip(left, brute_nondominated(values[left], goals), strict=True) if keep]
        expected[best] = level
        left, level = [i for i in left if i not in best], level + 1
    assert ranks(values, goals).tolist() == expected.tolist()
    assert [front.tolist() for front in fronts(values, goals)] == [
        np.flatnonzero(expected == r).tolist() for r in range(level)]


def test_equal_points_all_stay_on_the_front():
    assert nondominated([[1, 1], [1, 1], [2, 2]], ["min", "min"]).tolist() == [True, True, False]


def test_rows_with_nan_belong_to_no_front_and_dominate_nothing():
    values = [[0.0, np.nan], [1.0, 1.0], [np.nan, np.nan]]
    assert nondominated(values, ["min", "min"]).tolist() == [False, True, False]
    assert ranks(values, ["min", "min"]).tolist() == [-1, 0, -1]
    assert crowding(values).tolist() == [0.0, np.inf, 0.0]


def test_infinite_values_compare_like_numbers():
    assert nondominated([[np.inf, 0.0], [1.0, 0.0], [-np.inf, 5.0]], ["min", "min"]).tolist() == [False, True, True]


def test_an_empty_set_has_an_empty_front_and_no_volume():
    assert nondominated([], ["min", "max"]).tolist() == []
    assert fronts(np.empty((0, 2)), ["min", "max"]) == []
    assert hypervolume([], ["min", "max"], [1, 0]) == 0.0


def test_feasible_points_rank_before_infeasible_ones_and_those_by_violation():
    values = [[3, 3], [1, 1], [0, 0], [2, 2]]
    assert constrained_ranks(values, ["min", "min"], [0, 0, 0.5, 0.1]).tolist() == [1, 0, 3, 2]
    assert constrained_ranks(values, ["min", "min"], [1, 1, 1, 1]).tolist() == [0, 0, 0, 0]


def test_crowding_is_the_side_length_of_the_empty_box():
    values = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    distance = crowding(values)
    assert distance[[0, 3]].tolist() == [np.inf, np.inf]
    assert distance[1] == pytest.approx(3 / 4 + 3 / 4) and distance[2] == pytest.approx(3 / 4 + 2 / 4)


def test_the_middle_one_of_equal_points_is_not_lonely():
    assert crowding([[1.0, 1.0]] * 3 + [[0.0, 2.0], [2.0, 0.0]])[1] == 0.0


@pytest.mark.parametrize("goals", GOALS)
@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_is_the_number_of_dominated_unit_cells(goals, seed):
    values = points(seed, 12, len(goals))
    signs = np.array([-1 if goal == "max" else 1 for goal in goals])
    reference = signs * 4
    cells = itertools.product(range(-8, 4), repeat=len(goals))
    signed = values * signs
    expected = sum(any((point <= cell).all() for point in signed) for cell in map(np.array, cells))
    assert hypervolume(values, goals, reference) == pytest.approx(expected)


def test_points_that_do_not_beat_the_reference_everywhere_add_no_volume():
    assert hypervolume([[0, 5], [0, 4], [np.nan, 0]], ["min", "min"], [4, 4]) == 0.0
    assert hypervolume([[1, 1], [1, 1], [2, 2]], ["min", "min"], [3, 3]) == pytest.approx(4.0)


def test_the_reference_point_is_a_tenth_worse_than_the_worst_probe():
    values = [[10.0, 2.0, -4.0], [5.0, 3.0, -2.0], [np.nan, 9.0, 0.0]]
    assert reference_point(values, ["min", "max", "min"]) == pytest.approx([11.0, 1.8, -1.8])
    assert reference_point([[0.0]], ["min"]) == [0.1]
    with pytest.raises(ValueError, match="at least one probe"):
        reference_point([[np.nan]], ["min"])


def test_columns_and_goals_must_match():
    with pytest.raises(ValueError, match="3 columns and 2 goals"):
        nondominated([[1, 2, 3]], ["min", "min"])
