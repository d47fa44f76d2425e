"""The front, its knee, its table; truth by brute force."""

import numpy as np
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.front import Criterion, Front, is_feasible
from bodyplan.search.journal import Trial
from bodyplan.space.genome import Genome

MIN_MIN = [{"name": "a", "goal": "min", "unit": "ms"}, {"name": "b", "goal": "min"}]


def trial(number, a, b, **more):
    return Trial(number, Genome({"width": number}), **{"state": "complete", "values": {"a": a, "b": b}, **more})


def front(*pairs, objectives=MIN_MIN, **more):
    return Front([trial(number, *pair) for number, pair in enumerate(pairs)], objectives, **more)


def test_the_front_holds_what_nothing_dominates_ordered_by_the_first_objective():
    found = front((3, 1), (1, 3), (2, 2), (3, 3), (2, 2))
    assert [point.number for point in found] == [1, 2, 4, 0]
    assert len(found.candidates) == 5


def test_goals_decide_the_direction():
    found = front((3, 1), (1, 3), (0, 0), objectives=[{"name": "a", "goal": "max"}, MIN_MIN[1]])
    assert [point.number for point in found] == [0, 2]


def test_failed_running_incomplete_and_infeasible_candidates_are_left_out():
    bounded = [{"name": "a", "goal": "min", "bound": 2.0}, MIN_MIN[1]]
    given = [trial(0, 1, 9), trial(1, 3, 0), trial(2, 0, 0, state="failed", values={}), trial(3, 0, 0, state="running"),
             trial(4, float("nan"), 0), trial(5, 0, 0, values={"a": 0})]
    assert [point.number for point in Front(given, bounded)] == [0]
    assert [is_feasible(t, [Criterion.of(o) for o in bounded]) for t in given] == [True] + [False] * 5


def test_an_empty_front_has_no_volume_and_no_knee():
    empty = front(reference=[1, 1])
    assert len(empty) == 0 and empty.hypervolume() == 0.0 and empty.to_frame().empty and empty.best(3) == []
    with pytest.raises(BodyplanError, match="no candidate was complete"):
        empty.knee()


def test_the_knee_is_farthest_below_the_line_through_the_extremes():
    found = front((0, 10), (1, 3), (2, 2.9), (5, 1), (10, 0))
    scaled = found.values / 10
    assert found.knee().number == int(np.argmin(scaled.sum(axis=1)))
    assert [point.number for point in found.best(2)] == [1, 2]


def test_the_knee_by_utility_is_the_point_whose_loss_costs_most():
    """Brute force over the same preferences on a front where bulge and utility differ."""
    found = front((0, 10), (2, 4.1), (2.1, 4.0), (4, 2), (10, 0))
    weights = np.random.default_rng(1).dirichlet([1, 1], size=20_000)
    utilities = weights @ (found.values / 10).T
    inner = [(np.delete(utilities, i, axis=1).min(axis=1) - utilities.min(axis=1)).mean() for i in (1, 2, 3)]
    assert found.knee("utility").number == found.points[1 + int(np.argmax(inner))].number
    with pytest.raises(ValueError, match="'bulge' or 'utility'"):
        found.knee("elbow")


def test_a_front_of_one_and_ties_go_to_the_lower_number():
    assert front((1, 1)).knee().number == 0 and front((1, 1)).knee("utility").number == 0
    assert front((0, 1), (1, 0), (0, 1)).knee().number == 0


def test_the_volume_needs_a_reference_point_of_the_right_length():
    assert front((1, 1), (0, 2)).hypervolume([3, 3]) == pytest.approx(5.0)
    assert front((1, 1), reference=[2, 2]).hypervolume() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="this front has none"):
        front((1, 1)).hypervolume()
    with pytest.raises(ValueError, match="got 3 for 2"):
        front((1, 1)).hypervolume([1, 2, 3])


def test_the_table_has_intervals_and_decisions():
    point = trial(4, 1.0, 2.0, intervals={"a": (0.5, 1.5)}, labels={"width": "96"}, hash="ab" * 32)
    row = Front([point], MIN_MIN).to_frame().iloc[0]
    assert (row["number"], row["hash"], row["a"], row["a_low"], row["a_high"], row["decision width"]) == (
        4, "abababab", 1.0, 0.5, 1.5, "96")


def test_points_read_without_a_space_say_how_to_build_them():
    with pytest.raises(BodyplanError, match=r"run\(resume=True\)"):
        _ = front((1, 1)).points[0].architecture


def test_labels_carry_unit_and_device():
    assert Criterion("latency", unit="ms", device="cpu").label == "latency (ms on cpu)"
    assert Criterion("parameters").label == "parameters"
