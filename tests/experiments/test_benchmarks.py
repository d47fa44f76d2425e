"""The benchmarks run, at sizes that show nothing, and say what they measured."""

import pytest
import torch
from bodyplan.experiments import bench_candidate, bench_slicing


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_candidate_is_new_allowed_and_counted():
    space = bench_candidate.design_space()
    draw = bench_candidate.Draw(space, seed=0)
    costs = [draw() for _ in range(20)]
    assert len(draw.seen) == 20 and all(parameters > 0 and macs > 0 for parameters, macs in costs)
    assert all(parameters <= bench_candidate.MOST_PARAMETERS for parameters, _ in costs)


def test_a_known_candidate_is_drawn_again():
    space = bench_candidate.design_space()
    first, second = bench_candidate.Draw(space, seed=3), bench_candidate.Draw(space, seed=3)
    first()
    second.seen = set(first.seen)
    second()
    assert second.duplicates == 1 and second.seen > first.seen


def test_the_time_of_a_candidate_comes_with_its_interval():
    found = bench_candidate.measure(candidates=200, repeats=1)
    assert 0 < found["low"] <= found["ms"] <= found["high"]
    assert (found["candidates"], found["aim_ms"], found["met"]) == (200, 0.5, found["high"] <= 0.5)
    assert set(bench_candidate.stages(20)) == {
        "sample, canonicalise, constrain", "resolve", "hash", "parameters and multiply-adds"}


@pytest.mark.parametrize("kind", list(bench_slicing.KINDS))
def test_every_kind_has_a_tax_at_full_and_at_half_width(kind):
    rows = bench_slicing.measure([kind], [64], batches=["small"], repeats=2, seconds=0.0)
    assert [(row["width"], row["of"], row["tokens"]) for row in rows] == [(32, 64, 128), (64, 64, 128)]
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["pairs"] == 2 for row in rows)


def test_ratios_are_of_times_measured_in_turn():
    order = []
    found = bench_slicing.ratio(lambda: order.append("a"), lambda: order.append("b"), repeats=4)
    assert "".join(order) == "abab" + "abbaabba" and found["pairs"] == 4
