"""Which subnets a step visits: pure, fair to siblings, largest and smallest by size."""

from collections import Counter
from itertools import islice

import bodyplan as bp
import pytest
from bodyplan.evaluators import sampling
from bodyplan.evaluators.sampling import Visit, fair, sampling_strategies, sandwich, single_path


def describe(visits):
    return [(visit.role, visit.architecture.genome) for visit in visits]


@pytest.mark.parametrize("strategy", [sandwich, single_path, fair])
def test_visits_are_a_pure_function_of_space_step_and_seed(space, strategy):
    assert describe(strategy(space, 5, 1)) == describe(strategy(space, 5, 1))
    assert describe(strategy(space, 5, 1)) != describe(strategy(space, 6, 1))
    assert describe(strategy(space, 5, 1)) != describe(strategy(space, 5, 2))


def test_siblings_are_the_choices_among_dataclasses(space):
    paths = [gene.path for gene in sampling.sibling_genes(space)]
    assert paths == ["body[0].channel", "body[1].channel", "recursion"]


def test_the_sandwich_is_a_large_teacher_a_small_and_a_random_student(space):
    large, small, drawn = sandwich(space, 3, 0)
    assert [v.role for v in (large, small, drawn)] == ["teacher", "student", "student"]
    assert large.architecture.plan.width == 16 and small.architecture.plan.width == 8
    assert large.architecture.genome["body.times"] == 2 and small.architecture.genome["body.times"] == 1
    assert large.architecture.plan.layers[0].mixer.window is None, "no window sees more than any window"
    assert small.architecture.plan.layers[0].mixer.window == 4
    assert small.architecture.plan.recursion == large.architecture.plan.recursion


@pytest.mark.parametrize("strategy", [sandwich, single_path])
def test_every_sibling_is_visited_equally_often(space, strategy):
    visits = [next(iter(strategy(space, step, 0))).architecture.genome for step in range(18)]
    assert Counter(genome["body[0].channel"] for genome in visits) == {0: 6, 1: 6, 2: 6}
    assert Counter(genome["recursion"] for genome in visits) == {0: 9, 1: 9}


def test_fair_visits_every_sibling_within_one_step(space):
    for step in range(4):
        visits = list(fair(space, step, 0))
        assert sorted(v.architecture.genome["body[0].channel"] for v in visits) == [0, 1, 2]


def test_constraints_hold_for_every_visit():
    def narrow(plan):
        return plan.width * len(plan.layers) <= 16

    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=1)), times=bp.integer(1, 2)),
                     head=bp.LanguageHead(tied=True), constraints=(narrow,))
    for step in range(10):
        assert all(narrow(visit.architecture.plan) for visit in sandwich(space, step, 0))


def test_a_space_of_sizes_alone_has_one_largest_subnet():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=1)), times=bp.integer(1, 3)),
                     head=bp.LanguageHead(tied=True))
    largest = {next(iter(sandwich(space, step, 0))).architecture.genome for step in range(5)}
    assert largest == {space.largest()}


def test_third_parties_add_a_strategy_under_a_name(space):
    def twice(space, step, seed):
        yield from islice((Visit(space.sample(seed)) for _ in range(2)), 2)

    sampling_strategies.register("twice-the-same", twice)
    assert sampling_strategies.get("twice-the-same") is twice
    with pytest.raises(ValueError, match="did you mean 'sandwich'"):
        sampling_strategies.get("sandwhich")
