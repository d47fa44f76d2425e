"""The pruning study: its search against enumeration, its baseline, and all of it in seconds at a toy size."""

import json

import pytest
import torch
from bodyplan.experiments import pruning_study
from bodyplan.experiments.pruning_page import page
from bodyplan.experiments.pruning_study import QUICK, Settings, evolve, study, supernet_space, uniform_genome


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    pruning_study.main(["--out", str(folder), "--quick"])
    return folder, json.loads((folder / "pruning.json").read_text())


def test_the_search_finds_the_best_of_all_within_the_bound():
    settings = Settings(**QUICK)
    macs = 0.7 * largest(settings).cost(settings.length).macs
    space = supernet_space(settings, macs)

    def score(genome):
        asked.append(genome)
        return -space.architecture(genome).cost().parameters

    asked = []
    best, trace = evolve(score, space, [], evaluations=20, seed=0)
    everything = set(space.enumerate())
    assert len(asked) == len(set(asked)) == len(trace) == 20 < len(everything)
    assert trace == sorted(trace, reverse=True) and trace[-1] == score(best)
    assert all(space.architecture(genome).cost(settings.length).macs <= macs for genome in asked)
    assert score(best) == min(map(score, everything))


def test_the_uniform_network_keeps_equal_fractions_of_every_layer():
    settings = Settings()
    space, whole = supernet_space(settings), largest(settings).cost(settings.length).macs
    plan = space.architecture(uniform_genome(space, settings, 0.5 * whole)).plan
    assert len(plan.layers) == settings.layers and len(set(plan.layers)) == 1
    assert (plan.layers[0].mixer.heads, plan.layers[0].channel.ratio) == (2, 0.9375)
    cost = space.architecture(uniform_genome(space, settings, 0.5 * whole)).cost(settings.length)
    assert 0.49 * whole < cost.macs <= 0.5 * whole
    with pytest.raises(ValueError, match="there is none; raise share"):
        uniform_genome(space, settings, 0.05 * whole)


def test_a_quick_study_reports_every_network(finished):
    _, found = finished
    rows = {row["network"]: row for row in found["rows"]}
    assert list(rows) == ["original", "searched", "magnitude, uniform", "activation, uniform",
                          "searched size from scratch, same steps", "uniform size from scratch, same steps",
                          "searched size from scratch, steps of original and distillation"]
    whole = rows.pop("original")
    assert all(row["macs"] <= QUICK["share"] * whole["macs"] for row in rows.values())
    assert found["ordered_full_size"] == pytest.approx(whole["before"], abs=1e-4)
    assert len(found["search"]) == QUICK["evaluations"]
    for row in rows.values():
        assert len(row["after"]) == QUICK["test_batches"] and all(0 < bits < 9 for bits in row["after"])
    assert rows["searched"]["before"] != rows["searched"]["after"]


def test_a_study_that_is_run_again_continues_from_its_checkpoints(finished):
    folder, found = finished
    again = study(Settings(**QUICK), folder)
    assert again["rows"] == found["rows"] and again["search"] == found["search"]


def test_the_page_holds_what_the_study_found(finished, tmp_path):
    folder, found = finished
    target = tmp_path / "docs" / "pruning.md"
    pruning_study.main(["--out", str(folder), "--report", "--page", str(target)])
    text = target.read_text()
    assert text == page(found) and json.loads(target.with_suffix(".json").read_text()) == found
    original = found["rows"][0]
    assert f"| original | {original['parameters']:,} | 100.0% | {sum(original['before']) / 2:.3f} [" in text
    assert all(f"| {row['network']} |" in text for row in found["rows"])
    with pytest.raises(ValueError, match="needs a finished study"):
        pruning_study.main(["--out", str(tmp_path / "none"), "--report", "--page", str(target)])


def test_the_page_says_better_and_worse_by_the_interval():
    base = {"parameters": 10, "macs": 10.0, "before": None}
    rows = [{**base, "network": "original", "before": [2.0, 2.1, 2.2], "after": None},
            {**base, "network": "searched", "after": [2.1, 2.2, 2.3]},
            {**base, "network": "worse", "after": [2.5, 2.6, 2.8]},
            {**base, "network": "like it", "after": [2.0, 2.2, 2.4]}]
    from dataclasses import asdict

    text = page({"rows": rows, "settings": asdict(Settings()), "machine": {"processor": "a machine", "torch": "2"},
                 "command": "it", "date": "2026-01-01", "task": "bytes", "size": "100", "ordered_full_size": [2.0],
                 "search": [3.0, 2.5], "seconds": {"original": 60.0}, "searched": "a", "uniform": "b"})
    assert "- original: +0.100 [+0.100, +0.100] bits per byte: worse" in text
    assert "- worse: -0.433" in text and text.split("- worse:")[1].splitlines()[0].endswith("better")
    assert text.split("- like it:")[1].splitlines()[0].endswith("no clear difference")
    assert "3.000 after 1, 2.500 after 2 candidates" in text and "1.0 minutes in all" in text


def largest(settings):
    space = supernet_space(settings)
    return space.architecture(space.largest())
