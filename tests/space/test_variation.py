"""Mutation, crossover, neighbourhood and distance: valid, canonical, reaching everything, and a metric."""

import random
from collections import Counter

import bodyplan as bp
import pytest
from bodyplan.space.choices import choice, integer, permutation, real, repeat, subset, tied
from bodyplan.space.compiled.outline import count_of
from bodyplan.space.genome import Genome
from bodyplan.space.variation import variation
from bodyplan.space.variation.nearby import adjacent, near_options
from example_spaces import make
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import genomes_of, random_space, spaces

SEEDS = st.integers(0, 10**6)
FEW = settings(max_examples=25, deadline=None)
FEWER = settings(max_examples=12, deadline=None)


def layer(ratio=None):
    return bp.Block(mixer=bp.Attention(heads=choice(1, 2, 4)), channel=bp.MLP(ratio=ratio or choice(1, 2, 3)))


def deep(times=None, keep="first"):
    return make(body=repeat(layer(), times=times or integer(1, 4), keep=keep))


def shallow(plan):
    return len(plan.layers) <= 2


def canonical_genomes(space):
    return sorted({space.canonical(genome) for genome in genomes_of(space)}, key=lambda genome: genome.key)


def assert_allowed(space, genome):
    space.validate(genome)
    assert space.canonical(genome) == genome


def layers_of(genome, path="body"):
    """The decisions of every layer, by what follows its position."""
    count = genome[f"{path}.times"]
    return [{p.split("]", 1)[1]: d for p, d in genome.items() if p.startswith(f"{path}[{i}]")} for i in range(count)]


# -- every result is valid -------------------------------------------------------------------------------------------


@FEW
@given(space=spaces(), seed=SEEDS)
def test_every_variation_is_a_canonical_genome_of_the_space(space, seed):
    rng = random.Random(seed)
    a, b = space.sample_genome(rng), space.sample_genome(rng)
    near = list(space.neighbours(a))
    assert len(set(near)) == len(near)
    assert a not in near
    for genome in (space.mutate(a, rng), space.crossover(a, b, rng), *near[:40]):
        assert_allowed(space, genome)


@FEW
@given(seed=SEEDS, kind=st.sampled_from(sorted(variation.MUTATIONS, key=lambda kind: kind.__name__)))
def test_every_kind_of_mutation_gives_decisions_of_the_space(seed, kind):
    rng = random.Random(seed)
    space = random_space(seed % 1000)
    genome = space.sample_genome(rng)
    known = kind(space, genome, rng)
    if known is not None:
        assert_allowed(space, space.canonical(space._fill(known, rng)))


@FEWER
@given(seed=SEEDS)
def test_variation_satisfies_constraints(seed):
    rng = random.Random(seed)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=8), width=16, body=repeat(layer(), times=integer(1, 4)),
                     head=bp.LanguageHead(tied=True), constraints=[shallow])
    a, b = space.sample_genome(rng), space.sample_genome(rng)
    for genome in (space.mutate(a, rng), space.crossover(a, b, rng), *space.neighbours(a)):
        assert_allowed(space, genome)
        assert len(space.plan(genome)[0].layers) <= 2


# -- everything is reached -------------------------------------------------------------------------------------------


def reached(start, edges):
    seen, todo = {start}, [start]
    while todo:
        new = [genome for genome in edges[todo.pop()] if genome not in seen]
        seen.update(new)
        todo += new
    return seen


@FEW
@given(space=spaces(limit=150))
def test_neighbours_connect_all_canonical_genomes_both_ways(space):
    genomes = canonical_genomes(space)
    forth = {genome: list(space.neighbours(genome)) for genome in genomes}
    back = {genome: [] for genome in genomes}
    for genome, near in forth.items():
        for other in near:
            back[other].append(genome)
    assert reached(genomes[0], forth) == reached(genomes[0], back) == set(genomes)


@FEWER
@given(space=spaces(limit=40), seed=SEEDS)
def test_mutation_reaches_all_canonical_genomes(space, seed):
    rng, wanted = random.Random(seed), set(canonical_genomes(space))
    genome, met = space.sample_genome(rng), set()
    for _ in range(200 * len(wanted)):
        met.add(genome)
        if met == wanted:
            return
        genome = space.mutate(genome, rng)
    assert met == wanted


def test_neighbours_stand_in_one_order():
    space = deep()
    genome = space.sample_genome(random.Random(0))
    assert list(space.neighbours(genome)) == list(deep().neighbours(genome))


