"""Declared constraints: what they mean, how they read, what they refuse, and their JSON form."""

import dataclasses
import json
import random

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.space.constraints import cost, count, measure, monotone, total, value, within
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.stage import Stage

VOCAB = 64


def make(*rules, times=None, width=None, mixer=None, recursion=None, body=None):
    mixer = mixer or bp.choice(
        bp.Attention(heads=bp.choice(2, 4), head_dim=bp.choice(8, 16), window=bp.choice(None, 32, 8)), bp.ShortConv())
    block = bp.Block(mixer=mixer, channel=bp.choice(bp.MLP(ratio=bp.choice(1, 2)), bp.Identity()))
    return bp.Space(embed=bp.TokenEmbedding(vocab=VOCAB), width=width or bp.choice(16, 32),
                    body=body or bp.repeat(block, times=times or bp.integer(1, 3)), recursion=recursion,
                    head=bp.LanguageHead(tied=True), constraints=rules)


def plans(space, n=40, seed=0):
    rng = random.Random(seed)
    return [space.sample(rng).plan for _ in range(n)]


def attentions(plan):
    return [block.mixer for block in plan.layers if isinstance(block.mixer, bp.Attention)]


def windows(plan):
    return [a.window or 99 for a in attentions(plan)]


def mixed(plan):
    return [block.mixer for block in plan.layers]


