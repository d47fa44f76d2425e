"""Objectives: bounds on the right side, violations in shares, names that are found or nearly found."""

import math
from types import SimpleNamespace

import cloudpickle
import pytest
from bodyplan.evaluators.objectives import Estimate, Objective, objectives, resolve


def size(goal="min"):
    return Objective("size", goal=goal, unit="MB", evaluate=lambda architecture: 4.0)


def architecture():
    return SimpleNamespace(
        cost=lambda length: SimpleNamespace(parameters=7, macs=length * 2.0, state_bytes=12))


def test_a_bound_makes_a_copy():
    free = size()
    bounded = free <= 10
    assert (free.bound, bounded.bound) == (None, 10.0) and bounded.name == "size"
    assert (size("max") >= 3).bound == 3.0


def test_a_bound_on_the_side_that_is_better_is_refused():
    with pytest.raises(ValueError, match="takes <=, not >= 3"):
        _ = size() >= 3
    with pytest.raises(ValueError, match="takes >=, not <= 3"):
        _ = size("max") <= 3


@pytest.mark.parametrize("bound", [math.nan, math.inf, "ten", True])
def test_a_bound_is_a_finite_number(bound):
    with pytest.raises(ValueError, match="finite number"):
        _ = size() <= bound


@pytest.mark.parametrize(("goal", "value", "share"), [
    ("min", 9, 0.0), ("min", 10, 0.0), ("min", 15, 0.5), ("max", 11, 0.0), ("max", 5, 0.5),
    ("min", math.nan, math.inf)])
def test_the_violation_is_a_share_of_the_bound(goal, value, share):
    bounded = size() <= 10 if goal == "min" else size("max") >= 10
    assert bounded.violation(value) == share


def test_a_bound_of_zero_counts_absolutely_and_no_bound_is_never_violated():
    assert (size() <= 0).violation(2.0) == 2.0
    assert size().violation(1e9) == 0.0


@pytest.mark.parametrize(("arguments", "error", "word"), [
    (dict(name="", evaluate=len), ValueError, "has a name"),
    (dict(name="x", evaluate=len, goal="minimise"), ValueError, "goal must be one of min, max"),
    (dict(name="x", evaluate=len, needs="modle"), ValueError, "needs must be one of architecture, model"),
    (dict(name="x"), TypeError, "evaluate must be a function"),
    (dict(name="x", evaluate=len, reference=math.nan), ValueError, "reference must be a finite number")])
def test_mistakes_are_named(arguments, error, word):
    with pytest.raises(error, match=word):
        Objective(**arguments)


@pytest.mark.parametrize(("name", "value"), [("parameters", 7), ("macs", 512.0), ("state_bytes", 12)])
def test_cost_objectives_read_the_declared_cost(name, value):
    assert resolve(name).evaluate(architecture()) == value


def test_loss_takes_direction_unit_and_metric_from_the_task():
    task = SimpleNamespace(goal="min", unit="bits/byte", score=lambda module, split: module * 2.0)
    bound = resolve("loss", task)
    assert bound.unit == "bits/byte" and bound.needs == "model" and bound.evaluate(None, 3) == 6.0
    assert resolve(resolve("loss"), task).evaluate(None, 3) == 6.0
    with pytest.raises(ValueError, match="give task="):
        resolve("loss").evaluate(None, 3)


def test_unknown_names_are_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'parameters'"):
        resolve("paramters")
    with pytest.raises(TypeError, match="wrap a function"):
        resolve(len)
    assert set(objectives.names()) >= {"loss", "parameters", "macs", "state_bytes"}


def test_objectives_travel_by_cloudpickle():
    offset = 2.0
    travelled = cloudpickle.loads(cloudpickle.dumps(Objective("x", evaluate=lambda a: a + offset) <= 5))
    assert travelled.evaluate(1.0) == 3.0 and travelled.bound == 5.0


def test_the_description_says_unit_direction_and_bound():
    assert (size() <= 10).describe() == "size (MB, less is better, at most 10)"


def test_an_estimate_is_its_numbers():
    assert Estimate(1.0, 0.5, 2.0)[:3] == (1.0, 0.5, 2.0)