def test_neighbours_hold_every_single_decision_and_every_edit_of_layers():
    space = make(width=32, body=repeat(bp.Block(channel=bp.MLP(ratio=choice(1, 2, 3))), integer(1, 3)), recursion=bp.Once())
    genome = Genome({"body.times": 2, "body[0].channel.ratio": 1, "body[1].channel.ratio": 2})
    found = {tuple(d[".channel.ratio"] for d in layers_of(near)) for near in space.neighbours(genome)}
    assert found == {(0, 2), (2, 2), (1, 0), (1, 1),                    # one decision
                     (1,), (2,), (2, 1),                                # removed, swapped
                     (0, 1, 2), (1, 0, 2), (1, 2, 0), (1, 1, 2), (1, 2, 2)}      # new ones and copies


def test_a_new_layer_that_would_leave_no_trace_is_given_the_nearest_decisions_that_do():
    block = bp.Block(mixer=choice(bp.Identity(), bp.Attention(heads=2)), channel=choice(bp.Identity(), bp.MLP()))
    space = make(width=32, body=repeat(block, times=integer(0, 2)), recursion=bp.Once())
    empty = Genome({"body.times": 0})
    near = list(space.neighbours(empty))
    assert {genome["body.times"] for genome in near} == {1, 2}
    assert empty not in near


# -- mutations -------------------------------------------------------------------------------------------------------


def mutants(kind, space, genome, number=60):
    rng = random.Random(1)
    made = (kind(space, genome, rng) for _ in range(number))
    return [space.canonical(space._fill(known, rng)) for known in made if known is not None]


def test_one_gene_changes_one_decision_and_what_hangs_below():
    space = make(body=bp.Block(mixer=choice(bp.Attention(heads=choice(1, 2)), bp.ShortConv(kernel=choice(3, 4)))))
    genome = space.sample_genome(random.Random(0))
    for mutant in mutants(variation.one_gene, space, genome):
        changed = [path for path in genome if path in mutant and mutant[path] != genome[path]]
        assert len(changed) == 1
        assert mutant.keys() == genome.keys() or changed == ["body.mixer"]


def test_resize_moves_a_number_to_an_adjacent_option():
    space = make(width=choice(64, 32, 96), body=bp.Block(channel=bp.MLP(ratio=real(1.0, 3.0))), recursion=bp.Once())
    genome = Genome({"width": 0, "body.channel.ratio": 2.0})
    found = mutants(variation.resize, space, genome)
    assert {mutant["width"] for mutant in found} == {0, 1, 2}
    steps = {abs(mutant["body.channel.ratio"] - 2.0) for mutant in found} - {0.0}
    assert all(0.1 <= step <= 0.3 for step in steps)
    assert len(steps) > 3
    narrow = Genome({"width": 1, "body.channel.ratio": 2.0})
    assert {mutant["width"] for mutant in mutants(variation.resize, space, narrow)} == {0, 1}      # 32 to 64, never to 96


def test_layers_are_inserted_removed_and_swapped():
    space = make(width=32, body=repeat(bp.Block(channel=bp.MLP(ratio=choice(1, 2, 3))), integer(1, 4)), recursion=bp.Once())
    genome = Genome({"body.times": 3} | {f"body[{i}].channel.ratio": i for i in range(3)})

    def found(kind):
        return {tuple(d[".channel.ratio"] for d in layers_of(mutant)) for mutant in mutants(kind, space, genome, 200)}

    assert found(variation.remove_layer) == {(0, 1), (0, 2), (1, 2)}
    assert found(variation.swap_layers) == {(1, 0, 2), (2, 1, 0), (0, 2, 1)}
    inserted = {(*(0, 1, 2)[:place], new, *(0, 1, 2)[place:]) for place in range(4) for new in range(3)}
    assert found(variation.insert_layer) == inserted


def test_a_subtree_is_drawn_anew_and_nothing_else():
    space = deep(times=2)
    genome = space.sample_genome(random.Random(0))
    parts = Counter()
    for mutant in mutants(variation.subtree, space, genome, 200):
        changed = {path for path in genome if mutant[path] != genome[path]}
        parts[frozenset(path.split(".")[0] for path in changed)] += 1
    assert {frozenset({"width"}), frozenset({"body[0]"}), frozenset({"body[0]", "body[1]"})} <= parts.keys()
    assert not any({"width", "body[0]"} <= part for part in parts)