MEANINGS = {
    "arithmetic inside one operator": (
        within(bp.Attention, lambda a: a.heads * a.head_dim <= 2 * a.width),
        lambda p: all(a.heads * a.head_dim <= 2 * p.width for a in attentions(p))),
    "the space's width by its path": (
        within(bp.Attention, lambda a: a.heads * a.head_dim >= value("width")),
        lambda p: all(a.heads * a.head_dim >= p.width for a in attentions(p))),
    "at most one full-attention layer": (
        count(bp.Attention, window=None) <= 1, lambda p: sum(a.window is None for a in attentions(p)) <= 1),
    "counts compared": (
        count(bp.Attention) < count("ShortConv"),
        lambda p: len(attentions(p)) < sum(isinstance(m, bp.ShortConv) for m in mixed(p))),
    "the window shrinks with depth": (
        monotone("window", "decreasing", of=bp.Attention),
        lambda p: windows(p) == sorted(windows(p), reverse=True)),
    "heads grow strictly": (
        monotone(lambda a: a.heads * a.head_dim, "increasing", of=bp.Attention, strict=True),
        lambda p: all(a.heads * a.head_dim < b.heads * b.head_dim
                      for a, b in zip(attentions(p), attentions(p)[1:], strict=False))),
    "a sum over layers": (
        total("ratio", of=bp.MLP) <= 3,
        lambda p: sum(b.channel.ratio for b in p.layers if isinstance(b.channel, bp.MLP)) <= 3),
    "a sum over some of them": (
        total(lambda a: a.heads, bp.Attention, window=8) == 2,
        lambda p: sum(a.heads for a in attentions(p) if a.window == 8) == 2),
    "one layer by its place": (
        value("body[0].mixer.heads") == 4,
        lambda p: not isinstance(p.layers[0].mixer, bp.Attention) or p.layers[0].mixer.heads == 4),
    "every layer by its place": (
        within("body[*].mixer", lambda m: m.heads * 8 <= m.width),
        lambda p: all(a.heads * 8 <= p.width for a in attentions(p))),
    "two fields of one layer": (
        within("body[*]", lambda layer: layer.mixer.heads <= 2 * layer.channel.ratio),
        lambda p: all(b.mixer.heads <= 2 * b.channel.ratio for b in p.layers
                      if isinstance(b.mixer, bp.Attention) and isinstance(b.channel, bp.MLP))),
    "what is decided after the layers": (
        within(bp.Attention, lambda a: (a.window == 8) | (value("recursion.times") == 1)),
        lambda p: p.recursion.times == 1 or all(a.window == 8 for a in attentions(p))),
    "depth and width together": (
        (value("width") * value("body.times") <= 64) & ~(value("recursion.times") * value("body.times") == 4),
        lambda p: p.width * p.raw_times <= 64 and p.recursion.times * p.raw_times != 4),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_what_is_drawn_counted_and_refused_is_what_the_rule_means(name):
    rule, means = MEANINGS[name]
    recursion = bp.choice(bp.Once(), bp.Loop(times=2))
    times = bp.integer(2, 3) if name == "depth and width together" else 2
    free, space = make(recursion=recursion, times=times), make(rule, recursion=recursion, times=times)
    rng, kept = random.Random(1), 0
    for _ in range(150):
        genome = free.sample_genome(rng)
        plan, _ = free.plan(genome)
        object.__setattr__(plan, "raw_times", genome.get("body.times"))
        assert bool(space.violated(genome)) == (not means(plan)), plan
        kept += means(plan)
    assert 0 < kept < 150
    for _ in range(40):
        genome = space.sample_genome(rng)
        assert not space.violated(genome) and not space.is_repaired(genome)
    assert space.size() < free.size()


def test_variation_keeps_what_sampling_keeps():
    space = make(count(bp.Attention, window=None) <= 1, within(bp.Attention, lambda a: a.heads * a.head_dim <= 2 * a.width),
                 cost("parameters") <= 6000)
    rng = random.Random(0)
    a, b = space.sample_genome(rng), space.sample_genome(rng)
    for _ in range(30):
        a, b = space.mutate(a, rng), space.crossover(a, b, rng)
        assert not space.violated(a) and not space.violated(b)
    assert all(not space.violated(near) for near in space.neighbours(a))


def test_a_function_of_the_plan_is_still_a_constraint():
    def shallow(plan):
        return len(plan.layers) <= 1

    space = make(shallow, count(bp.Attention) >= 1)
    assert all(len(plan.layers) == 1 == len(attentions(plan)) for plan in plans(space))
    deep = next(g for g in make().enumerate() if g["body.times"] == 3)
    assert space.violated(deep)[-1] == "shallow"


def test_costs_measurements_and_bounded_objectives_reject():
    def price(architecture):
        return 2.0 * len(architecture.plan.layers)

    limit = bp.Objective("price", unit="EUR", evaluate=price) <= 4
    space = make(cost("parameters") <= 9000, cost("kv_bytes", length=64) >= 1, measure(price) > 2, limit)
    for plan in plans(space):
        assert len(plan.layers) == 2
    for architecture in (space.sample(seed) for seed in range(20)):
        assert architecture.cost().parameters <= 9000 and architecture.cost(64).state_bytes >= 1
    deep = next(g for g in make().enumerate() if g["body.times"] == 3 and len(make().architecture(g).plan.layers) == 3)
    assert "price <= 4" in space.violated(deep)


WORDS = {
    "count(Attention, window == None) <= 2": count(bp.Attention, window=None) <= 2,
    "within(Attention): heads * head_dim <= 2 * width": within(bp.Attention, lambda a: a.heads * a.head_dim <= 2 * a.width),
    "monotone(window, strictly decreasing, of=Attention)": monotone("window", "decreasing", of=bp.Attention, strict=True),
    "total(heads + 1, of=Attention, window == 8 and heads > 2) == 5":
        total(lambda a: a.heads + 1, bp.Attention, lambda a: (a.window == 8) & (a.heads > 2)) == 5,
    "cost(macs, length=64) / cost(parameters) <= 1,000": cost("macs", length=64) / cost("parameters") <= 1000,
    "not (value(width) == 16 or value(body.times) > 2)": ~((value("width") == 16) | (value("body.times") > 2)),
    "(value(width) - 1) * count(Attention) ** 2 <= 80": (value("width") - 1) * count(bp.Attention) ** 2 <= 80,
    "value(width) - (value(body.times) - 1) % 2 >= 5": value("width") - (value("body.times") - 1) % 2 >= 5,
    "within(body[*]): mixer.heads // 2 < channel.ratio": within("body[*]", lambda b: b.mixer.heads // 2 < b.channel.ratio),
}


@pytest.mark.parametrize("text", WORDS)
def test_rules_read_as_they_are_written_and_round_trip_through_json(text):
    rule = WORDS[text]
    assert repr(rule) == text
    space = make(rule)
    stored = json.loads(json.dumps(space.to_json()))
    again = bp.Space.from_json(stored)
    assert again.to_json() == space.to_json() and again.hash == space.hash != make().hash
    assert [repr(r) for r in again.constraints] == [text]
    assert again.sample(4).genome == space.sample(4).genome


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "//", "%"])
def test_arithmetic_means_on_either_side_what_it_does_to_numbers(op):
    width = value("width")
    for text in (f"width {op} 3", f"100 {op} width"):
        made = eval(text, {"width": width})
        assert made._value(lambda leaf: 32) == eval(text, {"width": 32})
        assert made._text() == text.replace("width", "value(width)")


