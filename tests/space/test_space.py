"""The space: counting, canonical form, variation, encoding, and what it refuses."""

import json
import random

import bodyplan as bp
import pytest
from bodyplan.space.counting.counting import NotCountable
from bodyplan.space.genome import Genome
from example_spaces import SPACES, default_body, make
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", SPACES)
def test_size_is_the_number_of_enumerated_genomes(name):
    genomes = list(SPACES[name].enumerate())
    assert len(set(genomes)) == len(genomes) == SPACES[name].size()


def test_a_continuous_gene_has_no_count():
    space = make(body=bp.Block(channel=bp.MLP(ratio=bp.real(1.0, 2.0))))
    with pytest.raises(NotCountable, match="give real"):
        space.size()


@pytest.mark.parametrize("name", SPACES)
def test_canonical_genomes_are_fixed_points_and_validate(name):
    space = SPACES[name]
    for genome in space.enumerate():
        canonical = space.canonical(genome)
        space.validate(canonical)
        assert space.canonical(canonical) == canonical


def test_genomes_with_one_canonical_form_have_one_hash():
    space = SPACES["hybrid"]
    hashes: dict[Genome, set[str]] = {}
    for genome in space.enumerate():
        plan, _ = space.plan(genome)
        from bodyplan.space.graph import architecture_hash

        hashes.setdefault(space.canonical(genome), set()).add(architecture_hash(plan))
    assert all(len(found) == 1 for found in hashes.values())
    assert len(hashes) < space.size()


def test_a_layer_without_sublayers_moves_out():
    space = SPACES["hybrid"]
    full = {"mixer": 0, "mixer.0.heads": 0, "mixer.0.window": 0, "channel": 1}
    empty = {"mixer": 1, "channel": 1}
    layers = [empty, full, empty]
    genome = Genome({"width": 0, "body.times": 3, "recursion": 0}
                    | {f"body[{i}].{k}": v for i, layer in enumerate(layers) for k, v in layer.items()})
    assert space.canonical(genome)["body.times"] == 1
    assert space.canonical(genome)["body[0].mixer"] == 0


def test_loop_once_is_once():
    space = make(recursion=bp.choice(bp.Loop(times=2), bp.Once(), bp.Loop(times=1)))
    genome = dict(space.sample_genome(random.Random(0)))
    assert space.canonical(Genome({**genome, "recursion": 2})) == space.canonical(Genome({**genome, "recursion": 1}))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(SPACES)))
def test_variation_stays_inside_the_space(seed, name):
    space, rng = SPACES[name], random.Random(seed)
    a, b = space.sample_genome(rng), space.sample_genome(rng)
    for child in (space.mutate(a, rng), space.crossover(a, b, rng)):
        space.validate(child)
        assert space.canonical(child) == child


def test_mutation_reaches_every_canonical_genome():
    space, rng = SPACES["tied"], random.Random(0)
    wanted = {space.canonical(g) for g in space.enumerate()}
    reached, genome = set(), space.sample_genome(rng)
    for _ in range(40 * len(wanted)):
        genome = space.mutate(genome, rng)
        reached.add(genome)
    assert reached == wanted


def test_neighbours_are_valid_distinct_and_never_the_genome_itself():
    space = SPACES["hybrid"]
    genome = space.sample_genome(random.Random(3))
    near = list(space.neighbours(genome))
    assert genome not in near
    assert len(set(near)) == len(near) > 3
    for other in near:
        space.validate(other)


@pytest.mark.parametrize("name", SPACES)
def test_complete_encoding_round_trips(name):
    space = SPACES[name]
    for seed in range(10):
        genome = space.sample_genome(random.Random(seed))
        complete = space.complete(genome)
        assert set(complete) == {g.path for g in space.genes}
        assert space.from_complete(complete) == genome


def test_encoding_has_one_length_and_tells_genomes_apart():
    space = SPACES["hybrid"]
    rows = {}
    for genome in space.enumerate():
        rows.setdefault(tuple(space.encode(genome)), genome)
        assert rows[tuple(space.encode(genome))] == genome
    assert len({len(row) for row in rows}) == 1


def test_genome_json_round_trips():
    genome = SPACES["hybrid"].sample_genome(random.Random(1))
    assert Genome.from_json(json.loads(json.dumps(genome.to_json()))) == genome
    with pytest.raises(ValueError, match="schema_version"):
        Genome.from_json({"schema_version": 99, "decisions": {}})


def test_sampling_is_a_function_of_the_seed():
    space = SPACES["hybrid"]
    assert space.sample(7).genome == space.sample(7).genome
    assert len({space.sample(seed).genome for seed in range(30)}) > 15


