"""Counting, numbering and checking against brute force, and against formulas where spaces are large."""

import math
import random

import bodyplan as bp
import numpy as np
import pytest
from bodyplan.space.compiled.compiling import Compiler
from bodyplan.space.constraints import cost, count, monotone, total, value, within
from bodyplan.space.constraints.ruling import Ruling
from bodyplan.space.counting import counting
from bodyplan.space.counting.counting import NotCountable
from bodyplan.space.counting.indexing import in_order, rank, unrank
from bodyplan.space.genome import Genome
from random_spaces import random_space
from small_spaces import A, assignments, random_definition, random_rules, size_of

SMALL = 1500


def compiled(definition):
    compiler = Compiler()
    return {name: compiler.compile(item, name) for name, item in definition.items()}


def ruling(definition, rules=()):
    return Ruling(compiled(definition), rules)


def size(definition, *rules):
    counter = ruling(definition, rules).counter
    return counter.weight(counter.walk.root)


def drafts(seeds):
    """Random definitions of few genomes, with constraints and what they mean."""
    for seed in seeds:
        rng = random.Random(seed)
        definition = random_definition(rng)
        if math.prod(map(size_of, definition.values())) <= SMALL:
            yield seed, definition, random_rules(rng, definition, rng.randint(0, 3))


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_counts_order_and_numbers_agree_with_brute_force(start):
    seen = 0
    for seed, definition, pairs in drafts(range(start, start + 50)):
        nodes = compiled(definition)
        every = list(assignments(nodes))
        allowed = [made for made, values in every if all(meaning(values) for _, meaning in pairs)]
        try:
            found = Ruling(nodes, [rule for rule, _ in pairs])
        except ValueError as error:
            assert "no genome keeps" in str(error) and not allowed, seed
            continue
        counter = found.counter
        assert counter.weight(counter.walk.root) == len(allowed), seed
        assert list(in_order(counter)) == allowed, seed
        for number, made in enumerate(allowed):
            assert rank(counter, made) == number and unrank(counter, number) == made, seed
        for made, values in every:
            broken = [rule for rule, meaning in pairs if not meaning(values)]
            assert [id(rule) for rule in found.broken(made)] == [id(rule) for rule in broken], seed
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("seed", range(40))
def test_the_size_of_a_random_space_is_the_number_of_its_genomes(seed):
    space = random_space(seed, 150)
    every = [Genome(made) for made, _ in assignments(space._nodes)]
    assert space.size() == len(every)
    assert list(space.enumerate()) == every
    for number, genome in enumerate(every):
        assert space.index(genome) == number
        assert space.genome(number) == genome


def layers(times, **fields):
    return {"width": 1, "body": bp.repeat(A(**fields), times=times)}


def test_a_count_along_a_repeat_is_a_sum_of_binomials():
    space = layers(24, x=bp.choice(1, 2, 3), y=0)
    assert size(space, count(A, x=2) <= 5) == sum(math.comb(24, k) * 2 ** (24 - k) for k in range(6))
    assert size(space, count(A, x=2) >= 20) == sum(math.comb(24, k) * 2 ** (24 - k) for k in range(20, 25))


def test_a_monotone_rule_along_a_repeat_leaves_multisets_and_subsets():
    space = layers(bp.integer(1, 30), x=bp.integer(1, 8), y=bp.choice(0, 1))
    weak = sum(math.comb(n + 7, 7) * 2 ** n for n in range(1, 31))
    strict = sum(math.comb(8, n) * 2 ** n for n in range(1, 31))
    assert size(space, monotone("x", "decreasing", of=A)) == weak == size(space, monotone("x", "increasing", of=A))
    assert size(space, monotone("x", "increasing", of=A, strict=True)) == strict


def test_a_sum_along_a_repeat_is_a_coefficient_of_a_power():
    steps = [1, 2, 5, 9]
    power = np.array([1], dtype=object)
    one = np.zeros(10, dtype=object)
    one[steps] = 1
    for _ in range(20):
        power = np.convolve(power, one)
    space = layers(20, x=bp.choice(*steps), y=0)
    assert size(space, total("x", of=A) == 77) == power[77]
    assert size(space, total("x", of=A) <= 100) == power[:101].sum()


def test_a_local_rule_is_a_factor_of_every_layer():
    space = layers(bp.integer(1, 40), x=bp.integer(1, 20), y=bp.integer(1, 20))
    one = sum(x * y <= 50 for x in range(1, 21) for y in range(1, 21))
    assert size(space, within(A, lambda a: a.x * a.y <= 50)) == sum(one ** n for n in range(1, 41))


