"""Placed norms, joins and residual topologies: what each equals, and what is refused."""

import math
import random

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.space.macros.residual_groups import group_ends
from bodyplan.space.macros.stack import Stack
from example_macros import shaken

LAYER = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2))


def architecture(body, width=16, norm=None, **more):
    return bp.Space(embed=bp.TokenEmbedding(vocab=32), width=width, head=bp.LanguageHead(tied=True),
                    norm=norm or bp.RMSNorm(), body=body, **more).sample(0)


def run(model, x):
    """The body alone, in float64."""
    return model.double().run(x)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_weights(model, other):
    """`other` with the weights of `model` wherever it has them."""
    held = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in held:
                parameter.copy_(held[name])
    return other


# -- where the norm stands ---------------------------------------------------------------------------------------------

def rms(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


FORMULAS = {"pre": lambda x, f: x + f(rms(x)), "post": lambda x, f: rms(x + f(x)),
            "peri": lambda x, f: x + rms(f(rms(x))), "out": lambda x, f: x + rms(f(x))}


class Times(torch.nn.Module):
    """A linear map."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def forward(self, x):
        return F.linear(x, self.weight)


@pytest.mark.parametrize("placement", FORMULAS)
@pytest.mark.parametrize("length", [1, 63])
def test_a_norm_stands_where_its_placement_says(placement, length):
    model = architecture(bp.Block(channel=bp.Custom(Times), placement=placement), width=24).build(seed=1)
    weight, x = model.layers[0].channel.op.weight, drawn(2, length, 24)
    ours = run(model, x)
    torch.testing.assert_close(ours, FORMULAS[placement](x, lambda y: F.linear(y, weight)))


def test_scales_of_the_input_and_of_the_sum_are_those_that_are_asked_for():
    block = bp.Block(channel=bp.Custom(Times), input_scale=0.25, join=bp.Add(skip=2.0, branch=-0.5))
    model, x = architecture(block).build(seed=1), drawn(2, 9, 16)
    ours = run(model, x)
    torch.testing.assert_close(ours, 2 * x - 0.5 * F.linear(0.25 * rms(x), model.layers[0].channel.op.weight))


def test_a_block_that_names_the_usual_is_the_usual_block():
    named = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2), placement="pre", join=bp.Add(), input_scale=1)
    assert architecture(named).hash == architecture(LAYER).hash
    assert list(architecture(named).parameters) == list(architecture(LAYER).parameters)


def test_placements_joins_and_scales_tell_networks_apart():
    options = [{}, *({"placement": p} for p in ("post", "peri", "out")), {"join": bp.LayerScale()},
               {"join": bp.Add(skip=2.0)}, {"input_scale": 0.5}]
    found = {architecture(bp.Block(mixer=bp.Attention(heads=2), **option)).hash for option in options}
    assert len(found) == len(options)


def test_a_supernet_shares_operators_between_placements_and_keeps_the_second_norm_apart():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=True), body=bp.Block(
        mixer=bp.Attention(heads=2), placement=bp.choice("pre", "peri")))
    seen = [dict(space.sample(random.Random(seed)).weight_addresses) for seed in range(8)]
    pre, peri = min(seen, key=len), max(seen, key=len)
    assert set(peri) - set(pre) == {"layers.0.mixer.out_norm.weight"}
    assert all(peri[name] == address for name, address in pre.items())
    assert len(set(peri.values())) == len(peri)


@pytest.mark.parametrize(("options", "words"), [
    ({"placement": "sandwich"}, "placement is one of pre, post, peri, out at body.placement"),
    ({"placement": bp.choice("pre", "before")}, r"placement is one of .* at body.placement.1: got 'before'"),
    ({"input_scale": 0}, "input_scale is a positive number"),
    ({"join": bp.RMSNorm()}, "join must be an operator of kind join"),
    ({"join": bp.LayerScale}, "join must be an operator at body.join: got the class LayerScale"),
    ({"norm": bp.LayerScale()}, "norm must be an operator of kind norm")])
def test_what_a_block_cannot_be_is_refused(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        architecture(bp.Block(mixer=bp.Attention(heads=2), **options))


# -- numbers from the depth --------------------------------------------------------------------------------------------

def test_norm_scaling_divides_what_block_l_reads_by_the_root_of_l():
    plan = architecture(Stack((LAYER,) * 5, bp.NormScaling())).plan
    scales = [item.input_scale for item in plan.layers[0].items(16)]
    assert scales == pytest.approx([1, 2 ** -0.5, 3 ** -0.5, 0.5, 5 ** -0.5])


def test_the_first_block_of_a_scaled_stack_is_the_usual_block():
    assert architecture(Stack((LAYER,), bp.NormScaling())).hash == architecture(LAYER).hash


def test_deep_norm_counts_the_stream_alpha_times_and_starts_values_beta_smaller():
    found = architecture(Stack((LAYER,) * 8, bp.DeepNorm()))
    for item in found.plan.layers[0].items(16):
        assert item.placement == "post" and item.join == bp.Add(skip=2.0)                # (2 * 8) ** (1 / 4)
    init = bp.deepnorm(found).init
    square, wide = init["layers.0.layers.0.mixer.op.value.weight"], init["layers.0.layers.7.channel.op.up.weight"]
    assert square == pytest.approx(64 ** -0.25)
    assert wide == pytest.approx(64 ** -0.25 * math.sqrt(2 * 16 / (16 + 32)))
    assert init["layers.0.layers.0.mixer.op.query.weight"] == 1.0
    usual, ours = found.build(3), bp.deepnorm(found).build(3)
    name = "layers.0.layers.2.mixer.op.out.weight"
    torch.testing.assert_close(dict(ours.named_parameters())[name], dict(usual.named_parameters())[name] * square)


@pytest.mark.parametrize(("residual", "alpha", "beta"), [
    (bp.DeepNorm(decoder_layers=6), 0.81 * (18 ** 4 * 6) ** (1 / 16), 0.87 * (18 ** 4 * 6) ** (-1 / 16)),
    (bp.DeepNorm(encoder_layers=6), (3 * 18) ** 0.25, (12 * 18) ** -0.25)])
def test_deep_norm_knows_encoders_with_decoders(residual, alpha, beta):
    assert residual.alpha(18) == pytest.approx(alpha) and residual.beta(18) == pytest.approx(beta)


def test_deep_scale_keeps_the_sum_of_squares_at_one():
    for depth in (1, 2, 12, 1000):
        skip, branch = bp.DeepScale().scales(depth)
        assert skip ** 2 + branch ** 2 == pytest.approx(1)
    assert bp.DeepScale().scales(100)[1] ** 2 == pytest.approx(2 / 100)


def test_the_predicted_variance_is_that_of_the_network_at_its_start():
    from bodyplan.space.scaling.starts import Start

    for residual in (bp.Residual(), bp.DeepScale(), bp.NormScaling()):
        found = architecture(Stack((bp.Block(mixer=bp.Attention(heads=4), channel=bp.MLP(ratio=4)),) * 6, residual), width=96)
        start = bp.deepscale(found) if isinstance(residual, bp.DeepScale) else Start(found, {})
        predicted = [moment.stream for moment in bp.signal_propagation(found, dict(start.init))]
        measured = [[] for _ in range(6)]
        for seed in range(4):
            model = start.build(seed)
            for index, layer in enumerate(model.layers[0].layers):
                layer.register_forward_hook(
                    lambda _, __, y, found=measured[index]: found.append(y.detach().square().mean().item()))
            model(torch.arange(32)[:, None].expand(32, 6))                                 # tokens that are all alike
        means = [sum(values) / len(values) for values in measured]
        assert means == pytest.approx(predicted[1::2], rel=0.2)


def test_deep_scale_starts_with_a_variance_of_one_at_any_depth():
    for depth in (4, 40):
        found = architecture(Stack((LAYER,) * depth, bp.DeepScale()))
        moments = bp.signal_propagation(found, dict(bp.deepscale(found).init))
        assert all(moment.stream == pytest.approx(1, rel=1e-6) for moment in moments)
    plain = architecture((LAYER,) * 40)
    assert bp.signal_propagation(plain)[-1].stream > 40


def test_the_moments_of_activations_are_those_of_a_normal_sample():
    from bodyplan.space.scaling.moments import activation_square

    z = 1.7 * drawn(400_000)
    for name, function in (("gelu", F.gelu), ("silu", F.silu), ("squared_relu", lambda x: F.relu(x).square()), ("abs", abs),
                           ("sine", lambda x: torch.sin(math.sqrt(2) * x))):
        assert activation_square(name, 1.7) == pytest.approx(float(function(z).square().mean()), rel=0.02)


def test_starting_values_that_belong_to_another_body_are_refused():
    with pytest.raises(ValueError, match="use Stack"):
        bp.deepnorm(architecture(LAYER))
    with pytest.raises(ValueError, match="moments are known of"):
        bp.signal_propagation(architecture(bp.Block(mixer=bp.ShortConv())))
    with pytest.raises(ValueError, match="correlation"):
        bp.deepscale(architecture(LAYER), correlation=0.0)


def test_depth_scale_divides_branches_by_the_root_of_their_number():
    items = architecture(Stack((LAYER, bp.Block(mixer=bp.Attention(heads=2))), bp.DepthScale(a=3.0))).plan.layers[0].items(16)
    assert {item.join.branch for item in items} == {3 / math.sqrt(3)}


# -- what earlier layers gave ------------------------------------------------------------------------------------------

STARTS = [bp.DenseAverage(), bp.DenseAverage(dilation=2), bp.DenseAverage(dilation=3, period=2), bp.DeepCrossAttention(),
          bp.DeepCrossAttention(keep_last=1), bp.DeepCrossAttention(2, separate=True), bp.DeepCrossAttention(separate=True),
          bp.PathEnsemble(), bp.PathEnsemble(per_channel=False), bp.FeatureAverage(),
          bp.DualStream(channel_reads="both")]


@pytest.mark.parametrize("residual", STARTS, ids=repr)
def test_at_its_start_a_topology_is_the_plain_stream(residual):
    plain = architecture(Stack((LAYER,) * 5)).build(2)
    other = same_weights(plain, architecture(Stack((LAYER,) * 5, residual)).build(2))
    x = drawn(2, 9, 16)
    torch.testing.assert_close(run(other, x), run(plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (2, 2), (3, 2), (1, 3)])
def test_a_dilated_average_takes_every_so_many_outputs_after_every_so_many_layers(dilation, period):
    model = shaken(architecture(Stack((LAYER,) * 6, bp.DenseAverage(dilation, period))).build(2)).double()
    stack, x, at = model.layers[0], drawn(1, 5, 16), 0
    ours, history = stack(x), [x]
    for i in range(1, 7):
        history.append(stack.layers[i - 1](x))
        x = history[-1]
        if i % period == 0:
            for j in range(i % dilation, i + 1, dilation):
                x = x + stack.weights[at] * history[j]
                at += 1
    assert at == len(stack.weights)
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("keep", [None, 1, 2])
def test_deep_cross_attention_weighs_every_earlier_output_per_channel_and_token(keep):
    model = shaken(architecture(Stack((LAYER,) * 3, bp.DeepCrossAttention(keep))).build(2)).double()
    stack, x, row = model.layers[0], drawn(2, 7, 16), 0
    units = [part for layer in stack.layers for part in (layer.mixer, layer.channel)]
    ours, outputs = stack(x), [x]
    for k in range(len(units) + 1):
        entries = outputs
        if keep is not None and len(outputs) > keep + 2:
            entries = [outputs[0], sum(outputs[1:-keep]), *outputs[-keep:]]
        read = sum((stack.bias[row + j] + torch.relu(g @ stack.weight[k])[..., None]) * g for j, g in enumerate(entries))
        row += len(entries)
        if k < len(units):
            outputs.append(units[k].branch(read))
    assert row == len(stack.bias)
    torch.testing.assert_close(ours, read)


def looped_attention(mixer, x_q, x_k, x_v):
    """Two heads of eight, causal, with rotary positions, token by token."""
    def placed(z_TP):
        angle = torch.outer(torch.arange(len(z_TP)).double(), 10000.0 ** (-torch.arange(4).double() / 4))
        a, b = z_TP.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    rows = []
    for q_TD, k_TD, v_TD in zip(x_q, x_k, x_v, strict=True):
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            q, k = placed(q_TD @ mixer.query.weight[part].T), placed(k_TD @ mixer.key.weight[part].T)
            v = v_TD @ mixer.value.weight[part].T
            heads.append(torch.stack([torch.softmax(k[:t + 1] @ q[t] / math.sqrt(8), 0) @ v[:t + 1] for t in range(len(q))]))
        rows.append(torch.cat(heads, -1) @ mixer.out.weight.T)
    return torch.stack(rows)


@pytest.mark.parametrize("keep", [None, 1, 2])
def test_deep_cross_attention_gives_queries_keys_and_values_combinations_of_their_own(keep):
    model = shaken(architecture(Stack((LAYER,) * 3, bp.DeepCrossAttention(keep, separate=True))).build(2)).double()
    stack, x = model.layers[0], drawn(2, 7, 16).requires_grad_()
    outputs, rows = [x], {"": 0, "key_": 0, "value_": 0}

    def read(name, number):
        entries = outputs
        if keep is not None and len(outputs) > keep + 2:
            entries = [outputs[0], sum(outputs[1:-keep]), *outputs[-keep:]]
        weight, bias, start = getattr(stack, f"{name}weight")[number], getattr(stack, f"{name}bias"), rows[name]
        rows[name] += len(entries)
        return sum((bias[start + j] + torch.relu(g @ weight)[..., None]) * g for j, g in enumerate(entries))

    for number, layer in enumerate(stack.layers):
        streams = (layer.mixer.norm(read(name, at)) for name, at in (("", 2 * number), ("key_", number), ("value_", number)))
        outputs.append(looped_attention(layer.mixer.op, *streams))
        outputs.append(layer.channel.branch(read("", 2 * number + 1)))
    wanted = read("", 6)
    assert [rows["key_"], rows["value_"], rows[""]] == [len(stack.key_bias), len(stack.value_bias), len(stack.bias)]
    ours, direction = stack(x), drawn(2, 7, 16, seed=1)
    torch.testing.assert_close(ours, wanted)
    held = [x, *stack.parameters()]
    gradients = (torch.autograd.grad(y, held, direction) for y in (ours, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_deep_cross_attention_with_three_equal_combinations_has_one():
    one = shaken(architecture(Stack((LAYER,) * 3, bp.DeepCrossAttention(2))).build(2)).double()
    three = same_weights(one, architecture(Stack((LAYER,) * 3, bp.DeepCrossAttention(2, separate=True))).build(2).double())
    stack, x = three.layers[0], drawn(2, 9, 16)
    with torch.no_grad():
        rows = [min(k + 1, 4) for k in range(7)]
        own = [sum(rows[:k]) + j for k in range(0, 6, 2) for j in range(rows[k])]
        for name in ("key", "value"):
            getattr(stack, f"{name}_weight").copy_(stack.weight[0:6:2])
            getattr(stack, f"{name}_bias").copy_(stack.bias[own])
        torch.testing.assert_close(stack(x), one.layers[0](x))
        stack.value_bias[-1].zero_()
        assert not torch.allclose(stack(x), one.layers[0](x))


def test_deep_cross_attention_serves_attention_both_ways_on_grids():
    layer = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True), channel=bp.MLP(ratio=2))
    model = shaken(architecture(Stack((layer,) * 2, bp.DeepCrossAttention(separate=True))).build(2)).double()
    stack, x = model.layers[0], drawn(2, 3, 4, 16)
    torch.testing.assert_close(stack(x), stack(x.flatten(1, 2)).view(2, 3, 4, 16))
    assert not torch.equal(stack(x)[:, 0], stack(torch.cat([x[:, :1], x[:, 1:] * 2], 1))[:, 0])


@pytest.mark.parametrize("layer", [
    bp.Block(mixer=bp.ShortConv(), channel=bp.MLP(ratio=1)), bp.Block(mixer=bp.Attention(heads=2)),
    bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1), placement="peri")])
def test_separate_combinations_refuse_layers_without_the_three_inputs(layer):
    with pytest.raises(ValueError, match="separate combinations are for plain blocks"):
        architecture(Stack((LAYER, layer), bp.DeepCrossAttention(separate=True)))


def test_separate_inputs_refuse_options_they_cannot_serve_and_a_plain_stream():
    with pytest.raises(ValueError, match="separate inputs go with plain softmax attention"):
        architecture(Stack((bp.Block(mixer=bp.Attention(heads=2, sink=True), channel=bp.MLP()),),
                           bp.DeepCrossAttention(separate=True)))
    with pytest.raises(ValueError, match="separate needs streams for queries, keys and values, 48 channels: got 16"):
        bp.Attention(heads=2, separate=True).build(16)(torch.zeros(1, 3, 16))


def test_an_average_of_features_weighs_what_every_token_and_channel_mixer_gave():
    block = bp.Block(mixer=bp.Mamba(state=2), channel=bp.SelectiveChannelMixer(size=4, state=2))
    model = shaken(architecture(Stack((block,) * 3, bp.FeatureAverage())).build(2)).double()
    stack, x = model.layers[0], drawn(2, 7, 16)
    weights, given = list(stack.weights), [x]
    for layer in stack.layers:
        for mixer in (layer.mixer, layer.channel):
            row = [weights.pop(0) for _ in given]
            given.append(mixer.op(mixer.norm(sum(w * g for w, g in zip(row, given, strict=True)))))
    assert len(weights) == len(given) == 7
    torch.testing.assert_close(stack(x), sum(w * g for w, g in zip(weights, given, strict=True)))


def test_an_ensemble_with_one_path_left_gives_that_path():
    model = architecture(Stack((LAYER,) * 2, bp.PathEnsemble(per_channel=False))).build(2).double()
    stack, x = model.layers[0], drawn(1, 5, 16)
    streams = [x]
    for layer in stack.layers:
        for part in (layer.mixer, layer.channel):
            streams.append(part(streams[-1]))
    for path in range(1, 5):
        stack.path_scale.data = F.one_hot(torch.tensor(path), 5).double()
        torch.testing.assert_close(stack(x), streams[path] - streams[path - 1])
    stack.path_scale.data = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).double()
    torch.testing.assert_close(stack(x), streams[2])                           # longer paths pruned: the shorter network


def test_dual_streams_are_written_by_one_role_each():
    model = architecture(Stack((LAYER,) * 2, bp.DualStream("token", "context"))).build(2).double()
    stack, x = model.layers[0], drawn(1, 5, 16)
    token, context = x, torch.zeros_like(x)
    for layer in stack.layers:
        token = layer.mixer(token)
        context = layer.channel(context)
    torch.testing.assert_close(stack(x), token + context)


def test_groups_are_even_and_their_last_streams_are_fused():
    assert group_ends(6, 3) == [1, 3, 5] and group_ends(7, 3) == [2, 4, 6] and group_ends(2, 2) == [0, 1]
    model = shaken(architecture(Stack((LAYER,) * 4, bp.GroupFusion(2))).build(2)).double()
    stack, x = model.layers[0], drawn(1, 5, 16)
    first = stack.layers[1](stack.layers[0](x))
    last = stack.layers[3](stack.layers[2](first))
    wanted = stack.gain[0] * F.layer_norm(first, (16,)) + stack.gain[1] * F.layer_norm(last, (16,))
    torch.testing.assert_close(stack(x), wanted)


def test_a_dense_group_grows_by_what_its_layers_give_and_starts_small():
    group = bp.DenseGroup((bp.Block(mixer=bp.ShortConv()), bp.Block(channel=bp.MLP(ratio=1)), LAYER), growth=8, scale=0.5)
    found = architecture(group)
    assert [place.width for place in found.placed if place.name.endswith(".op")] == [16, 24, 32, 32]
    module, x = found.build(1).double().layers[0], drawn(1, 5, 16)
    y, features = None, x
    for i, layer in enumerate(module.layers):
        y = layer(features)
        if i < 2:
            features = torch.cat([features, F.leaky_relu(module.fuse[i](y), 0.2)], -1)
    torch.testing.assert_close(module(x), x + 0.5 * module.last(y))
    module.last.weight.data.zero_()
    assert torch.equal(module(x), x)


@pytest.mark.parametrize(("residual", "words"), [
    (bp.DenseAverage(dilation=0), "dilation is 1 or more"), (bp.DeepCrossAttention(0), "keep_last is 1 or more"),
    (bp.DeepCrossAttention(separate=2), "separate is True or False"),
    (bp.DualStream("neither"), "mixer_reads is one of"), (bp.GroupFusion(0), "groups is 1 or more"),
    (bp.DeepScale(k=-1), "k is a positive number"), (bp.DepthScale(a=math.inf), "a is a number"),
    (bp.DeepNorm(3, 3), "a stack is the encoder or the decoder")])
def test_bad_numbers_of_a_topology_are_refused(residual, words):
    with pytest.raises(ValueError, match=words):
        architecture(Stack((LAYER,), residual))


def test_a_sweep_of_topologies_draws_every_one_of_them():
    import xml.etree.ElementTree as tree

    for residual in (*STARTS, bp.GroupFusion(), bp.DeepNorm(), bp.NormScaling()):
        tree.fromstring(architecture(Stack((LAYER,) * 3, residual)).draw("svg"))
        assert architecture(Stack((LAYER,) * 3, residual)).graph.number_of_nodes() > 10


# -- trained networks as others that compute the same ------------------------------------------------------------------

def trained(norm, layers=(LAYER, LAYER), steps=6, **more):
    """A toy model, trained a little on a copying task."""
    body = tuple(bp.Block(mixer=layer.mixer, channel=layer.channel, norm=norm) for layer in layers)
    model = architecture(body, norm=norm, **more).build(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(32, (8, 12), generator=generator)
        loss = F.cross_entropy(model(ids)[:, 1:].flatten(0, 1), ids[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


IDS = torch.randint(32, (3, 11), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("recursion", [bp.Once(), bp.Loop(2)])
def test_a_trained_pre_ln_network_is_a_pre_rms_norm_network(recursion):
    model = trained(bp.LayerNorm(), recursion=recursion)
    ours = bp.recentred(model)
    torch.testing.assert_close(ours(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    assert all(not op.project for _, op in ours.architecture.modules if isinstance(op, bp.LayerNorm))
    stream = ours.run(ours.embed(IDS))
    assert stream.mean(-1).abs().max() < 1e-5 < model.run(model.embed(IDS)).mean(-1).abs().max()


def test_a_trained_pre_ln_network_is_a_narrower_pre_crms_norm_network():
    model = trained(bp.LayerNorm(bias=False), layers=(LAYER, bp.Block(mixer=bp.Attention(heads=4, kv_heads=2, head_dim=6),
                                                                      channel=bp.SwiGLU(ratio=2))))
    ours = bp.compressed(model)
    torch.testing.assert_close(ours(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    assert ours.architecture.plan.width == 15
    widths = {place.width for place in ours.architecture.placed}
    assert widths == {15}


@pytest.mark.parametrize("head", [bp.ClassifierHead(classes=3), bp.ClassifierHead(classes=3, hidden=8)])
def test_a_pre_ln_vision_transformer_is_both_as_well(head):
    layer = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), channel=bp.MLP(ratio=2),
                     norm=bp.LayerNorm(bias=False))
    model = bp.Space(embed=bp.PatchEmbedding(patch=4, channels=3, image=12), width=16, norm=bp.LayerNorm(bias=False),
                     body=(layer, layer), head=head).sample(0).build(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    pixels = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    for ours, width in ((bp.recentred(model), 16), (bp.compressed(model), 15)):
        torch.testing.assert_close(ours(pixels), model(pixels), rtol=1e-3, atol=1e-4)
        assert ours.architecture.plan.width == width and ours(pixels).std() > 0.01


def test_a_network_whose_annealing_is_over_folds_into_scales_and_shifts():
    model = trained(bp.PRepBN(steps=4), steps=6)
    ours = bp.folded(model)
    torch.testing.assert_close(ours(IDS), model(IDS), rtol=1e-4, atol=1e-4)
    assert {type(op).__name__ for _, op in ours.architecture.modules if op.kind == "norm"} == {"Affine"}
    norm, linear = ours.layers[0].channel.norm, ours.layers[0].channel.op.up
    x = drawn(2, 5, 16)
    alone = bp.folded_into(norm, linear).double()(x)
    torch.testing.assert_close(alone, linear.double()(norm.double()(x)), rtol=1e-5, atol=1e-6)


def test_a_network_of_linear_attention_keeps_its_scores_when_its_norms_are_folded():
    layer = bp.presets.slab.layer(2, 4, 7)
    model = bp.Space(embed=bp.PatchEmbedding(4, 1, 28, grid=True, position=True), width=16, body=(layer,) * 2,
                     head=bp.ClassifierHead(3), norm=bp.PRepBN(4)).sample(0).build(0)
    pixels = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        model(pixels).square().mean().backward()
        optimizer.step()
    ours = bp.folded(model.eval())
    torch.testing.assert_close(ours(pixels), model(pixels), rtol=1e-4, atol=1e-4)
    assert {type(op).__name__ for _, op in ours.architecture.modules if op.kind == "norm"} == {"Affine"}


@pytest.mark.parametrize(("convert", "model", "words"), [
    (bp.folded, lambda: trained(bp.PRepBN(steps=40), steps=2), "its annealing is over"),
    (bp.recentred, lambda: trained(bp.RMSNorm(), steps=1), "has layer norms everywhere"),
    (bp.compressed, lambda: trained(bp.LayerNorm(), steps=1), "a shift does not fit"),
    (bp.recentred, lambda: architecture(Stack((LAYER,)), norm=bp.LayerNorm()).build(), "the body is made of blocks"),
    (bp.recentred, lambda: torch.nn.Linear(2, 2), "was not built from an architecture"),
    (bp.recentred, lambda: architecture(bp.Block(channel=bp.Custom(Times), norm=bp.LayerNorm()), norm=bp.LayerNorm()).build(),
     "got outputs that differ"),
    (bp.recentred, lambda: architecture(bp.Block(channel=bp.MLP(), norm=bp.LayerNorm(), join=bp.LayerScale()),
                                        norm=bp.LayerNorm()).build(), "adds what a sublayer gives")])
def test_what_has_no_equivalent_is_refused(convert, model, words):
    with pytest.raises(ValueError, match=words):
        convert(model())


def test_only_a_linear_norm_folds_into_a_linear_map():
    with pytest.raises(TypeError, match="only a scale and a shift"):
        bp.folded_into(bp.RMSNorm().build(8), torch.nn.Linear(8, 8))


def test_spectral_norms_of_a_trained_network_fold_into_its_matrices():
    plain = bp.Block(mixer=bp.Spectral(bp.Attention(heads=2)), channel=bp.Spectral(bp.MLP(ratio=2), iterations=3))
    model = trained(bp.RMSNorm(), layers=(plain, plain))
    ours = bp.folded(model)
    torch.testing.assert_close(ours(IDS), model(IDS), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(op, bp.Spectral) for _, op in ours.architecture.modules)


# -- values, class tokens, sub-norms -----------------------------------------------------------------------------------

def test_half_and_half_is_the_learnable_mixture_at_its_start():
    found = [architecture(Stack((LAYER,) * 3, bp.ValueResidual(mode))).build(2) for mode in ("learnable", "identity")]
    x = drawn(2, 9, 16)
    torch.testing.assert_close(run(same_weights(found[0], found[1]), x), run(found[0], x))
    assert not any(name.endswith("mix") for name, _ in found[1].named_parameters())


def test_a_single_layer_of_values_is_computed_and_cached_once():
    many, one = (architecture(Stack((LAYER,) * 4, residual)) for residual in (bp.Residual(), bp.ValueResidual("single")))
    assert sum(name.endswith("value.weight") for name in one.parameters) == 1
    assert one.cost(100).state_bytes == many.cost(100).state_bytes * 5 // 8                  # 4 layers of keys, 1 of values
    model = one.build(2).double()
    layers, x = model.layers[0].layers, drawn(1, 7, 16)
    shared = {}
    layers[0].mixer.branch(x, shared)
    attention, normed = layers[1].mixer.op, layers[1].mixer.norm(x)
    usual = bp.Attention(heads=2).build(16).double()
    weights = {name: p for name, p in attention.named_parameters()} | {"value.weight": layers[0].mixer.op.value.weight}
    usual.load_state_dict(weights)
    wanted = torch.func.functional_call(usual, {}, (layers[0].mixer.norm(x),))
    assert torch.equal(normed, layers[0].mixer.norm(x))                                     # gains of both start at one
    torch.testing.assert_close(attention(normed, shared), wanted)


def test_a_sparse_value_residual_reaches_the_last_layers_alone():
    items = architecture(Stack((LAYER,) * 5, bp.ValueResidual(last=2))).plan.layers[0].items(16)
    assert [bool(item.mixer.value_residual) for item in items] == [False, False, False, True, True]


@pytest.mark.parametrize(("residual", "words"), [(bp.ValueResidual("mean"), "mode is one of learnable, identity, single"),
                                                 (bp.ValueResidual(last=0), "last is 1 or more")])
def test_bad_options_of_value_residuals_are_refused(residual, words):
    with pytest.raises(ValueError, match=words):
        architecture(Stack((LAYER,), residual))


def test_a_class_token_reads_the_patches_and_leaves_them_alone():
    found = bp.ClassAttention(depth=2, heads=2, init=1.0)
    module, x = found.build(16).double(), drawn(3, 10, 16)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(0.3 * drawn(*p.shape, seed=len(name)))
    token = module.token.expand(3, 1, 16)
    for layer in module.layers:
        u = layer.norm(torch.cat([token, x], 1))
        q, k, v = (part(u).view(3, 11, 2, 8) for part in (layer.query, layer.key, layer.value))
        scores = torch.einsum("bhp,bshp->bhs", q[:, 0], k) / math.sqrt(8)
        y = torch.einsum("bhs,bshp->bhp", scores.softmax(-1), v).flatten(1)[:, None]
        token = token + layer.scale * layer.out(y)
        token = token + layer.channel_scale * layer.channel(layer.channel_norm(token))
    torch.testing.assert_close(module(x), token)
    assert torch.equal(module(x.view(3, 2, 5, 16)), module(x))                              # a grid is its patches
    torch.testing.assert_close(module(x.flip(1)), module(x))


def test_class_layers_that_start_small_pass_the_token_on():
    module = bp.ClassAttention(depth=3, heads=4, init=0.0).build(16)
    module.token.data.normal_()
    assert torch.equal(module(torch.randn(2, 5, 16)), module.token.expand(2, 1, 16))


@pytest.mark.parametrize(("options", "words"), [({"heads": 3}, "heads must divide width"), ({"depth": 0}, "depth must be"),
                                                ({"init": None}, "init is the number")])
def test_bad_numbers_of_class_attention_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        bp.ClassAttention(**options).check(16, "here")


def test_a_norm_in_the_stream_normalises_it():
    model = architecture((bp.StreamNorm(), bp.Block(channel=bp.MLP(), placement="peri"))).build(1)
    x = drawn(2, 7, 16)
    torch.testing.assert_close(model.double().layers[0](x), rms(x))
    assert architecture(bp.StreamNorm(bp.LayerNorm())).hash != architecture(bp.StreamNorm()).hash


def test_magneto_starts_its_matrices_larger_the_deeper_it_is():
    layer = bp.Block(mixer=bp.Attention(heads=2, sub_norm=True), channel=bp.MLP(ratio=1, sub_norm=True))
    for depth in (2, 12):
        init = bp.magneto(architecture((layer,) * depth)).init
        assert init["layers.0.mixer.op.value.weight"] == pytest.approx(math.sqrt(math.log(2 * depth)))
        assert "layers.0.mixer.op.query.weight" not in init
    alone = bp.magneto(architecture((layer,) * 6), encoder_layers=4).init["layers.0.mixer.op.out.weight"]
    assert alone == pytest.approx(math.sqrt(math.log(18)))
    both = bp.magneto(architecture((layer,) * 4), decoder_layers=6).init["layers.0.mixer.op.out.weight"]
    assert both == pytest.approx(math.sqrt(math.log(18) * math.log(8) / 3))


def test_magneto_tells_the_encoder_from_the_decoder_that_reads_it():
    layer = bp.Block(mixer=bp.Attention(heads=2, sub_norm=True), channel=bp.MLP(ratio=1, sub_norm=True))
    reader = (bp.Block(mixer=bp.Attention(heads=2, sub_norm=True)),
              bp.Block(mixer=bp.CrossAttention(heads=2), channel=bp.MLP(ratio=1, sub_norm=True)))
    init = bp.magneto(architecture(bp.EncoderDecoder((layer,) * 4, reader * 6))).init
    own = {name: init[f"layers.0.{name}"] for name in (
        "encoder.layers.3.mixer.op.value.weight", "encoder.layers.0.channel.op.up.weight",
        "decoder.layers.0.mixer.op.out.weight", "decoder.layers.11.channel.op.down.weight")}
    encoder, decoder = math.sqrt(math.log(18) * math.log(8) / 3), math.sqrt(math.log(18))
    assert list(own.values()) == pytest.approx([encoder, encoder, decoder, decoder])
    assert not any("query" in name or "decoder.layers.1.mixer" in name for name in init)
    alone = bp.magneto(architecture((layer,) * 4), decoder_layers=6).init["layers.0.mixer.op.value.weight"]
    assert alone == pytest.approx(encoder)
    with pytest.raises(ValueError, match="holds both"):
        bp.magneto(architecture(bp.EncoderDecoder((layer,), reader)), encoder_layers=3)


def test_behind_a_sub_norm_the_size_of_values_does_not_matter_and_that_of_outputs_does():
    """What the paper's bound rests on: gamma reaches the stream through the last matrix alone."""
    layer = bp.Block(mixer=bp.Attention(heads=2, sub_norm=True), channel=bp.MLP(ratio=1, sub_norm=True))
    sublayer, x = bp.magneto(architecture((layer,) * 16)).build(1).double().layers[0].mixer, drawn(1, 5, 16)
    sublayer.op.value.weight.data.mul_(1e3)                  # so that the epsilon of the norm does not matter
    before = sublayer.branch(x)
    sublayer.op.value.weight.data.mul_(1e3)
    torch.testing.assert_close(sublayer.branch(x), before)
    sublayer.op.out.weight.data.mul_(2)
    torch.testing.assert_close(sublayer.branch(x), 2 * before)


def test_a_deep_stack_of_layers_that_remember_is_laid_out_in_time_and_space_of_its_depth():
    """Each of its layers may stand behind any number of others, and every such rewrite used to double what was kept."""
    layer = bp.Block(mixer=bp.LayerMixAttention(heads=2), channel=bp.MLP(ratio=1))
    found = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=True),
                     body=Stack((layer, bp.Block(channel=bp.MLP(ratio=1))) * 20, bp.LayerMemory()))
    origins = [site.origins for site in found.sites() if site.origins]
    assert origins and all(len(set(made)) == len(made) for held in origins for made in held.values())
