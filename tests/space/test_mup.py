"""Starting values and rates at another width and depth: against the rules as the papers give them, and in training."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.space import presets
from bodyplan.space.macros.parallel import Parallel
from bodyplan.space.macros.residual import CrossLayerKV, HyperConnections, ValueResidual
from bodyplan.space.macros.stack import Stack
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.inverted_residual import MobileConv
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.space.operators.moe import MoE
from bodyplan.space.scaling.mup import mup
from bodyplan.space.scaling.twins import twins
from operator_examples.core import Doubled

ATTENTION = bp.Block(mixer=bp.Attention(heads=2, kv_heads=1), channel=bp.SwiGLU(ratio=2))
MAMBA = bp.Block(mixer=bp.Mamba2(state=16, head_dim=32), channel=bp.MLP(ratio=2))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def architecture(*body, width=32, tied=True, embed_vocab=64, **fields):
    return bp.Space(embed=bp.TokenEmbedding(vocab=embed_vocab), width=width, body=body or (ATTENTION, MAMBA),
                    head=bp.LanguageHead(tied=tied), **fields).sample(0)


# -- the rules ----------------------------------------------------------------------------------------------

def test_equal_sizes_are_the_usual_parametrisation():
    small = architecture(recursion=bp.Loop(times=2, lora_rank=2))
    rules = mup(small, base=small)
    assert set(rules.init.values()) == set(rules.rates.values()) == {1.0}
    assert (rules.width, rules.depth, rules.output, rules.attention, rules.unfolded) == (1.0, 1.0, 1.0, 1.0, ())
    ours, usual = rules.build(seed=3).state_dict(), small.build(seed=3).state_dict()
    assert all(torch.equal(ours[name], usual[name]) for name in usual)


def test_rules_of_width_are_those_of_the_paper():
    """Tensor Programs V, table 8, with r = 4: (start, rate) by hand."""
    small = architecture(tied=False)
    rules = mup(small.scale(width=128), base=small)
    expected = {
        "embed.weight": (1, 1 / 2),                                  # read times sqrt(width), started at 1 / sqrt(width)
        **{f"layers.0.mixer.op.{name}.weight": (1, 1 / 4) for name in ("query", "key", "value", "out")},
        **{f"layers.0.channel.op.{name}.weight": (1, 1 / 4) for name in ("gate", "up", "down")},
        **{f"layers.1.channel.op.{name}.weight": (1, 1 / 4) for name in ("up", "down")},
        **{f"layers.{i}.{name}.norm.weight": (1, 1) for i in (0, 1) for name in ("mixer", "channel")},
        "layers.1.mixer.op.input.weight": (1, 1 / 4), "layers.1.mixer.op.out.weight": (1, 1 / 4),
        **{f"layers.1.mixer.op.{name}": (1, 1) for name in ("norm", "A_log", "dt_bias", "D", "taps", "bias")},
        "norm.weight": (1, 1), "head.weight": (1 / 2, 1 / 4)}
    assert {name: (rules.init[name], rules.rates[name]) for name in rules.rates} == expected


def test_a_tied_table_hands_the_factor_on_logits_to_the_final_norm():
    small = architecture()
    rules = mup(small.scale(width=128), base=small)
    assert rules.output == 1 / 2
    assert (rules.init["norm.weight"], rules.rates["norm.weight"]) == (1 / 2, 1 / 2)
    assert (rules.init["embed.weight"], rules.rates["embed.weight"]) == (1, 1 / 2)
    assert rules.build(0).norm.weight.eq(0.5).all()


def test_rules_of_depth_divide_branches_and_their_rates():
    """Depth-muP: the factor 1 / sqrt(q) of a branch stands in its last matrix, start and rate; all of it learns slower."""
    small = architecture(ATTENTION)
    rules = mup(small.scale(depth=4), base=small)
    assert rules.depth == 4
    op = "layers.3.mixer.op"
    assert (rules.init[f"{op}.query.weight"], rules.rates[f"{op}.query.weight"]) == (1, 1 / 2)
    assert (rules.init[f"{op}.out.weight"], rules.rates[f"{op}.out.weight"]) == (1 / 2, 1 / 4)
    assert (rules.init["layers.3.channel.op.down.weight"], rules.rates["layers.3.channel.norm.weight"]) == (1 / 2, 1 / 2)
    assert {rules.rates["embed.weight"], rules.rates["norm.weight"], rules.init["embed.weight"]} == {1}


def test_width_and_depth_multiply():
    small = architecture(ATTENTION)
    rules = mup(small.scale(width=128, depth=4), base=small)
    assert rules.rates["layers.2.mixer.op.out.weight"] == pytest.approx(1 / 4 / 4)
    assert rules.rates["layers.2.mixer.op.key.weight"] == pytest.approx(1 / 4 / 2)


def test_loops_count_as_depth_and_their_corrections_follow_the_matrix():
    small = architecture(ATTENTION, recursion=bp.Loop(times=2, lora_rank=2))
    rules = mup(small.scale(width=128, depth=2), base=small)
    q = 1 / math.sqrt(2)
    out, query = "lora.layers_1_mixer_op_out_weight", "lora.layers_1_mixer_op_query_weight"
    assert (rules.init[f"{query}.A"], rules.rates[f"{query}.A"]) == pytest.approx((1 / 2, q / 4))
    assert (rules.init[f"{query}.B"], rules.rates[f"{query}.B"]) == pytest.approx((1, q))
    assert rules.rates[f"{out}.B"] == pytest.approx(1 / 2)
    assert mup(architecture(ATTENTION, recursion=bp.Loop(times=4)), architecture(ATTENTION)).depth == 4


def test_wider_heads_score_by_one_over_head_dim():
    rules = mup(architecture(ATTENTION, width=128), base=architecture(ATTENTION))         # head_dim 16 -> 64
    assert rules.attention == 1 / 2
    assert rules.init["layers.0.mixer.op.query.weight"] == 1 / 2
    assert rules.rates["layers.0.mixer.op.query.weight"] == 1 / 4 / 2
    assert rules.rates["layers.0.mixer.op.key.weight"] == 1 / 4


def test_branches_side_by_side_each_take_the_factor_of_depth():
    both = Parallel(branches=(bp.Attention(heads=2), bp.SwiGLU(ratio=2)))
    joined = Parallel(branches=(bp.Attention(heads=2), bp.SwiGLU(ratio=2)), merge="concat")
    small = architecture(bp.Block(mixer=both))
    rules = mup(small.scale(depth=4), base=small)
    assert {name for name, factor in rules.init.items() if factor == 0.5 and "layers.0." in name} == {
        "layers.0.mixer.op.branches.0.out.weight", "layers.0.mixer.op.branches.1.down.weight"}
    small = architecture(bp.Block(mixer=joined))
    rules = mup(small.scale(depth=4), base=small)
    assert {name for name, factor in rules.init.items() if factor == 0.5 and "layers.0." in name} == {
        "layers.0.mixer.op.project.weight"}


@pytest.mark.parametrize("name", ["convnext", "mamba2_hybrid", "metaformer", "pvt"])
@pytest.mark.parametrize("pattern", ["stack", "stretch"])
def test_families_of_stages_and_hybrids_find_every_twin(name, pattern):
    """Twins hold the same operator with the same fields, inside stages that grow beside layers that grow."""
    small = getattr(presets, name).space().sample(0)
    depth = sum(place.name.endswith("mixer.op") for place in small.placed)
    large = small.scale(width=2 * small.plan.width, depth=2 * depth, pattern=pattern)
    found = twins(large, small)
    assert set(found) == set(large.parameters)
    assert {type(twin.operator) for twin in found.values()} <= {type(place.operator) for place in small.placed}
    matrices = [twin for twin in found.values() if twin.is_matrix and twin.prefix.startswith("layers.")]
    sizes = {twin.inputs[0] / twin.inputs[1] for twin in matrices}
    assert sizes <= {1.0, 2.0} and 2.0 in sizes
    assert mup(large, base=small).depth == 2


Q = 1 / math.sqrt(2)


@pytest.mark.parametrize("block, expected", [
    (bp.Block(channel=MoE(experts=4, ratio=2)), {                    # the router has experts for outputs, as a head classes
        "gate": (1, Q / 2), "up": (1, Q / 2), "down": (Q, 1 / 4), "router.weight": (Q, Q / 2)}),
    (bp.Block(channel=LowRankMLP(ratio=2, rank=4)), {                # the rank stays: here outputs, there inputs
        "up_in.weight": (Q, Q / 2), "up_out.weight": (1, Q), "down_in.weight": (Q, Q / 2), "down_out.weight": (Q, 1 / 2)}),
    (bp.Block(mixer=GroupedConv(groups=4)), {                        # filters that mix the channels of a group are matrices
        "input.weight": (1, Q / 2), "taps": (1, Q / 2), "out.weight": (Q, 1 / 4)}),
    (bp.Block(mixer=bp.ShortConv()), {                               # filters of one channel are not
        "input.weight": (1, Q / 2), "taps": (1, Q), "out.weight": (Q, 1 / 4)}),
    (bp.Block(mixer=MobileConv()), {                                 # a norm after the last matrix takes its factor
        "up.weight": (1, Q / 2), "down.weight": (1, Q / 2), "down_norm.weight": (Q, 1 / 2), "up_norm.bias": (1, Q)}),
    (bp.Block(mixer=bp.Custom(Doubled)), {
        "inner.weight": (1, Q / 2), "inner.bias": (1, Q), "out.weight": (Q, 1 / 4), "out.bias": (Q, 1 / 2)})],
    ids=lambda value: value.sublayers()[0][1].__class__.__name__ if isinstance(value, bp.Block) else "")
def test_each_kind_of_parameter_follows_its_own_rule(block, expected):
    small = architecture(block)
    rules = mup(small.scale(width=64, depth=2), base=small)
    (role, _), = block.sublayers()
    got = {key: (rules.init[f"layers.1.{role}.op.{key}"], rules.rates[f"layers.1.{role}.op.{key}"]) for key in expected}
    assert got == {key: pytest.approx(value) for key, value in expected.items()}


@pytest.mark.parametrize("residual", [ValueResidual(), CrossLayerKV(every=2), HyperConnections()])
@pytest.mark.parametrize("pattern", ["stack", "stretch"])
def test_residual_topologies_have_rules_for_all_they_hold(residual, pattern):
    small = architecture(Stack(layers=(ATTENTION, ATTENTION), residual=residual))
    rules = mup(small.scale(width=64, depth=4, pattern=pattern), base=small)
    assert set(rules.init) == set(rules.rates) == set(rules.architecture.parameters)
    assert rules.depth == 2 and rules.rates["layers.0.layers.3.mixer.op.out.weight"] == pytest.approx(1 / 4)
    if isinstance(residual, HyperConnections):
        assert (rules.rates["layers.0.mix_by_token"], rules.rates["layers.0.mix"]) == (1 / 2, 1)


@pytest.mark.parametrize("pattern", ["stack", "stretch"])
def test_layers_find_their_own_twin(pattern):
    """Hidden sizes 2 and 4 times the width: the ratio of inputs is 2 everywhere only for the right twin."""
    thin, thick = (bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=ratio)) for ratio in (2, 4))
    small = architecture(thin, thick)
    rules = mup(small.scale(width=64, depth=4, pattern=pattern), base=small)
    q = 1 / math.sqrt(2)
    assert {round(rules.rates[f"layers.{i}.channel.op.down.weight"], 9) for i in range(4)} == {round(q * q / 2, 9)}


def test_a_base_of_another_kind_is_named():
    with pytest.raises(ValueError, match=r"same kinds.*at layers.0.mixer.op: got Attention\(.*Mamba2\(.*architecture.scale"):
        mup(architecture(ATTENTION), base=architecture(bp.Block(mixer=bp.Mamba2(state=16, head_dim=32), channel=bp.SwiGLU())))
    with pytest.raises(ValueError, match="differs in width and depth alone at head: got"):
        mup(architecture(tied=False), base=architecture())


def test_initialise_gives_the_values_of_build_whatever_the_module_held():
    small = architecture()
    rules = mup(small.scale(width=64, depth=4), base=small)
    model = rules.architecture.build(seed=9)
    rules.initialise(model, seed=1)
    rules.initialise(model, seed=2)
    expected = rules.build(seed=2).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_measured_statistics_have_no_rules():
    small = architecture(bp.Block(mixer=MobileConv()))
    rules = mup(small.scale(width=64), base=small)
    trained = {name for name, declared in rules.architecture.parameters.items() if not declared.statistic}
    assert set(rules.rates) == set(rules.init) == trained < set(rules.architecture.parameters)


def test_the_trainer_takes_the_rates():
    """The first step of Adam moves every entry with a gradient by the learning rate: what moves shows the rate."""
    small = architecture(ATTENTION, embed_vocab=256)
    rules = mup(small.scale(width=128, depth=2), base=small)
    model = rules.build(seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bp.train(model, bp.tasks.text(length=16, batch=2, held_out_batches=1), steps=1, lr=1e-3, warmup=0.0, weight_decay=0.0,
             rates=rules.rates, clip=None)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 * rules.rates[name], rel=0.01), name


# -- what the rules are for ---------------------------------------------------------------------------------

def adam(model, lr, rates):
    groups = [{"params": [p], "lr": lr * rates.get(name, 1.0)} for name, p in model.named_parameters()]
    return torch.optim.Adam(groups, betas=(0.9, 0.95))


def outputs(model, ids):
    """What every operator makes of `ids`, by prefix."""
    found = {}
    hooks = [module.register_forward_hook(lambda _, __, y, name=name: found.__setitem__(name, y.detach()))
             for name, module in model.named_modules() if name == "embed" or name.endswith(".op")]
    with torch.no_grad():
        found["logits"] = model(ids)
    for hook in hooks:
        hook.remove()
    return found


def moved(model, rates, lr=0.003, steps=2):
    """Root mean square change of every operator's output over a few steps of Adam on random tokens."""
    ids = torch.randint(64, (4, 25), generator=torch.Generator().manual_seed(0))
    before, optimizer = outputs(model, ids[:, :-1]), adam(model, lr, rates)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = outputs(model, ids[:, :-1])
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def slope(sizes, values):
    """The exponent of a power law through the points."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, values))
    return ((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()


@pytest.mark.parametrize("tied", [True, False])
def test_activations_move_alike_at_every_width_and_only_under_the_rules(tied):
    """The coordinate check of Tensor Programs V, widths 32 to 256: the exponents of what a few steps change."""
    widths, small = (32, 64, 128, 256), architecture(tied=tied)
    rules = [mup(small.scale(width=width), base=small) for width in widths]
    ours = [moved(r.build(seed=0), r.rates) for r in rules]
    usual = [moved(r.architecture.build(seed=0), {}) for r in rules]
    for name in ours[0]:
        now, before = slope(widths, [m[name] for m in ours]), slope(widths, [m[name] for m in usual])
        assert before > 0.3, (name, before)                          # in the usual parametrisation steps grow
        if name != "logits":
            assert -0.15 < now < 0.1, (name, now)
        else:
            assert now < 0.1                                         # starting logits vanish, as they should


def test_the_stream_moves_alike_at_every_depth_and_only_under_the_rules():
    depths, small = (2, 4, 8, 16), architecture(ATTENTION, ATTENTION)

    def last_stream(model, rates):
        found = []
        model.norm.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].detach()))
        moved(model, rates, lr=0.01, steps=3)
        return (found[-1] - found[0]).square().mean().sqrt().item()

    rules = [mup(small.scale(depth=depth), base=small) for depth in depths]
    ours = slope(depths, [last_stream(r.build(seed=0), r.rates) for r in rules])
    usual = slope(depths, [last_stream(r.architecture.build(seed=0), {}) for r in rules])
    assert abs(ours) < 0.2 and usual > ours + 0.2, (ours, usual)


def test_a_multiplier_of_depth_in_the_sum_and_one_folded_into_weights_train_alike():
    """a = sqrt(L) of the base, so that the base is the plain stream; Adam with an epsilon that does not matter."""
    def rules(residual):
        small = architecture(Stack((ATTENTION,) * 2, residual), width=16)
        return mup(small.scale(depth=8), base=small)

    def trained(rule):
        model = rule.build(seed=3).double()
        ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
        groups = [{"params": [p], "lr": 1e-3 * rule.rates[name]} for name, p in model.named_parameters()]
        optimizer = torch.optim.Adam(groups, eps=1e-30)
        found = [model(ids)]
        for _ in range(4):
            loss = torch.nn.functional.cross_entropy(found[-1][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(model(ids))
        return torch.stack(found)

    folded, explicit = rules(bp.Residual()), rules(bp.DepthScale(a=2.0))
    name = "layers.0.layers.5.channel.op.down.weight"
    assert (folded.init[name], explicit.init[name], folded.depth) == (0.5, 1.0, 4)
    assert (folded.rates[name], explicit.rates[name]) == (0.25, 0.5)
    torch.testing.assert_close(trained(explicit), trained(folded), rtol=1e-9, atol=1e-9)


def test_a_stream_with_the_multiplier_of_depth_moves_alike_at_every_depth():
    depths, small = (2, 4, 8, 16), architecture(Stack((ATTENTION,) * 2, bp.DepthScale(a=2.0)))

    def moves(rule, rates):
        found, model = [], rule.build(seed=0)
        model.norm.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].detach()))
        moved(model, rates, lr=0.01, steps=3)
        return (found[-1] - found[0]).square().mean().sqrt().item()

    rules = [mup(small.scale(depth=depth), base=small) for depth in depths]
    ours, at_one_rate = (slope(depths, [moves(r, r.rates if kept else {}) for r in rules]) for kept in (True, False))
    assert abs(ours) < 0.2 and at_one_rate > ours + 0.1, (ours, at_one_rate)


@pytest.mark.slow
@pytest.mark.parametrize("grown", [{"width": 128}, {"depth": 8}])
def test_the_best_rate_found_small_is_the_best_rate_large(grown):
    """Over a grid of factors of two on real text: within one step under the rules, for width and for depth."""
    task = bp.tasks.text(length=32, batch=8, held_out_batches=2)
    small = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, body=(ATTENTION,) * 2,
                     head=bp.LanguageHead(tied=True)).sample(0)
    grid = [2.0 ** exponent for exponent in range(-9, -3)]

    def best(rules):
        losses = [_trained(rules, task, lr) for lr in grid]
        return losses.index(min(losses))

    assert abs(best(mup(small.scale(**grown), base=small)) - best(mup(small, base=small))) <= 1


def _trained(rules, task, lr, steps=60):
    """Mean loss of the last quarter of a short training with a linear warm-up and decay."""
    model, losses = rules.build(seed=0), []
    optimizer = adam(model, lr, rules.rates)
    peak = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        batch = task.batch("train", step, 0)
        loss = torch.nn.functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * min(1, (step + 1) / 5) * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-steps // 4:]) / len(losses[-steps // 4:])


def test_the_multiplier_of_a_branch_goes_into_the_norm_after_its_operator():
    block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2), placement="peri")
    small = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=True), body=(block,)).sample(0)
    rules = bp.mup(small.scale(depth=4), base=small)
    assert rules.unfolded == ()
    assert rules.init["layers.2.mixer.out_norm.weight"] == rules.init["layers.2.channel.out_norm.weight"] == 0.5
    assert rules.init["layers.2.mixer.op.out.weight"] == 1.0
