"""Graphs: topologies never seen, bodyplan's own architectures, and what is not a graph."""

import numpy as np
import pytest
from bodyplan.evaluators.costing import workload as bp_workload
from bodyplan.evaluators.predictors import Predictor, TypedGraph, as_table, features
from bodyplan.evaluators.predictors.typed_graph import of_architecture, refined
from bodyplan.experiments.bench_candidate import design_space

COSTS = {"conv": 3.0, "pool": 1.0, "norm": 0.4, "sum": 0.2}


def random_graph(rng):
    """A random cell: every node reads one or two of those before it."""
    count = int(rng.integers(4, 12))
    types = tuple(rng.choice(list(COSTS), count).tolist())
    edges = {(int(rng.integers(0, node)), node) for node in range(1, count) for _ in range(2)}
    return TypedGraph(types, tuple(sorted(edges)))


def latency(graph):
    """Nodes add up; a pool behind a convolution is fused and free."""
    fused = {b for a, b in graph.edges if graph.types[a] == "conv" and graph.types[b] == "pool"}
    return 1.0 + sum(COSTS[name] for node, name in enumerate(graph.types) if node not in fused)


@pytest.mark.long
def test_unseen_topologies_are_predicted_better_than_by_counting():
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng) for _ in range(160)]
    truth = np.array([latency(graph) for graph in graphs])
    value, low, high = Predictor("gaussian linear").fit(graphs[:80], truth[:80]).predict(graphs[80:])
    counts = np.array([[graph.types.count(name) for name in COSTS] for graph in graphs], dtype=float)
    plain = np.linalg.lstsq(np.c_[np.ones(80), counts[:80]], truth[:80], rcond=None)[0]
    counted = np.c_[np.ones(80), counts[80:]] @ plain
    assert np.abs(value / truth[80:] - 1).mean() < 0.7 * np.abs(counted / truth[80:] - 1).mean()
    assert np.mean((low <= truth[80:]) & (truth[80:] <= high)) > 0.8


def test_renaming_nodes_changes_nothing():
    graph = TypedGraph(("conv", "pool", "sum"), ((0, 1), (1, 2), (0, 2)), (1.0, 2.0, 3.0))
    turned = TypedGraph(("sum", "conv", "pool"), ((1, 2), (2, 0), (1, 0)), (3.0, 1.0, 2.0))
    assert [sorted(names) for names in refined(graph, 2)] == [sorted(names) for names in refined(turned, 2)]
    assert graph.numbers() == turned.numbers() and graph.longest_path() == 3


def test_the_direction_of_an_edge_counts():
    one = TypedGraph(("conv", "pool"), ((0, 1),))
    other = TypedGraph(("conv", "pool"), ((1, 0),))
    assert sorted(refined(one, 1)[1]) != sorted(refined(other, 1)[1])


def test_architectures_are_predicted_from_their_declarations(space):
    found = [space.sample(seed) for seed in range(60)]
    macs = np.array([architecture.cost().macs for architecture in found])
    table = features(found)
    assert len(table) == 60 and table.graphs is not None and table.names[:2] == ("parameters", "macs")
    predictor = Predictor("gaussian").fit(found[:40], macs[:40])
    assert np.abs(predictor.predict(found[40:]).value / macs[40:] - 1).mean() < 0.05


def test_sizes_of_nodes_are_the_parameters(space):
    architecture = space.sample(3)
    assert sum(features([architecture]).graphs[0].sizes) == pytest.approx(architecture.cost().parameters)


@pytest.mark.parametrize("given, message", [
    (((), ()), "needs nodes"), ((("a",), ((0, 1),)), "joins two of the 1 nodes"),
    ((("a",), (), (1.0, 2.0)), "one size per node"), ((("a",), (), (float("nan"),)), "finite and not negative")])
def test_what_is_not_a_graph_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TypedGraph(*given)


def test_parts_that_were_fitted_are_asked_for():
    graphs = [random_graph(np.random.default_rng(seed)) for seed in range(20)]
    fitted = Predictor("gaussian").fit(graphs, [latency(graph) for graph in graphs])
    with pytest.raises(ValueError, match="samples need graphs"):
        fitted.predict({name: [1.0] for name in as_table(graphs).names})


@pytest.mark.parametrize("name", ["macs", "decode_macs", "state_bytes"])
def test_a_latency_that_is_one_cost_is_found_among_all_columns(name):
    space = design_space()
    found = [space.sample(seed) for seed in range(80)]
    table = features(found, 256)
    truth = np.expm1(table.values[:, table.names.index(name)]) + 1.0
    fitted = Predictor("gaussian").fit(table.rows(slice(40)), truth[:40])
    assert np.abs(fitted.predict(table.rows(slice(40, 80))).value / truth[40:] - 1).mean() < 0.05


def test_a_decode_has_work_of_its_own(space):
    found = [space.sample(seed) for seed in range(3)]
    prefill, decode = features(found, 64), features(found, 64, "decode")
    assert prefill.names == decode.names and not any("gene" in name for name in prefill.names)
    for row, architecture in enumerate(found):
        for table, phase in ((prefill, "prefill"), (decode, "decode")):
            work = bp_workload(architecture, 64, phase)
            runs = sum(part.times for part in work.rows)
            assert np.expm1(table.values[row, table.names.index("runs")]) == pytest.approx(runs)
            assert np.expm1(table.values[row, table.names.index("eager")]) == pytest.approx(work.total("eager"))
            products = sum(n for key, n in table.amounts[row].items() if key.startswith("macs in"))
            assert products == pytest.approx(work.total("macs"))
    with pytest.raises(ValueError, match="a workload is of 'prefill' or 'decode'"):
        features(found, 64, "train")


def test_loops_that_adapt_matrices_are_counted():
    space = design_space()
    looped = [each for seed in range(40) if (each := space.sample(seed)).plan.recursion.lora_rank][:3]
    for architecture, row in zip(looped, features(looped).values, strict=True):
        pairs = [name for name in architecture.parameters if name.startswith("lora.") and name.endswith(".A")]
        times = architecture.plan.recursion.times
        assert np.expm1(row[-2]) == pytest.approx(len(pairs) * times) and row[-1] > row[-2]
        assert sum(of_architecture(architecture).sizes) == pytest.approx(architecture.cost().parameters)