def test_a_rule_local_to_many_combinations_is_counted():
    space = {"body": bp.repeat(A(x=bp.integer(1, 200), y=bp.integer(1, 200)), times=3)}
    one = sum(min(200, 3000 // x) for x in range(1, 201))
    assert size(space, within(A, lambda a: a.x * a.y <= 3000)) == one ** 3


def test_rules_of_a_sum_a_count_and_an_order_together():
    space = layers(bp.integer(1, 5), x=bp.choice(1, 2, None), y=bp.choice(0, 1))
    rules = [total("y", of=A) <= 3, count(A, x=None) == 1, monotone("x", "decreasing", of=A)]
    meant = [v for _, v in assignments(compiled(space)) if sum(a.y for a in v["body"]) <= 3
             and sum(a.x is None for a in v["body"]) == 1
             and all((a.x or 9) >= (b.x or 9) for a, b in zip(v["body"], v["body"][1:], strict=False))]
    assert size(space, *rules) == len(meant) > 20


def test_ties_are_decided_once_wherever_they_are_used():
    x, times = bp.tied(bp.choice(1, 2, 3)), bp.tied(bp.integer(1, 2))
    layer = bp.repeat(A(x=x, y=bp.choice(0, 1)), times=times)
    assert size({"first": layer, "second": layer}) == 3 * (2 ** 2 + 4 ** 2)
    assert size({"first": layer, "second": layer}, total("x", of=A) == 4) == 2 ** 2 + 4 ** 2


def test_a_large_space_is_numbered_both_ways():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64), head=bp.LanguageHead(tied=True),
                     body=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(2, 4), window=bp.choice(None, 8)),
                                                             bp.ShortConv(kernel=bp.choice(3, 4))),
                                             channel=bp.choice(bp.MLP(ratio=bp.choice(1, 2)), bp.Identity())),
                                    times=bp.integer(1, 16)),
                     constraints=[count(bp.Attention, window=None) <= 2, value("width") * value("body.times") >= 100])
    rng, numbers = random.Random(0), space.size()
    assert numbers > 10 ** 15
    for number in [0, 1, numbers - 1, *(rng.randrange(numbers) for _ in range(40))]:
        genome = space.genome(number)
        space.validate(genome)
        assert space.index(genome) == number
    with pytest.raises(IndexError, match="numbered from 0"):
        space.genome(numbers)
    with pytest.raises(ValueError, match="breaks"):
        space.index(Genome({**space.genome(0), "width": 0, "body.times": 1}))


def make(*rules, times=2, channel=None):
    block = bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4)), channel=channel or bp.Identity())
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64), body=bp.repeat(block, times=times),
                    head=bp.LanguageHead(tied=True), constraints=rules)


def test_constraints_over_costs_are_counted_one_by_one_where_there_are_few():
    every = make()
    costs = sorted(every.architecture(genome).cost().parameters for genome in every.enumerate())
    space = make(cost("parameters") <= costs[3])
    allowed = list(space.enumerate())
    assert space.size() == len(allowed) == sum(c <= costs[3] for c in costs) < every.size()
    assert [space.index(genome) for genome in allowed] == list(range(len(allowed)))
    assert [space.genome(number) for number in range(len(allowed))] == allowed


def test_what_is_not_countable_is_named():
    with pytest.raises(NotCountable, match=r"constraint `cost\(macs\) <= 1,000,000,000` cannot be counted"):
        make(cost("macs") <= 1e9, times=bp.integer(1, 20)).size()
    with pytest.raises(NotCountable, match=r"body\[0\]\.channel\.ratio; give real\(\.\.\.\) a step"):
        make(channel=bp.MLP(ratio=bp.real(1.0, 2.0))).size()
    with pytest.raises(NotCountable, match="give real"):
        next(make(channel=bp.MLP(ratio=bp.real(1.0, 2.0))).enumerate())


def test_more_states_than_allowed_name_the_constraint_and_leave_an_estimate(monkeypatch):
    wide = total(lambda a: a.heads * a.heads, of=bp.Attention) <= 150
    space = make(wide, count(bp.Attention) >= 2, times=bp.integer(1, 14))
    exact = space.size()
    monkeypatch.setattr(counting, "MAX_STATES", 60)
    space = make(wide, count(bp.Attention) >= 2, times=bp.integer(1, 14))
    with pytest.raises(NotCountable, match=r"constraint `total\(heads \* heads, of=Attention\) <= 150` cannot be counted"):
        space.size()
    estimate = space.estimate_size(400, seed=1)
    assert estimate.low <= exact <= estimate.high and estimate.low < estimate.estimate < estimate.high
    assert not space.violated(space.sample(3).genome)


def test_an_estimate_is_exact_where_everything_is_counted_and_covers_the_truth_elsewhere():
    exact = make(times=bp.integer(1, 3)).estimate_size()
    assert exact.low == exact.high == make(times=bp.integer(1, 3)).size()
    space = make(cost("parameters") <= 30_000, times=bp.integer(1, 3))
    truth = space.size()
    estimates = [space.estimate_size(60, seed=seed) for seed in range(40)]
    assert sum(e.low <= truth <= e.high for e in estimates) >= 36
    assert 0 < truth < exact.low