@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("limit", [31, 32, 33])
def test_comparisons_mean_on_either_side_what_they_do_to_numbers(op, limit):
    for text in (f"width {op} {limit}", f"{limit} {op} width"):
        assert eval(text, {"width": value("width")})._value(lambda leaf: 32) is eval(text, {"width": 32})


def test_a_constraint_changes_the_hash_and_none_leaves_it():
    assert make(count("Attention") <= 1).hash != make(count("Attention") <= 2).hash
    assert make().to_json()["constraints"] == []


def test_code_of_ones_own_is_named_and_not_read_back():
    space = make(count("Attention") <= 2, measure(lambda a: 1.0, name="predicted latency") <= 10)
    assert json.loads(json.dumps(space.to_json()))["constraints"][1] == {"<=": [{"measure": "predicted latency"}, 10]}
    with pytest.raises(ValueError, match="predicted latency; load it from the Python file"):
        bp.Space.from_json(space.to_json())


def test_pickling_keeps_constraints():
    import cloudpickle

    space = make(within(bp.Attention, lambda a: a.heads * a.head_dim <= 2 * a.width), cost("parameters") <= 6000)
    copy = cloudpickle.loads(cloudpickle.dumps(space))
    assert copy.hash == space.hash and copy.sample(2).genome == space.sample(2).genome