def test_mutation_without_anything_to_change_gives_the_one_genome():
    space = make(width=32, body=bp.Block(mixer=bp.Attention(heads=2)), recursion=bp.Once())
    genome = space.sample_genome(random.Random(0))
    assert space.mutate(genome, random.Random(0)) == genome


# -- crossover -------------------------------------------------------------------------------------------------------


@FEW
@given(seed=SEEDS)
def test_aligned_layers_come_whole_and_the_count_from_one_parent(seed):
    rng, space = random.Random(seed), deep(integer(1, 4))
    a, b = space.sample_genome(rng), space.sample_genome(rng)
    child = space.crossover(a, b, rng)
    assert child["body.times"] in (a["body.times"], b["body.times"])
    for index, found in enumerate(layers_of(child)):
        assert found in [layers_of(parent)[index] for parent in (a, b) if index < parent["body.times"]]
    assert child["width"] in (a["width"], b["width"])


def test_layers_of_nested_repeats_come_whole_too():
    inner = repeat(layer(), times=integer(1, 2))
    outer = repeat((bp.Block(mixer=bp.ShortConv(kernel=choice(3, 4))), inner), times=2)
    space = make(width=32, body=outer, recursion=bp.Once())
    rng, mixed = random.Random(0), 0
    for _ in range(40):
        a, b = space.sample_genome(rng), space.sample_genome(rng)
        child = space.crossover(a, b, rng)
        for outer in range(2):
            owners = []
            for index, found in enumerate(layers_of(child, f"body[{outer}].1")):
                given_by = [parent for parent in (a, b) if index < parent[f"body[{outer}].1.times"]
                            and layers_of(parent, f"body[{outer}].1")[index] == found]
                assert given_by
                owners.append(given_by)
            mixed += len(owners) == 2 and owners == [[a], [b]]
    assert mixed


def test_any_kept_layers_cross_by_position():
    space, rng = make(width=32, body=repeat(layer(), times=2, keep="any"), recursion=bp.Once()), random.Random(0)
    wide = make(width=32, body=repeat(layer(), times=integer(1, 3), keep="any"), recursion=bp.Once())
    for chosen in (space, wide):
        for _ in range(20):
            a, b = chosen.sample_genome(rng), chosen.sample_genome(rng)
            child = chosen.crossover(a, b, rng)
            assert child["body.kept"] in (a["body.kept"], b["body.kept"])
            assert all(child[path] in (a.get(path), b.get(path)) for path in child)


@FEW
@given(space=spaces(), seed=SEEDS)
def test_a_child_of_equal_parents_is_like_them(space, seed):
    rng = random.Random(seed)
    genome = space.sample_genome(rng)
    assert space.crossover(genome, genome, rng) == genome


def test_what_is_tied_comes_from_one_parent():
    mixer = tied(choice(bp.Attention(heads=choice(1, 2)), bp.ShortConv(kernel=choice(3, 4))))
    space, rng = make(body=repeat(bp.Block(mixer=mixer, channel=bp.MLP(ratio=choice(1, 2))), times=3)), random.Random(0)
    for _ in range(20):
        a, b = space.sample_genome(rng), space.sample_genome(rng)
        child = space.crossover(a, b, rng)
        shared = {path: child[path] for path in child if "[*]" in path}
        assert shared in [{path: parent[path] for path in parent if "[*]" in path} for parent in (a, b)]


def test_a_crossover_that_constraints_forbid_gives_the_first_parent_back():
    pairs = {(0, 0), (1, 1), (2, 2)}

    def same(plan):
        return tuple(layer.channel.ratio - 1 for layer in plan.layers) in pairs

    body = repeat(bp.Block(channel=bp.MLP(ratio=choice(1, 2, 3))), times=2)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=8), width=16, body=body, head=bp.LanguageHead(tied=True),
                     constraints=[same])
    a, b = (Genome({"body[0].channel.ratio": i, "body[1].channel.ratio": i}) for i in (0, 1))
    assert {space.crossover(a, b, random.Random(seed)) for seed in range(8)} == {a, b}


# -- near options ----------------------------------------------------------------------------------------------------


def gene_of(item):
    return make(width=16, body=bp.Block(channel=bp.MLP(ratio=item)), recursion=bp.Once()).genes[0]


