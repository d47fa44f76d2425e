"""Which subnets a step visits: pure, fair to siblings, sizes as the strategy says."""

from collections import Counter

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.strategies import TrainingStrategy, Visit, resolve, sampling_strategies
from bodyplan.evaluators.strategies.attentive import Attentive
from bodyplan.evaluators.strategies.draw import draw, kind_of, largest, largest_size, sibling_genes, smallest_size
from bodyplan.evaluators.strategies.growing import ProgressiveDepth
from bodyplan.evaluators.strategies.layers import layer_groups
from bodyplan.evaluators.strategies.learngene import Learngene, linear_expansion
from bodyplan.evaluators.strategies.multi_path import MultiPath
from bodyplan.evaluators.strategies.sandwich import Sandwich
from bodyplan.evaluators.strategies.shrinking import ProgressiveShrinking
from bodyplan.evaluators.strategies.two_stage import TwoStage
from torch import nn

NAMES = ["single_path", "fair", "multi_path", "sandwich", "attentive", "progressive_shrinking", "progressive_depth",
         "two_stage", "learngene"]


def describe(visits):
    return [(visit.role, visit.hard, visit.part, visit.architecture.genome,
             [rival.genome for rival in visit.rivals]) for visit in visits]


def visits(strategy, space, step, steps=100, seed=0):
    return list(resolve(strategy).visits(space, step, steps, seed))


def sizes_space(depth=4, **more):
    """A space without siblings: heads, window (operator), ratio and width (width), times (depth)."""
    block = bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2, 4), window=bp.choice(4, 8, None)),
                     channel=bp.MLP(ratio=bp.choice(1, 2, 3)))
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16, 32), head=bp.LanguageHead(tied=True),
                    body=bp.repeat(block, times=bp.integer(1, depth)), **more)


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("step", [0, 95])
def test_visits_are_a_pure_function_of_space_step_and_seed(space, strategy, step):
    assert describe(visits(strategy, space, step, seed=1)) == describe(visits(strategy, space, step, seed=1))
    if strategy not in ("two_stage", "learngene", "progressive_shrinking") or step:
        assert describe(visits(strategy, space, step, seed=1)) != describe(visits(strategy, space, step + 1, seed=1))
        assert describe(visits(strategy, space, step, seed=1)) != describe(visits(strategy, space, step, seed=2))


def test_every_name_is_registered_and_is_its_own_label():
    assert set(NAMES) <= set(sampling_strategies.names())
    assert [resolve(name).label for name in NAMES] == NAMES


def test_labels_tell_settings_apart():
    assert Sandwich(random=2).label == "sandwich(random=2)"
    assert Learngene(then=Sandwich(distill=False)).label == "learngene(then=sandwich(distill=False))"
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert TwoStage(first).label != TwoStage(second).label == TwoStage(second).label


# -- drawing ---------------------------------------------------------------------------------------------------------

def test_siblings_are_the_choices_among_dataclasses(space):
    assert [gene.path for gene in sibling_genes(space)] == ["body[0].channel", "body[1].channel", "recursion"]


def test_sizes_are_told_apart_by_what_they_change(space):
    kinds = {gene.path: kind_of(gene) for gene in space.genes if gene not in sibling_genes(space)}
    assert kinds["width"] == "width" and kinds["body[0].channel.0.ratio"] == "width"
    assert kinds["body.times"] == "depth" and kinds["body[1].mixer.heads"] == "operator"
    assert kinds["body[1].mixer.window"] == "operator"


def test_subsets_are_as_large_as_they_get_and_orders_have_no_size():
    def space(body):
        return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=8, body=body, head=bp.LanguageHead(tied=True))

    blocks = [bp.Block(mixer=bp.Attention(heads=1)), bp.Block(channel=bp.MLP()), bp.Block(mixer=bp.ShortConv(kernel=4))]
    some = space(bp.subset(*blocks, size=(1, 2)))
    large, small = ({draw(some, step, 0, choose).genome["body"] for step in range(30)}
                    for choose in (largest_size, smallest_size))
    assert large == {(0, 1), (0, 2), (1, 2)} and small == {(0,), (1,), (2,)}
    pairs = space(bp.subset(*blocks, size=2))
    assert {draw(pairs, step, 0, largest_size).genome["body"] for step in range(30)} == {(0, 1), (0, 2), (1, 2)}