REFUSED = {
    "a class that is not there": (lambda: count("Atention") <= 2,
                                  r"got 'Atention' in `count\(Atention\) <= 2`; did you mean 'Attention'"),
    "a field that is not there": (lambda: within(bp.Attention, lambda a: a.head * 2 <= 8),
                                  r"got 'head' of Attention.*did you mean 'heads'"),
    "what divides by zero": (lambda: within(bp.MLP, lambda m: 6 / (m.ratio - 2) <= 9), "cannot with ratio = 2"),
    "a field of count": (lambda: count(bp.Attention, windows=8) <= 2, "got 'windows' of Attention.*did you mean 'window'"),
    "a field of a sum": (lambda: total("ratios", of=bp.MLP) <= 2, "did you mean 'ratio'"),
    "a path": (lambda: value("widht") <= 2, r"finds nothing at 'widht'; did you mean 'width'"),
    "the end of a path": (lambda: value("body[0].mixer.head") <= 2,
                          r"finds nothing at 'head'; did you mean 'heads'.*body\[0\]\.mixer has .*window"),
    "a layer that cannot be": (lambda: value("body[9].mixer.heads") <= 2, r"finds nothing at '\[9\]'"),
    "layers without a number": (lambda: within("body.mixer", lambda m: m.heads <= 2),
                                r"finds nothing at 'mixer'.*body has \[\*\], times"),
    "not a path": (lambda: value("body[x]") <= 2, r"a path is fields and indices such as body\[\*\]"),
    "a whole part": (lambda: value("recursion") == 1, r"recursion holds a whole Once"),
    "a repeat": (lambda: value("body") <= 2, r"body holds a repeat of several parts.*or body\.times"),
    "a plain value as a part": (lambda: within("width", lambda w: w.x <= 1), r"use value\('width'\)"),
    "text in a sum": (lambda: total("activation", of=bp.MLP) <= 2, "adds and compares numbers: got 'gelu'"),
    "arithmetic with text": (lambda: within(bp.MLP, lambda m: m.activation * m.ratio / "a" <= 2), "cannot with"),
    "an expression alone": (lambda: value("width"), r"compares its expression with something.*write value\(width\) <= limit"),
    "a field alone": (lambda: within(bp.MLP, lambda m: m.ratio > 1).rule, r"a field is read inside within"),
    "costs and decisions": (lambda: cost("macs") <= 10 * value("width"), "costs are compared with numbers and costs"),
    "an objective without bound": (lambda: bp.Objective("a", evaluate=len), "write objective <= limit"),
    "an objective of a trained model": (lambda: bp.Objective("a", evaluate=len, needs="model") <= 3, "needs a model"),
    "no constraint": (lambda: 3, "constraints are declared rules"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_names_nothing_or_means_nothing_is_refused_when_the_space_is_made(case):
    build, text = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=text):
        make(build())


WRONG = {
    "chained": (lambda: 1 <= value("width") <= 5, TypeError, r"write &, \|, ~, or two constraints"),
    "and": (lambda: value("width") > 1 and value("width") < 5, TypeError, "no truth value"),
    "a number with &": (lambda: (value("width") > 1) & 3, TypeError, "put each comparison in brackets"),
    "a list in arithmetic": (lambda: value("width") + [1], TypeError, "numbers, text, None and expressions"),
    "value of many": (lambda: value("body[*].mixer.heads"), ValueError, r"value names one place.*within\('body\["),
    "within without a function": (lambda: within(bp.MLP, 3), TypeError, "within takes a function"),
    "within without a comparison": (lambda: within(bp.MLP, lambda m: m.ratio), TypeError, "returns a comparison"),
    "within without a field": (lambda: within(bp.MLP, lambda m: value("width") < 3), ValueError, "reads a field of"),
    "cost within a part": (lambda: within(bp.MLP, lambda m: m.ratio < cost("macs")), ValueError, "of the whole arch"),
    "value within a sum": (lambda: total(lambda m: m.ratio * value("width"), of=bp.MLP), ValueError, "move it out"),
    "direction": (lambda: monotone("window", "down", of=bp.Attention), ValueError, "'decreasing' or 'increasing': got"),
    "metric": (lambda: cost("paramters"), ValueError, "did you mean 'parameters'"),
    "length": (lambda: cost("macs", length=0), ValueError, "number of tokens"),
    "parts": (lambda: count(3), TypeError, "named by class or path"),
    "amount": (lambda: total(3, of=bp.MLP), TypeError, "takes a field or a function"),
}


@pytest.mark.parametrize("case", WRONG)
def test_words_are_refused_where_they_are_written(case):
    build, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        build()


def test_a_single_constraint_is_asked_to_stand_in_a_list():
    with pytest.raises(TypeError, match=r"write constraints=\[\.\.\.\]"):
        bp.Space(embed=bp.TokenEmbedding(vocab=VOCAB), width=16, body=bp.Block(mixer=bp.ShortConv()),
                 head=bp.LanguageHead(), constraints=value("width") <= 16)


def test_rules_that_clash_are_named_and_no_others():
    with pytest.raises(ValueError) as caught:
        make(value("width") >= 16, count(bp.Attention) >= 3, monotone("window", "decreasing", of=bp.Attention),
             count(bp.ShortConv) >= 1, total("ratio", of=bp.MLP) >= 0)
    text = str(caught.value)
    assert "these 2 together: `count(Attention) >= 3`; `count(ShortConv) >= 1`; loosen one of them" in text
    with pytest.raises(ValueError, match=r"no genome keeps this one: `count\(Attention\) >= 4`; loosen it"):
        make(value("width") >= 16, count(bp.Attention) >= 4)


def test_a_cost_that_cannot_be_kept_names_the_smallest_that_was_found():
    space = make(cost("parameters") <= 500, count(bp.Attention) >= 1)
    one = make(count(bp.Attention) >= 1, times=1)
    smallest = min(one.architecture(genome).cost().parameters for genome in one.enumerate())
    with pytest.raises(BodyplanError, match=rf"the smallest found has cost\(parameters\) = {smallest:,}, against `cost"):
        space.sample(0)


def test_the_width_around_a_part_is_that_of_its_stage():
    layer = bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4))), times=2)
    body = (Stage(layers=layer, width=bp.choice(16, 32)), Stage(layers=layer, width=64))
    head = bp.LanguageHead(tied=False)

    def space(body, *rules):
        return bp.Space(embed=bp.TokenEmbedding(vocab=VOCAB), width=16, body=body, head=head, constraints=rules)

    made = space(body, within(bp.Attention, lambda a: a.width >= 8 * a.heads))
    assert made.size() == 2 ** 4 + 2 ** 2
    with pytest.raises(ValueError, match="decided after"):
        space(body, count(bp.Attention, lambda a: a.width > 16) <= 1)
    with pytest.raises(ValueError, match="give every stage a width"):
        space((body[0], Stage(layers=layer)), within(bp.Attention, lambda a: a.width >= 8 * a.heads))


def test_subsets_orders_and_kept_layers_have_constraints_too():
    attention = bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4)))
    conv = bp.Block(mixer=bp.ShortConv(kernel=bp.choice(3, 4)))
    kept = bp.repeat(bp.choice(attention, conv), times=bp.integer(1, 4), keep="any")
    space = make(value("body.times") >= 2, count(bp.Attention) <= 1, body=kept, width=16)
    free = make(body=kept, width=16)
    meant = [g for g in free.enumerate() if len(g["body.kept"]) >= 2 and len(attentions(free.plan(g)[0])) <= 1]
    assert list(space.enumerate()) == meant and 10 < space.size() == len(meant) < free.size()
    order = make(monotone("heads", "increasing", of=bp.Attention), width=16,
                 body=bp.permutation(*(bp.Block(mixer=bp.Attention(heads=h)) for h in (1, 2, 4))))
    assert [len(attentions(order.plan(g)[0])) for g in order.enumerate()] == [3] and order.size() == 1