def test_smallest_and_largest_bound_the_parameters():
    space = SPACES["hybrid"]
    counts = [space.architecture(g).cost().parameters for g in space.enumerate()]
    assert space.architecture(space.smallest()).cost().parameters == min(counts)
    assert space.architecture(space.largest()).cost().parameters == max(counts)


def test_constraints_hold_for_samples_mutants_and_counts():
    def shallow(plan):
        return len(plan.layers) <= 1

    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, body=default_body(),
                     head=bp.LanguageHead(tied=True), constraints=[shallow])
    rng = random.Random(0)
    genome = space.sample_genome(rng)
    for _ in range(20):
        genome = space.mutate(genome, rng)
        assert len(space.architecture(genome).plan.layers) <= 1
    assert space.size() == sum(1 for _ in space.enumerate())


def test_pickling_keeps_the_space():
    import cloudpickle

    space = SPACES["hybrid"]
    copy = cloudpickle.loads(cloudpickle.dumps(space))
    assert copy.hash == space.hash
    assert copy.sample(3).hash == space.sample(3).hash


@pytest.mark.parametrize("name", SPACES)
def test_a_space_round_trips_through_json(name):
    space = SPACES[name]
    again = bp.Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again.hash == space.hash
    assert again.size() == space.size()
    assert again.sample(5).hash == space.sample(5).hash


def test_a_space_with_code_of_its_own_says_that_json_cannot_hold_it():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, body=default_body(), head=bp.LanguageHead(tied=True),
                     constraints=[lambda plan: True])
    with pytest.raises(ValueError, match="load it from the Python file"):
        bp.Space.from_json(space.to_json())


def test_another_definition_has_another_hash():
    assert make(width=bp.choice(32, 64)).hash == make(width=bp.choice(32, 64)).hash
    assert make(width=bp.choice(32, 64)).hash != make(width=bp.choice(32, 96)).hash


BAD = {
    "heads do not divide width": (lambda: make(width=64, body=bp.Block(mixer=bp.Attention(heads=6))),
                                  ValueError, r"heads must divide width at body\.mixer: got 6 and 64; use 4 or 8"),
    "kv_heads do not divide heads": (
        lambda: make(body=bp.Block(mixer=bp.Attention(heads=4, kv_heads=3))), ValueError, "kv_heads must divide heads"),
    "empty choice": (lambda: bp.choice(), ValueError, "at least one candidate"),
    "equal candidates": (lambda: bp.choice(2, 4, 2), ValueError, "must differ"),
    "low above high": (lambda: bp.integer(5, 2), ValueError, "low <= high"),
    "repeat of nothing countable": (lambda: bp.repeat(bp.Block(), times="many"), TypeError, "times"),
    "negative repeat": (lambda: bp.repeat(bp.Block(), times=-1), ValueError, "times >= 0"),
    "class instead of instance": (lambda: make(body=bp.Block(mixer=bp.Attention)), TypeError, r"write Attention\(\)"),
    "own module unwrapped": (lambda: make(body=bp.Block(mixer=object())), TypeError, "wrap your own nn.Module"),
    "body of something else": (lambda: make(body=bp.Attention()), TypeError, "write Block"),
    "empty body": (lambda: bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, body=(), head=bp.LanguageHead()),
                   ValueError, "at least one layer"),
    "width zero": (lambda: make(width=bp.choice(0, 64)), ValueError, "positive int"),
    "recursion of another kind": (lambda: make(recursion=3), TypeError, "Once"),
    "head as embedding": (lambda: bp.Space(embed=bp.LanguageHead(), width=32, body=bp.Block(), head=bp.LanguageHead()),
                          TypeError, "embed must be an operator of kind 'embedding'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_spaces_are_refused_with_the_rule_and_the_place(case):
    build, error, text = BAD[case]
    with pytest.raises(error, match=text):
        build()


def test_a_genome_of_another_space_is_refused():
    genome = SPACES["hybrid"].sample_genome(random.Random(0))
    with pytest.raises(ValueError, match="unknown"):
        SPACES["hybrid"].validate(Genome({**genome, "body[9].mixer": 0}))
    with pytest.raises(ValueError, match="nothing stands at 'width'"):
        SPACES["hybrid"].validate(Genome({}))
    with pytest.raises(ValueError, match="one of its options at width"):
        SPACES["hybrid"].validate(Genome({**genome, "width": 9}))


def test_unknown_names_suggest_the_nearest():
    from bodyplan.space.operator import operators

    with pytest.raises(ValueError, match="did you mean 'Attention'"):
        operators.get("Atention")