def test_under_a_bound_the_largest_subnet_is_one_that_cannot_grow_much():
    def bounded(plan):
        return plan.width * len(plan.layers) <= 64

    space = sizes_space(constraints=(bounded,))
    large = [draw(space, step, 0, largest_size).plan for step in range(10)]
    small = [draw(space, step, 0, smallest_size).plan for step in range(10)]
    assert all(bounded(plan) and plan.width * len(plan.layers) >= 32 for plan in large)
    assert all(plan.width == 8 and len(plan.layers) == 1 for plan in small)


@pytest.mark.parametrize("strategy", NAMES)
def test_constraints_hold_for_every_visit(strategy):
    def narrow(plan):
        return plan.width * len(plan.layers) <= 64

    space = sizes_space(constraints=(narrow,))
    for step in (0, 30, 60, 99):
        for visit in visits(strategy, space, step):
            assert all(narrow(found.plan) for found in (visit.architecture, *visit.rivals))


# -- each strategy ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("strategy", ["sandwich", "single_path"])
def test_every_sibling_is_visited_equally_often(space, strategy):
    genomes = [visits(strategy, space, step)[0].architecture.genome for step in range(18)]
    assert Counter(genome["body[0].channel"] for genome in genomes) == {0: 6, 1: 6, 2: 6}
    assert Counter(genome["recursion"] for genome in genomes) == {0: 9, 1: 9}


def test_fair_visits_every_sibling_within_one_step(space):
    for step in range(4):
        assert sorted(v.architecture.genome["body[0].channel"] for v in visits("fair", space, step)) == [0, 1, 2]


def test_several_paths_share_the_batch_and_the_siblings(space):
    split = visits(MultiPath(paths=3), space, 2)
    assert [v.part for v in split] == [(0, 3), (1, 3), (2, 3)] and {v.role for v in split} == {"task"}
    assert sorted(v.architecture.genome["body[0].channel"] for v in split) == [0, 1, 2]
    whole = visits(MultiPath(paths=3, split=False), space, 2)
    assert [v.part for v in whole] == [None] * 3
    assert [v.architecture for v in whole] == [v.architecture for v in split]


def test_the_sandwich_is_a_large_teacher_a_small_and_a_random_student(space):
    large, small, drawn = visits("sandwich", space, 3)
    assert [v.role for v in (large, small, drawn)] == ["teacher", "student", "student"]
    assert large.architecture.plan.width == 16 and small.architecture.plan.width == 8
    assert large.architecture.genome["body.times"] == 2 and small.architecture.genome["body.times"] == 1
    assert large.architecture.plan.layers[0].mixer.window is None, "no window sees more than any window"
    assert small.architecture.plan.layers[0].mixer.window == 4
    assert small.architecture.plan.recursion == large.architecture.plan.recursion


def test_a_sandwich_has_as_many_random_students_as_asked_and_may_do_without_teacher(space):
    made = visits(Sandwich(random=3), space, 3)
    assert describe(made[:3]) == describe(visits("sandwich", space, 3)), "the first of them is the default's"
    assert len(made) == 5 and len({v.architecture.genome for v in made[2:]}) > 1
    assert {v.role for v in visits(Sandwich(random=0, distill=False), space, 3)} == {"task"}


def test_a_space_of_sizes_alone_has_one_largest_subnet():
    space = sizes_space()
    assert {visits("sandwich", space, step)[0].architecture for step in range(5)} == {largest(space)}
    plan = largest(space).plan
    assert (plan.width, len(plan.layers)) == (32, 4)
    assert {(p.mixer.heads, p.mixer.window, p.channel.ratio) for p in plan.layers} == {(4, None, 3)}


def test_rivals_cost_about_the_same_and_the_record_says_which_is_near_the_front():
    space = sizes_space()
    rivals = visits(Attentive(rivals=4, tolerance=0.25), space, 5)[2].rivals
    costs = [rival.cost().macs for rival in rivals]
    assert len(rivals) == 4 and max(costs) / min(costs) < 1.7 and len({rival.genome for rival in rivals}) > 1
    record = [(a.genome, 10.0 - 3 * a.genome["body[0].mixer.heads"]) for a in map(space.sample, range(60))]
    best, worst = (visits(Attentive(rivals=4, tolerance=0.25, record=record, pick=pick), space, 5)[2]
                   for pick in ("best", "worst"))
    heads = [rival.genome["body[0].mixer.heads"] for rival in rivals]
    assert min(heads) < max(heads), "the rivals of this step differ in what the record is about"
    assert best.architecture.genome["body[0].mixer.heads"] == max(heads) and not best.rivals
    assert worst.architecture.genome["body[0].mixer.heads"] == min(heads)