@pytest.mark.parametrize("body", [
    subset(*(bp.Block(mixer=bp.ShortConv(kernel=k)) for k in range(2, 11)), size=(2, 5)),
    subset(*(bp.Block(mixer=bp.ShortConv(kernel=k)) for k in range(2, 8)), size=(0, 3), ordered=True),
    permutation(*(bp.Block(mixer=bp.ShortConv(kernel=k)) for k in range(2, 8))),
    repeat(layer(), times=choice(3, 5, 8), keep="any"), bp.Block(channel=bp.MLP(ratio=integer(1, 200)))])
def test_few_options_are_near_and_all_are_reached(body):
    gene = next(gene for gene in make(width=16, body=body, recursion=bp.Once()).genes if len(gene.options) > 64)
    edges = {option: near_options(gene, option) for option in gene.options}
    assert all(len(set(near)) == len(near) < len(gene.options) / 2 for near in edges.values())
    assert all(option not in near for option, near in edges.items())
    assert reached(gene.options[0], edges) == set(gene.options)


def test_near_options_of_a_continuous_number_are_a_tenth_away_and_the_ends():
    gene = gene_of(real(1.0, 3.0))
    assert near_options(gene, 2.0) == [1.8, 2.2, 1.0, 3.0]
    assert near_options(gene, 1.0) == [1.2, 3.0]
    assert adjacent(gene_of(real(1.0, 100.0, log=True)), 10.0, 0.5) == [1.0, 100.0]


# -- distance --------------------------------------------------------------------------------------------------------


@FEW
@given(space=spaces(), seed=SEEDS)
def test_distance_is_a_metric(space, seed):
    rng = random.Random(seed)
    a, b, c = (space.sample_genome(rng) for _ in range(3))
    assert space.distance(a, a) == 0
    assert (space.distance(a, b) == 0) == (a == b)
    assert space.distance(a, b) == pytest.approx(space.distance(b, a))
    assert space.distance(a, c) <= space.distance(a, b) + space.distance(b, c) + 1e-9


@FEWER
@given(space=spaces(limit=60))
def test_distance_tells_all_genomes_apart(space):
    genomes = genomes_of(space)
    assert all(space.distance(a, b) > 0 for i, a in enumerate(genomes) for b in genomes[:i])


def test_an_inserted_layer_costs_its_decisions_wherever_it_stands():
    space = deep(integer(1, 4))
    genome = Genome({"width": 0, "body.times": 3, "recursion": 0} | {
        f"body[{i}].{name}": i for i in range(3) for name in ("mixer.heads", "channel.ratio")})
    longer = [near for near in space.neighbours(genome) if near["body.times"] == 4]
    assert len(longer) > 3
    assert {space.distance(genome, near) for near in longer} == {3.0}


def test_numbers_count_by_their_step_and_choices_whole():
    space = make(width=choice(64, 96, 128), body=bp.Block(mixer=choice(bp.Hyena(), bp.Attention(heads=choice(1, 2))),
                                                          channel=bp.MLP(ratio=real(1.0, 3.0))))
    a = Genome({"width": 0, "body.mixer": 0, "body.channel.ratio": 1.0, "recursion": 0})
    assert space.distance(a, Genome({**a, "width": 1})) == 0.5
    assert space.distance(a, Genome({**a, "body.channel.ratio": 1.5})) == 0.25
    assert space.distance(a, Genome({**a, "recursion": 1})) == 1.0
    assert space.distance(a, Genome({**a, "body.mixer": 1, "body.mixer.1.heads": 0})) == 2.0


def test_what_is_tied_counts_once():
    space = make(body=repeat(bp.Block(mixer=bp.Attention(heads=tied(choice(1, 2)))), times=integer(1, 4)))
    a = Genome({"width": 0, "body.times": 4, "body[*].mixer.heads": 0, "recursion": 0})
    assert space.distance(a, Genome({**a, "body[*].mixer.heads": 1})) == 1.0
    assert space.distance(a, Genome({**a, "body.times": 2})) == 2.0


def test_repeats_in_a_genome_are_those_that_are_there():
    space = make(body=choice(bp.Block(mixer=bp.Hyena()), repeat((layer(), repeat(layer(), times=integer(0, 2))), times=2)))
    genome = next(g for g in (space.sample_genome(random.Random(seed)) for seed in range(50)) if g["body"] == 1)
    found = space.outline.active_repeats(genome)
    assert [node.path for node in found] == ["body.1", "body.1[0].1", "body.1[1].1"]
    assert count_of(found[1], genome) == genome["body.1[0].1.times"]
    assert space.outline.active_repeats({"body": 0, "width": 0, "recursion": 0}) == []