DIVIDES = within(bp.Attention, lambda a: a.width % a.heads == 0)
HEADS = bp.Attention(heads=bp.choice(4, 5))
STAGES = (bp.Block(mixer=HEADS), bp.Stage((bp.Block(mixer=HEADS),), width=bp.choice(32, 40)))
EXCLUDED = {
    "a condition on the part": make(DIVIDES, width=bp.choice(32, 40), mixer=bp.choice(HEADS, bp.ShortConv())),
    "places by their paths": make((value("width") == 40) | (value("body.mixer.heads") == 4), width=bp.choice(32, 40),
                                  body=bp.Block(mixer=HEADS)),
    "a count": make(count(bp.Attention, heads=5) == 0, width=32, mixer=HEADS),
    "a tied part": make(DIVIDES, width=bp.choice(32, 40), mixer=bp.tied(HEADS)),
    "a stage with its own width": make(DIVIDES, width=32, body=(
        bp.Stage((bp.Block(mixer=HEADS),), width=bp.choice(32, 40)), bp.Stage((), width=32))),
    "a topology that rewrites": make(DIVIDES, width=bp.choice(32, 40), body=bp.Stack(
        bp.repeat(bp.Block(mixer=HEADS), 2), bp.CrossLayerKV())),
}


@pytest.mark.parametrize("space", EXCLUDED.values(), ids=EXCLUDED.keys())
def test_an_operator_that_no_genome_has_at_a_width_need_not_fit_it(space):
    genomes = list(space.enumerate())
    assert len(genomes) == space.size()
    pairs = {(place.operator.heads, place.width) for genome in genomes for place in space.architecture(genome).placed
             if isinstance(place.operator, bp.Attention)}
    assert pairs and all(width % heads == 0 for heads, width in pairs)
    net = bp.Supernet(space)
    for genome in (genomes[0], genomes[-1]):
        architecture = space.architecture(genome)
        assert {n: p.shape for n, p in net.extract(architecture).named_parameters()} == {
            n: declared.shape for n, declared in architecture.parameters.items()}


REACHED = {
    "no rule": ((), None, "body[0].mixer"),
    "a rule that leaves it": ((within(bp.Attention, lambda a: a.heads <= a.width),), None, "body[0].mixer"),
    "a rule for one layer": ((value("body[0].mixer.heads") == 4,), None, "body[1].mixer"),
    "a rule over costs": ((cost("parameters") <= 1,), None, "body[0].mixer"),
    "a function": ((lambda plan: False,), None, "body[0].mixer"),
    "another place": ((value("body.0.mixer.heads") == 4,), STAGES, "body.1.layers.0.mixer"),
    "a width that is no single decision": ((within(bp.Attention, lambda a: a.heads >= 4),), (*STAGES, STAGES[0]),
                                           "body.0.mixer"),
}


@pytest.mark.parametrize("case", REACHED)
def test_an_operator_that_some_genome_has_at_a_width_must_fit_it(case):
    rules, body, where = REACHED[case]
    block = bp.Block(mixer=HEADS)
    with pytest.raises(ValueError, match="heads must divide width") as raised:
        make(*rules, width=32, body=body or bp.repeat(block, 2))
    assert f"at {where}: got 5 and 32; use 2 or 4" in str(raised.value)


def test_a_continuous_field_leaves_the_check_as_it_was():
    mixer = bp.choice(HEADS, bp.MLP(ratio=bp.real(1.0, 2.0)))
    make(DIVIDES, width=bp.choice(32, 40), mixer=mixer)
    with pytest.raises(ValueError, match="got 5 and 32"):
        make(within(bp.MLP, lambda m: m.ratio <= 1.5), width=bp.choice(32, 40), mixer=mixer)


@dataclasses.dataclass(frozen=True)
class _Widened(Looped):
    """Gives the attention inside a head more."""

    def rewrites(self):
        return (lambda op: dataclasses.replace(op, heads=op.heads + 1) if isinstance(op, bp.Attention) else op,)


def test_what_a_macro_makes_of_an_operator_is_reached_where_that_is():
    body = _Widened((bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4))),))
    make(count(bp.Attention, heads=4) == 0, width=36, body=body)
    with pytest.raises(ValueError, match="got 5 and 32"):
        make(count(bp.Attention, heads=2) == 0, width=32, body=body)
