"""Every strategy: valid, new, deterministic candidates, replayable; and what each is for."""

import hashlib
import random

import bodyplan as bp
import pytest
from bodyplan.search.pareto import hypervolume
from bodyplan.search.strategies import strategies
from bodyplan.search.strategies.base import Told, describe, resolve
from bodyplan.search.strategies.evolution import Evolution
from bodyplan.search.strategies.optuna import genome_of, parameters_of

NAMES = ["random", "evolution", "local_search", "optuna:tpe", "optuna:nsga2"]
SIZE, DEPTH = bp.Objective("size", evaluate=len), bp.Objective("depth", goal="max", evaluate=len)


def numbers(space, genome):
    """Two conflicting numbers that cost nothing."""
    plan = space.architecture(genome).plan
    return {"size": float(space.architecture(genome).cost().parameters), "depth": float(len(plan.layers)) + plan.width}


def drive(strategy, space, count, seed=0, in_flight=3, fail=(), numbers=numbers):
    """Ask one by one with `in_flight` candidates out, telling in an order that is not that of asking."""
    strategy.start(space, (SIZE, DEPTH), seed)
    rng, out, asked = random.Random(1), [], []
    while len(asked) < count:
        while len(out) < in_flight and (made := strategy.ask(1)):
            out += made
            asked += made
        if not out:
            break
        genome = out.pop(rng.randrange(len(out)))
        values = None if len(asked) in fail else numbers(space, genome)
        strategy.tell([Told(genome, values, violation=0.0)])
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_answers_give_the_same_candidates(name, space):
    first = drive(resolve(name), space, 50, fail=(7, 20))
    assert drive(resolve(name), space, 50, fail=(7, 20)) == first
    assert drive(resolve(name), space, 50, seed=1, fail=(7, 20)) != first


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_canonical_members_of_the_space(name, space):
    for genome in drive(resolve(name), space, 60):
        space.validate(genome)
        assert space.canonical(genome) == genome


@pytest.mark.parametrize("name", NAMES)
def test_candidates_keep_the_constraints_of_the_space(name, sweep_in):
    def is_shallow(plan):
        return len(plan.layers) <= 2

    space = bp.Space(**sweep_in("any").space.definition, constraints=[is_shallow])
    for genome in drive(resolve(name), space, 40):
        assert is_shallow(space.architecture(genome).plan)


@pytest.mark.parametrize("name", ["random", "evolution", "local_search"])
def test_our_own_strategies_never_repeat_themselves_and_exhaust_a_small_space(name):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16, 24),
                     body=bp.repeat(bp.Block(channel=bp.MLP(ratio=bp.choice(1, 2))), times=bp.integer(1, 2)),
                     head=bp.LanguageHead(tied=True))
    everything = {space.canonical(genome) for genome in space.enumerate()}
    asked = drive(resolve(name), space, 10_000)
    assert len(asked) == len(set(asked)) == len(everything)
    assert set(asked) == everything


@pytest.mark.parametrize("name", NAMES)
def test_strategies_hear_of_candidates_they_did_not_ask_for(name, space):
    strategy = resolve(name)
    strategy.start(space, (SIZE, DEPTH), 0)
    genome = space.sample_genome(random.Random(5))
    strategy.tell([Told(genome, numbers(space, genome)), Told(space.smallest(), None)])
    assert len(strategy.ask(3)) == 3


@pytest.fixture(scope="module")
def landscape():
    """An exhausted space: every genome with two conflicting sums of per-decision contributions."""
    block = bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(1, 2), window=bp.choice(None, 8)), bp.Identity()),
                     channel=bp.MLP(ratio=bp.choice(1, 2)))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16, 24, 32), body=(block, block, block),
                     head=bp.LanguageHead(tied=True))

    def worth(genome, side):
        texts = (f"{side} {path} {decision}" for path, decision in genome.items())
        return sum(int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 16**4 for text in texts) / len(genome)

    genomes = {space.canonical(genome) for genome in space.enumerate()}
    return space, {genome: {"size": worth(genome, 0), "depth": -worth(genome, 1)} for genome in genomes}


@pytest.mark.parametrize("name", ["evolution", "local_search", "optuna:tpe"])
def test_searches_come_closer_to_the_true_front_than_random_search(name, landscape):
    """Hypervolume missed after 150 of some thousands of candidates, mean over seeds."""
    space, table = landscape

    def volume(genomes):
        points = [list(table[genome].values()) for genome in genomes]
        return hypervolume(points, ["min", "max"], [1.0, -1.0])

    def missed(strategy):
        runs = [drive(resolve(strategy), space, 150, seed, numbers=lambda _, g: table[g]) for seed in range(3)]
        return sum(volume(table) - volume(asked) for asked in runs)

    assert missed(name) < 0.75 * missed("random")


def test_evolution_prefers_feasible_candidates_then_small_violations(space):
    strategy = Evolution(population=4)
    strategy.start(space, (SIZE, DEPTH), 0)
    genomes = strategy.ask(6)
    violations = [0.5, 0.1, 0.0, 3.0, 2.0, 1.0]
    strategy.tell([Told(genome, numbers(space, genome), violation) for genome, violation
                   in zip(genomes, violations, strict=True)])
    assert [member.violation for member in strategy._members] == [0.0, 0.1, 0.5, 1.0]


def test_a_failed_candidate_is_no_parent(space):
    strategy = Evolution(population=4)
    strategy.start(space, (SIZE, DEPTH), 0)
    strategy.tell([Told(genome, None) for genome in strategy.ask(8)])
    assert strategy._members == [] and len(strategy.ask(1)) == 1


def test_optuna_parameters_decode_to_the_genome_they_encode(space):
    rng = random.Random(0)
    for _ in range(50):
        genome = space.sample_genome(rng)
        assert genome_of(space, parameters_of(space, genome)) == genome


def test_optuna_sees_every_gene_in_every_trial(space):
    strategy = resolve("optuna:tpe")
    drive(strategy, space, 30)
    trials = strategy._study.get_trials()
    assert all(set(trial.params) == {gene.path for gene in space.genes} for trial in trials)
    assert all(isinstance(value, int) for trial in trials for value in trial.params.values())


def test_strategies_are_found_by_name_and_near_names_are_suggested():
    assert set(NAMES) <= set(strategies.names())
    with pytest.raises(ValueError, match="did you mean 'evolution'"):
        resolve("evolutoin")
    with pytest.raises(TypeError, match="start, ask and tell"):
        resolve(Evolution)


def test_settings_are_described_and_checked():
    assert describe(Evolution(population=8)) == {"name": "evolution", "settings": {"population": 8, "crossover": 0.9}}
    with pytest.raises(ValueError, match="population must be at least 4: got 2"):
        Evolution(population=2)
    with pytest.raises(ValueError, match="probability"):
        Evolution(crossover=1.5)
