"""Drawing: what it is uniform over, what constraints let through, how often, and what is repaired."""

import random
from collections import Counter

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.space.constraints import cost, count, measure, monotone, value, within
from bodyplan.space.counting import estimating
from bodyplan.space.counting.intervals import proportion
from hypothesis import given, settings
from hypothesis import strategies as st
from random_spaces import random_space
from scipy import stats


def make(*rules, times=None, channel=None):
    attention = bp.Attention(heads=bp.choice(2, 4), window=bp.choice(None, 16, 8))
    mixer = bp.choice(attention, bp.ShortConv(kernel=bp.choice(3, 4)))
    block = bp.Block(mixer=mixer, channel=channel or bp.choice(bp.MLP(ratio=bp.choice(1, 2, 3)), bp.Identity()))
    return bp.Space(embed=bp.TokenEmbedding(vocab=64), width=bp.choice(16, 32, 64), body=bp.repeat(block, times=times or 2),
                    recursion=bp.choice(bp.Once(), bp.Loop(times=2)), head=bp.LanguageHead(tied=True), constraints=rules)


def deep(*rules):
    return make(*rules, times=bp.integer(2, 8))


def is_uniform(counts, shares):
    """Whether counts are what shares make likely, at one in ten thousand."""
    total = sum(counts.values())
    off = sum((counts[key] - total * share) ** 2 / (total * share) for key, share in shares.items())
    return set(counts) <= set(shares) and off < stats.chi2.ppf(0.9999, len(shares) - 1)


RULES = {
    "none": (),
    "one full attention": (count(bp.Attention, window=None) <= 1,),
    "ordered and balanced": (monotone("window", "decreasing", of=bp.Attention), count(bp.Attention) == count(bp.ShortConv)),
    "width by heads": (within(bp.Attention, lambda a: 16 * a.heads <= a.width),
                       value("width") * value("recursion.times") < 128),
}


@pytest.mark.parametrize("name", RULES)
def test_uniform_samples_are_uniform_over_genomes(name):
    space = make(*RULES[name], times=1, channel=bp.Identity()) if name != "ordered and balanced" else make(
        *RULES[name], channel=bp.Identity())
    genomes = list(space.enumerate())
    rng = random.Random(0)
    counts = Counter(space.sample_uniform(rng) for _ in range(30 * len(genomes)))
    assert is_uniform(counts, dict.fromkeys(genomes, 1 / len(genomes)))


def test_uniform_samples_are_uniform_where_a_cost_rejects(monkeypatch):
    few = make(cost("parameters") <= 4000, times=1, channel=bp.Identity())
    many = make(cost("parameters") <= 12_000, times=bp.integer(1, 6))
    rng, genomes = random.Random(0), list(few.enumerate())
    assert is_uniform(Counter(few.sample_uniform(rng) for _ in range(1000)), dict.fromkeys(genomes, 1 / len(genomes)))
    assert not any(many.violated(many.sample_uniform(rng)) for _ in range(5))
    monkeypatch.setattr(estimating, "MAX_DRAWS", 20)
    with pytest.raises(BodyplanError, match="no genome in 20 uniform draws keeps `one > 1`: sample"):
        deep(measure(lambda architecture: 1.0, "one") > 1).sample_uniform(rng)


def test_samples_draw_each_decision_uniformly_over_what_can_be_completed():
    space = make(count(bp.ShortConv) == 1, times=bp.choice(1, 3), channel=bp.Identity())
    rng = random.Random(3)
    drawn = [space.sample_genome(rng) for _ in range(2000)]
    where = Counter((g["body.times"], next(i for i in range(3) if g[f"body[{i}].mixer"] == 1)) for g in drawn)
    # One layer: it is the convolution. Three: the first or not, then the second or not, then the third must be.
    assert is_uniform(where, {(0, 0): 1 / 2, (1, 0): 1 / 4, (1, 1): 1 / 8, (1, 2): 1 / 8})
    assert not any(map(space.is_repaired, drawn)) and space.acceptance.rate == 1


def test_sampling_without_constraints_is_uniform_per_decision():
    space = make(times=1)
    counts = Counter(space.sample_genome(random.Random(seed)).get("body[0].mixer.0.window") for seed in range(1500))
    assert is_uniform(counts, {None: 1 / 2, 0: 1 / 6, 1: 1 / 6, 2: 1 / 6})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_sample_breaks_a_rule_in_any_space(seed):
    rng = random.Random(seed)
    rules = [rule for rule in (count(bp.Block) >= 1, count(bp.Attention) <= 1, value("width") <= 8,
                               count(bp.MLP) <= count(bp.Attention) + 1) if rng.random() < 0.6]
    try:
        space = random_space(rng.randrange(500), 300, rules)
    except ValueError as error:
        assert "names parts that the space has" in str(error) or "no genome keeps" in str(error)
        return
    allowed = set(space.enumerate())
    canonical = {space.canonical(genome) for genome in allowed}
    if not any(not space.violated(genome) for genome in canonical):
        return
    for _ in range(10):
        genome = space.sample_genome(rng)
        assert genome in canonical and not space.violated(genome)
        assert space.sample_uniform(rng) in allowed