def test_shrinking_opens_operators_then_depth_then_width():
    space, strategy, steps = sizes_space(), ProgressiveShrinking(full=0.25), 400
    assert [v.architecture for v in visits(strategy, space, 99, steps)] == [largest(space)]
    assert strategy.fixed_teacher(space, 99, steps) is None
    assert strategy.fixed_teacher(space, 100, steps) == largest(space)

    def seen(*range_):
        found = [v for step in range(*range_) for v in visits(strategy, space, step, steps)]
        assert {(v.role, v.hard) for v in found} == {("student", 1.0)}
        plans = [v.architecture.plan for v in found]
        return [{p.layers[0].mixer.heads for p in plans}, {len(p.layers) for p in plans}, {p.width for p in plans}]

    assert seen(100, 150) == [{2, 4}, {4}, {32}] and seen(150, 200) == [{1, 2, 4}, {4}, {32}]
    assert seen(200, 250) == [{1, 2, 4}, {3, 4}, {32}] and seen(250, 300) == [{1, 2, 4}, {1, 2, 3, 4}, {32}]
    assert seen(300, 350)[2] == {16, 32} and seen(350, 400)[2] == {8, 16, 32}
    assert [len(visits(strategy, space, step, steps)) for step in (120, 220, 320)] == [1, 2, 4]


def test_with_siblings_every_one_of_them_is_trained_at_full_size_first(space):
    found = [v.architecture for step in range(12) for v in visits("progressive_shrinking", space, step)]
    assert {a.plan.width for a in found} == {16}
    assert {a.genome["body[0].channel"] for a in found} == {0, 1, 2}


def test_depth_grows_in_stages_and_low_depths_come_first():
    space, strategy = sizes_space(depth=6), ProgressiveDepth(stages=3)
    depths = [len(visits(strategy, space, step, 300)[0].architecture.plan.layers) for step in range(300)]
    assert [max(depths[s:s + 100]) for s in (0, 100, 200)] == [2, 4, 6] and set(depths) == {1, 2, 3, 4, 5, 6}
    last = Counter(depths[200:])
    assert last[1] + last[2] > last[5] + last[6]


def test_layers_that_open_start_as_an_interpolation_of_the_trained_ones():
    space, strategy = sizes_space(depth=6), ProgressiveDepth(stages=3)
    net = bp.Supernet(space)
    query = [next(t for a, t in net.tensors.items() if a.startswith(f"body[{i}].mixer/q")) for i in range(6)]
    before = [tensor.detach().clone() for tensor in query]
    strategy.rewrite(net, 99, 300)
    assert all(torch.equal(a, b) for a, b in zip(query, before, strict=True)), "nothing opens at step 99"
    strategy.rewrite(net, 100, 300)
    assert all(torch.equal(query[i], before[source]) for i, source in enumerate([0, 0, 1, 1, 4, 5]))


def test_layers_are_found_by_their_names_in_supernets_and_modules():
    names = ["body[0].mixer/q", "body[11].mixer/q", "body.1.layers[2].mixer/q", "body.2.mixer/q", "embed.0/weight",
             "layers.3.mixer.op.q.weight", "layers.12.mixer.op.q.weight", "recursion.1/body[4].mixer/q/A"]
    groups = layer_groups({name: torch.zeros(2) for name in names})
    found = {(group.prefix, group.depth, tuple(group.members)) for group in groups.values()}
    assert found == {("body", 12, (0, 11)), ("body.1.layers", 3, (2,)), ("body.", 3, (2,)), ("layers.", 13, (3, 12)),
                     ("recursion.1/body", 5, (4,))}


def test_two_stages_train_the_largest_then_let_subnets_learn_from_it(space):
    strategy = TwoStage(first=0.5, hard=0.5)
    first = visits(strategy, space, 10)
    assert first[0].architecture == largest(space) and {v.role for v in first} == {"task"}
    assert first[1].architecture.plan.width == 16, "the siblings that the largest does not have"
    second = visits(strategy, space, 60)
    assert [(v.role, v.hard) for v in second] == [("student", 0.5)]
    assert strategy.fixed_teacher(space, 10, 100) is None
    assert strategy.fixed_teacher(space, 60, 100) == largest(space)


def test_a_given_teacher_teaches_both_stages(space):
    given = nn.Linear(2, 2)
    strategy = TwoStage(given)
    assert {v.role for step in (0, 90) for v in visits(strategy, space, step)} == {"student"}
    assert strategy.fixed_teacher(space, 0, 100) is given and strategy.fixed_teacher(None, 0, 100) is given
    assert strategy.alone().role == "student" and TwoStage().alone().role == "task"


