"""Encodings: genomes to vectors and back, networks to paths and graphs."""

import random
import time

import bodyplan as bp
import numpy as np
import pytest
from bodyplan.space.choices import choice, integer, optional, permutation, real, repeat, subset
from bodyplan.space.encoding import graph_encoding, operator_paths, path_encoding
from bodyplan.space.genome import Genome
from bodyplan.space.macros.cell import Cell
from bodyplan.space.macros.parallel import Parallel
from example_spaces import SPACES, make
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import genomes_of, spaces

CONVS = [bp.Block(mixer=bp.ShortConv(kernel=k)) for k in range(2, 11)]
WIDE = {
    "continuous": bp.Block(channel=bp.MLP(ratio=real(1.0, 3.0))),
    "logarithmic": bp.Block(channel=bp.MLP(ratio=real(0.01, 100.0, log=True))),
    "odd bounds": bp.Block(channel=bp.MLP(ratio=real(1 / 3, 22 / 7))),
    "many subsets": subset(*CONVS, size=(0, 5)),
    "orders": permutation(*CONVS[:5]),
    "ordered subsets": subset(*CONVS[:5], size=(1, 3), ordered=True),
    "any of many": repeat(CONVS[0], times=choice(0, 3, 8), keep="any"),
}


@settings(max_examples=30, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_decoding_gives_the_genome_back(space, seed):
    genome = space.sample_genome(random.Random(seed))
    vector = space.encode(genome)
    assert vector.shape == (space.encoder.length,)
    assert space.decode(vector) == genome


@pytest.mark.parametrize("name", WIDE)
def test_decoding_is_exact_for_reals_orders_and_large_subsets(name):
    space, rng = make(width=16, body=WIDE[name], recursion=bp.Once()), random.Random(0)
    for _ in range(200):
        genome = space.sample_genome(rng)
        assert space.decode(space.encode(genome)) == genome


@pytest.mark.parametrize("name", WIDE)
def test_ends_of_ranges_and_extreme_options_round_trip(name):
    space = make(width=16, body=WIDE[name], recursion=bp.Once())
    gene = next(gene for gene in space.genes if gene.path.startswith("body"))
    for decision in (gene.low, gene.high) if gene.options is None else (gene.options[0], gene.options[-1]):
        genome = space.canonical(space._fill({gene.path: decision}, random.Random(0)))
        assert space.decode(space.encode(genome)) == genome


@settings(max_examples=20, deadline=None)
@given(space=spaces(limit=100))
def test_no_two_canonical_genomes_have_one_vector(space):
    genomes = {space.canonical(genome) for genome in genomes_of(space)}
    assert len({space.encode(genome).tobytes() for genome in genomes}) == len(genomes)


@settings(max_examples=20, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_any_vector_decodes_to_a_genome(space, seed):
    vector = np.random.default_rng(seed).normal(size=space.encoder.length)
    genome = space.decode(vector)
    space.validate(genome)
    assert space.canonical(genome) == genome


def test_the_layout_of_a_vector():
    body = bp.Block(mixer=choice(bp.Attention(heads=2, window=optional(8)), bp.Hyena()), channel=bp.MLP(ratio=integer(1, 5)))
    space = make(width=choice(16, 32), body=body, recursion=bp.Once())
    genome = Genome({"width": 1, "body.mixer": 1, "body.channel.ratio": 2})
    assert space.encode(genome).tolist() == [0, 1, 0, 1, 0, 0, 1, 0.25]          # the window is not active
    orders = make(width=16, body=permutation(*CONVS[:3]), recursion=bp.Once())
    assert orders.encode(Genome({"body": (2, 0, 1)})).tolist() == [1, 0, 0, 1, 1, 0, 0, 0, 1, 0]


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match="has shape"):
        SPACES["hybrid"].decode(np.zeros(3))


def test_a_decoded_score_is_its_nearest_option():
    space = make(width=16, body=subset(*CONVS, size=(2, 4)), recursion=bp.Once())
    vector = np.array([1.0, *([0.1] * 9)])
    assert space.decode(vector)["body"] == (0, 1)
    vector[[2, 5, 9]] = 0.9
    assert space.decode(vector)["body"] == (1, 4, 8)


def test_encoding_takes_microseconds():
    block = bp.Block(mixer=choice(bp.Attention(heads=choice(2, 4), kv_heads=choice(1, 2)), bp.Hyena()),
                     channel=choice(bp.MLP(ratio=choice(1, 2)), bp.Identity()))
    space = make(body=repeat(block, times=integer(2, 8)))
    genome = space.sample_genome(random.Random(0))
    space.encode(genome)
    best = min(_seconds(lambda: space.encode(genome)) for _ in range(200))
    assert best < 1e-4


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# -- networks --------------------------------------------------------------------------------------------------------


def cell(*ops):
    """A network with one cell: node j of the cell sums edges from every earlier node."""
    return make(width=16, body=bp.Block(mixer=Parallel(branches=ops)), recursion=bp.Once()).sample(0)


def test_paths_are_the_rows_of_operators_from_input_to_output():
    both = bp.Block(mixer=Parallel(branches=(bp.ShortConv(kernel=3), bp.Attention(heads=2))), channel=bp.MLP(ratio=2))
    paths = operator_paths(make(width=16, body=both, recursion=bp.Once()).sample(0))
    short = {tuple(label.split("(")[0] for label in path if not label.startswith("Parallel")) for path in paths}
    assert short == {(), ("ShortConv",), ("Attention",), ("MLP",), ("ShortConv", "MLP"), ("Attention", "MLP")}


def test_path_encodings_agree_exactly_where_paths_do():
    first, again = cell(bp.ShortConv(), bp.Hyena()), cell(bp.Hyena(), bp.ShortConv())
    other = cell(bp.Hyena(), bp.Attention(heads=2))
    assert (path_encoding(first) == path_encoding(again)).all()
    assert (path_encoding(first) != path_encoding(other)).any()
    assert path_encoding(first, length=32).shape == (32,)
    assert set(path_encoding(first)) == {0.0, 1.0}


def test_every_path_of_a_cell_is_hashed():
    edges = repeat(choice(bp.Identity(), bp.ShortConv(kernel=3), bp.MLP(ratio=1)), times=3)
    space = make(width=16, body=bp.Block(mixer=Cell(edges=edges)), recursion=bp.Once())
    for seed in range(5):
        architecture = space.sample(seed)
        row = path_encoding(architecture, length=4096)
        assert row.sum() == len(set(operator_paths(architecture)))


def test_deep_residual_networks_keep_their_shortest_paths():
    deep = make(width=16, body=repeat(bp.Block(mixer=bp.ShortConv(), channel=bp.MLP(ratio=1)), times=12), recursion=bp.Once())
    paths = operator_paths(deep.sample(0), limit=50)
    assert len(paths) == len(set(paths)) == 50
    assert [len(path) for path in paths] == sorted(len(path) for path in paths)
    assert paths[0] == ()
    with pytest.raises(ValueError, match="at least 1"):
        path_encoding(deep.sample(0), length=0)


def test_a_graph_is_its_edges_and_the_kinds_and_sizes_of_its_nodes():
    space = SPACES["hybrid"]
    for seed in range(6):
        architecture = space.sample(seed)
        graph = architecture.graph
        adjacency, features = graph_encoding(architecture)
        flowing = sum(kind not in ("weights", "loop") for _, _, kind in graph.edges(data="kind"))
        assert adjacency.sum() == flowing
        assert (np.triu(adjacency, 1) == adjacency).all()
        assert (features[:, :-2].sum(axis=1) == 1).all()
        assert np.expm1(features[:, -2]).sum() == pytest.approx(
            sum(declared.numel for declared in architecture.parameters.values()))
        assert features[:, -1].max() == pytest.approx(np.log1p(architecture.plan.width))


def test_the_low_rank_pairs_of_a_loop_are_counted_once():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=8, body=bp.repeat(bp.Block(bp.Attention(heads=2)), times=2),
                     recursion=bp.Loop(times=2, lora_rank=2), head=bp.LanguageHead(tied=True))
    architecture = space.sample(0)
    _, features = graph_encoding(architecture)
    assert np.expm1(features[:, -2]).sum() == pytest.approx(architecture.cost().parameters)


def test_features_have_one_length_in_a_space_and_nodes_are_padded():
    space = SPACES["two parts"]
    small, large = (space.architecture(genome) for genome in (space.smallest(), space.largest()))
    size = len(large.graph)
    encoded = [graph_encoding(architecture, nodes=size) for architecture in (small, large)]
    assert {tuple(part.shape for part in pair) for pair in encoded} == {((size, size), (size, encoded[0][1].shape[1]))}
    assert not encoded[0][1][len(small.graph):].any()
    with pytest.raises(ValueError, match="room for every node"):
        graph_encoding(large, nodes=3)


@settings(max_examples=15, deadline=None)
@given(space=spaces(), seed=st.integers(0, 10**6))
def test_every_network_has_graph_and_path_encodings(space, seed):
    architecture = space.sample(seed)
    adjacency, features = graph_encoding(architecture)
    assert adjacency.shape == (len(features), len(features))
    assert not features[:, list_other(space)].any()
    assert path_encoding(architecture).any()


def list_other(space):
    from bodyplan.space.encoding import PLACES, operator_names

    return len(operator_names(space)) + PLACES.index("other")