def test_a_rule_on_depth_holds_for_canonical_genomes_whose_empty_layers_are_gone():
    empty = bp.choice(bp.Identity(), bp.ShortConv())
    space = bp.Space(embed=bp.TokenEmbedding(vocab=64), width=16, head=bp.LanguageHead(),
                     constraints=[value("body.times") >= 3],
                     body=bp.repeat(bp.Block(mixer=empty), times=bp.integer(1, 4)))
    assert 0.2 < space.acceptance.rate < 0.8
    for seed in range(30):
        plan = space.sample(seed).plan
        assert len(plan.layers) >= 3


RARE = 1.95e8               # two of 20,000 samples


def rare():
    """A bound that about one in ten thousand random genomes keeps."""
    return make(count(bp.Attention) >= 4, cost("macs") >= RARE, times=bp.integer(4, 10))


def test_a_bound_that_rejects_nearly_everything_is_met_by_repair():
    space, calls = rare(), 0
    free = make(count(bp.Attention) >= 4, times=bp.integer(4, 10))
    rng = random.Random(0)
    assert sum(free.sample(rng).cost().macs >= RARE for _ in range(1500)) <= 1
    assert space.acceptance.rate < 0.01 and space.acceptance.high < 0.05
    make_architecture = space.architecture

    def counted(genome):
        nonlocal calls
        calls += 1
        return make_architecture(genome)

    space.architecture = counted
    drawn = [space.sample_genome(rng) for _ in range(10)]
    assert calls < 10 * 500, "guided, not blind"
    assert len(set(drawn)) > 3
    for genome in drawn:
        assert not space.violated(genome) and space.is_repaired(genome)


def test_what_is_accepted_as_drawn_is_not_called_repaired():
    space = make(cost("parameters") <= 8000)
    truth = sum(not space.violated(make().sample(seed).genome) for seed in range(400)) / 400
    assert 0.1 < truth < 0.9
    assert space.acceptance.low <= truth <= space.acceptance.high
    assert not any(space.is_repaired(space.sample_genome(random.Random(seed))) for seed in range(20))


def test_sampling_with_repair_is_a_function_of_the_seed():
    first, second = rare(), rare()
    warm = [second.sample(seed).genome for seed in range(3)]
    assert [first.sample(seed).genome for seed in (2, 1, 0)] == warm[::-1]


def test_bounds_from_both_sides_and_on_two_costs_are_met():
    free = deep()
    wanted = free.sample(11).cost()
    near = 0.01
    space = deep(cost("parameters") >= wanted.parameters * (1 - near), cost("parameters") <= wanted.parameters * (1 + near),
                 cost("macs") <= wanted.macs * (1 + near))
    for seed in range(3):
        found = space.sample(seed).cost()
        assert abs(found.parameters / wanted.parameters - 1) <= near and found.macs <= wanted.macs * (1 + near)


def test_a_stratified_sample_covers_the_range_of_a_cost():
    space = deep(count(bp.MLP) >= 1)
    drawn = space.sample_stratified(12, "parameters", random.Random(0))
    sizes = [a.cost().parameters for a in drawn]
    assert sizes == sorted(sizes) and len({a.genome for a in drawn}) == 12
    assert not any(space.violated(a.genome) for a in drawn)
    steps = [b / a for a, b in zip(sizes, sizes[1:], strict=False)]
    even = (sizes[-1] / sizes[0]) ** (1 / 11)
    assert max(steps) < even ** 2.5
    plain = sorted(space.sample(seed).cost().parameters for seed in range(12))
    assert sizes[0] < plain[0] * 1.5 and sizes[-1] > plain[-1] / 1.5
    by_depth = space.sample_stratified(4, lambda a: len(a.plan.layers), random.Random(1), pool=60)
    assert [len(a.plan.layers) for a in by_depth][0] < [len(a.plan.layers) for a in by_depth][-1]


def test_a_stratified_sample_of_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="different architectures"):
        few = make(count(bp.ShortConv) == 2, times=2, channel=bp.Identity())
        few.sample_stratified(1000, "macs", random.Random(0), pool=1100)
    with pytest.raises(ValueError, match="got n=0"):
        make().sample_stratified(0, "macs", random.Random(0))
    with pytest.raises(ValueError, match="did you mean 'parameters'"):
        make().sample_stratified(2, "parameter", random.Random(0))


def test_continuous_decisions_are_drawn_and_rules_on_them_reject():
    space = make(within(bp.MLP, lambda m: m.ratio <= 1.5), count(bp.Attention) >= 1,
                 channel=bp.MLP(ratio=bp.real(1.0, 3.0)), times=2)
    assert 0.02 < space.acceptance.rate < 0.15
    for seed in range(5):
        plan = space.sample(seed).plan
        assert all(block.channel.ratio <= 1.5 for block in plan.layers)
        assert any(isinstance(block.mixer, bp.Attention) for block in plan.layers)


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (3, 50), (50, 50), (200, 1000)])
def test_the_interval_of_a_proportion_is_that_of_clopper_and_pearson(hits, trials):
    found = stats.binomtest(hits, trials).proportion_ci(0.95, "exact")
    assert proportion(hits, trials) == pytest.approx((found.low, found.high), abs=1e-9)
