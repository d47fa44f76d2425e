"""What views read of a sweep: ranks, hypervolume over time, decisions in words."""

from __future__ import annotations

import numpy as np
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.journal import Journal
from bodyplan.search.pareto import hypervolume
from bodyplan.search.results import Results, common_decisions, fold_layers, pages, show
from example_sweeps import OBJECTIVES, write_sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.read(write_sweep(tmp_path_factory.mktemp("sweeps") / "three", trials=40))


def test_rank_one_is_exactly_the_front_by_brute_force(results):
    points = {trial.number: results.points([trial])[0] for trial in results.complete}
    free = {a for a, p in points.items()
            if not any((q <= p).all() and (q < p).any() for b, q in points.items() if b != a)}
    assert {number for number, rank in results.ranks.items() if rank == 1} == free == results.on_front


def test_every_complete_trial_has_a_rank_and_no_failed_one(results):
    assert set(results.ranks) == {trial.number for trial in results.complete}
    assert results.failed


def test_candidates_beyond_a_bound_rank_behind_all_within_and_are_not_on_the_front(tmp_path):
    bounded = ({**OBJECTIVES[0]}, {**OBJECTIVES[1], "bound": 1.2})
    results = Results.read(write_sweep(tmp_path / "bounded", objectives=bounded))
    broken = {t.number for t in results.complete if t.values["decode_latency"] > 1.2}
    within = {t.number for t in results.complete} - broken
    assert broken and within and not broken & results.on_front
    assert min(results.ranks[n] for n in broken) > max(results.ranks[n] for n in within)


def test_a_front_of_infeasible_candidates_is_empty_and_has_no_knee(tmp_path):
    impossible = (OBJECTIVES[0], {**OBJECTIVES[1], "bound": 0.0001})
    results = Results.read(write_sweep(tmp_path / "impossible", objectives=impossible, finished=False))
    assert len(results.front) == 0 and results.knee is None and results.on_front == set()


def test_the_running_hypervolume_equals_the_hypervolume_of_each_prefix(results):
    volumes = results.volumes(results.trials)
    points = results.points(results.complete)
    expected = [hypervolume(points[:n + 1], results.goals, results.front.reference) for n in range(len(points))]
    np.testing.assert_allclose(volumes, expected, rtol=1e-9)


def test_without_a_reference_point_there_is_no_hypervolume(tmp_path):
    with Journal.create(tmp_path / "young", {"objectives": list(OBJECTIVES)}) as journal:
        young = Results.read(journal)
    assert young.volumes(young.trials) == [] and young.gain is None and young.corner == ""


def test_results_follow_a_journal_that_grows(tmp_path):
    from random import Random

    from example_sweeps import write_trials
    with Journal.create(tmp_path / "growing", {"objectives": list(OBJECTIVES)}) as journal:
        write_trials(journal, range(3), Random(0))
        assert len(Results.read(journal).trials) == 3
        write_trials(journal, range(3, 5), Random(1))
        assert len(Results.read(journal).trials) == 5


def test_common_decisions_are_made_by_all_and_differ(results):
    paths = common_decisions(results.complete)
    assert paths[:2] == ["width", "body.times"]
    assert all(path in trial.labels for trial in results.complete for path in paths)
    assert common_decisions([]) == []


def test_layers_fold_in_order_with_runs_counted():
    labels = {"body[0].mixer": "A", "body[1].mixer": "A", "body[2].mixer": "B", "body[0].mixer.0.heads": "2"}
    assert fold_layers(labels) == {"body.mixer": "A ×2 · B", "body.mixer.0.heads": "2"}


@pytest.mark.parametrize("value, text", [(1234567.0, "1,234,567 B"), (0.0123456, "0.01235 B"), (3.0, "3 B"),
                                         (20000.4, "20,000 B"), (None, "–"), (-2.5, "-2.5 B")])
def test_numbers_are_shown_with_four_digits_and_their_unit(value, text):
    assert show(value, "B") == text


def test_the_pages_of_a_sweep_are_known_by_name_and_resolve(results):
    assert pages.names() == ["hypervolume.html", "pareto.html", "report.html"]
    assert pages.get("pareto.html")(results).startswith("<!DOCTYPE html>")


def test_a_directory_without_a_journal_is_answered_with_what_to_do(tmp_path):
    with pytest.raises(BodyplanError, match="holds journal.sqlite"):
        Results.read(tmp_path)