def test_the_learngene_is_on_a_line_as_long_as_it_lasts_and_then_another_strategy_takes_over():
    space, strategy = sizes_space(depth=4), Learngene(first=0.5, then=Sandwich())
    net = bp.Supernet(space)
    layers = [next(t for a, t in net.tensors.items() if a.startswith(f"body[{i}].mixer/q")) for i in range(4)]
    strategy.rewrite(net, 0, 100)
    assert all(torch.equal(layers[0], layer) for layer in layers), "all layers start equal"
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.add_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(i)))
    mean = torch.stack([layer.detach() for layer in layers]).mean(0)
    strategy.rewrite(net, 50, 100)
    bend = layers[0] - 2 * layers[1] + layers[2]
    assert bend.abs().max() < 1e-5 and (layers[0] - layers[1]).abs().max() > 1e-3
    torch.testing.assert_close(torch.stack([layer.detach() for layer in layers]).mean(0), mean, rtol=0, atol=1e-6)
    free = [layer.detach().clone().normal_() for layer in layers]
    for layer, values in zip(layers, free, strict=True):
        layer.data.copy_(values)
    strategy.rewrite(net, 51, 100)
    assert all(torch.equal(layer, values) for layer, values in zip(layers, free, strict=True))
    assert [v.architecture for v in visits(strategy, space, 49)] == [largest(space)]
    assert describe(visits(strategy, space, 50)) == describe(visits("sandwich", space, 50))


def test_linear_expansion_gives_layer_l_of_L_the_base_and_l_over_L_of_the_slope():
    def model(depth):
        block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2))
        return bp.Space(embed=bp.TokenEmbedding(vocab=16), width=8, head=bp.LanguageHead(tied=True),
                        body=bp.repeat(block, times=depth)).sample(0).build(seed=depth)

    source, target, single = model(4), model(6), model(1)
    named = dict(source.named_parameters())
    slope, base = ({n: torch.randn(p.shape) for n, p in named.items() if n.startswith("layers.0.")} for _ in range(2))
    with torch.no_grad():
        for depth, found in ((4, source), (6, target), (1, single)):
            for name, parameter in found.named_parameters():
                if name.startswith("layers.") and found is source:
                    number, key = int(name.split(".")[1]), f"layers.0.{name.split('.', 2)[2]}"
                    parameter.copy_(base[key] + (number + 1) / depth * slope[key])
    for found, depth in ((target, 6), (single, 1)):
        linear_expansion(source, found)
        for name, parameter in found.named_parameters():
            if name.startswith("layers."):
                number, key = int(name.split(".")[1]), f"layers.0.{name.split('.', 2)[2]}"
                expected = base[key] + (number + 1) / depth * slope[key]
                torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(parameter, named[name])


# -- names and bad settings ------------------------------------------------------------------------------------------

def test_third_parties_add_a_function_under_a_name_and_it_is_a_strategy(space):
    def twice(space, step, steps, seed):
        return [Visit(space.sample(seed)), Visit(space.sample(steps))]

    sampling_strategies.register("twice", twice)
    made = resolve("twice")
    assert isinstance(made, TrainingStrategy) and made.label == "twice"
    assert [v.architecture for v in made.visits(space, 0, 7, 3)] == [space.sample(3), space.sample(7)]
    assert resolve(twice).label == "twice"


@pytest.mark.parametrize(("made", "kind", "words"), [
    (lambda: resolve("sandwhich"), ValueError, "did you mean 'sandwich'"),
    (lambda: resolve(3), TypeError, "a name, an object such as"),
    (lambda: resolve(Sandwich), TypeError, "a name, an object such as"),
    (lambda: Sandwich(random=-1), ValueError, "random of a training strategy"),
    (lambda: MultiPath(paths=0), ValueError, "paths of a training strategy"),
    (lambda: Attentive(pick="good"), ValueError, "'best' or the 'worst'"),
    (lambda: Attentive(rivals=1), ValueError, "at least 2"),
    (lambda: ProgressiveShrinking(full=0), ValueError, "leaves it untrained"),
    (lambda: ProgressiveShrinking(phases=("depth",)), ValueError, "in any order"),
    (lambda: TwoStage(first=0), ValueError, "give first=0.3, or a teacher"),
    (lambda: Learngene(first=2), ValueError, "a share of the steps"),
    (lambda: Learngene(then="sandwhich"), ValueError, "did you mean")])
def test_bad_settings_are_answered_when_the_strategy_is_made(made, kind, words):
    with pytest.raises(kind, match=words):
        made()
