"""What ties channel mixers to known layers, and what their papers promise."""

from __future__ import annotations

from functools import partial

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.operators.mlp import keep_largest
from bodyplan.space.operators.rational import IDENTITY, SWISH, SWISH_GAIN, rational
from bodyplan.testing import built, check_reference
from operator_examples.channel_mixers import gelu

torch.set_num_threads(1)

SHAPES = [(2, 1), (1, 63), (1, 100)]
CHANNELS = [bp.DynamicMoE(experts=4, ratio=1), bp.MoHD(groups=4, ratio=1), bp.GRKAN(ratio=1, groups=4),
            bp.MemoryLayers(bits=4), bp.Pattention(ratio=1), bp.AdapterMLP(ratio=1),
            bp.FixedGraph(neurons=20, sensory=8, outputs=8, density=0.3), bp.MLP(1, activation="poly_relu"),
            bp.MLP(1, activation="poly_norm"), bp.MLP(1, activation="relu", top_k=3)]


def tokens(width, shape=(2, 9), seed=1, dtype=torch.float64):
    return torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_weights(config, width, **weights):
    """The module with some weights set; the others as they start."""
    module = built(config, width, dtype=torch.float64)
    for name, value in weights.items():
        parameter = module.get_parameter(name.replace("__", "."))
        parameter.data = torch.as_tensor(value, dtype=torch.float64).expand(parameter.shape).clone()
    return module


def sharing(config, width, module):
    """Another layer with the weights of `module` that it knows."""
    other = config.build(width).double()
    other.load_state_dict({name: value for name, value in module.state_dict().items() if name in other.state_dict()})
    return other


@pytest.mark.parametrize("config", CHANNELS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_finite_for_large_activations(config, dtype):
    x = 5 * tokens(24, dtype=torch.float32)
    y = built(config, 24).to(dtype)(x.to(dtype))
    assert y.isfinite().all() and y.dtype == dtype and y.any()


@pytest.mark.parametrize("config", CHANNELS, ids=repr)
def test_tokens_of_zeros_are_finite_and_have_finite_gradients(config):
    x = torch.zeros(1, 3, 24, requires_grad=True)
    y = built(config, 24)(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


# -- activations of MLP ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_a_polynomial_of_the_first_power_alone_is_relu(shape):
    x = tokens(24, shape)
    polynomial = with_weights(bp.MLP(2, "poly_relu"), 24, coefficient=[1, 0, 0], offset=0)
    assert torch.equal(polynomial(x), sharing(bp.MLP(2, "relu"), 24, polynomial)(x))


def test_a_polynomial_of_the_second_power_alone_is_squared_relu():
    x = tokens(16)
    polynomial = with_weights(bp.MLP(2, "poly_relu"), 16, coefficient=[0, 1, 0], offset=0)
    torch.testing.assert_close(polynomial(x), sharing(bp.MLP(2, "squared_relu"), 16, polynomial)(x))


@pytest.mark.parametrize("config", [bp.MLP(2, "poly_relu"), bp.MLP(1, "poly_norm"), bp.MLP(1, "poly_norm", order=4),
                                    bp.MLP(1, "poly_relu", order=1)], ids=repr)
def test_polynomials_are_the_papers_formulas(config):
    def reference(w, config, x_BTD):
        h, y = x_BTD @ w["up.weight"].T, w["offset"]
        for i in range(1, config.order + 1):
            if config.activation == "poly_relu":
                y = y + w["coefficient"][i - 1] * torch.where(h > 0, h, 0.0) ** i
            else:
                y = y + w["coefficient"][i - 1] * h**i / ((h ** (2 * i)).sum(-1, keepdim=True) / h.shape[-1] + 1e-6).sqrt()
        return y @ w["down.weight"].T

    check_reference(config, 24, reference)


def test_polynomials_start_with_equal_shares_of_every_power():
    declared = bp.MLP(2, "poly_norm", order=4).axes(16)
    assert declared["coefficient"].init.low == 1 / 4 and declared["offset"].init.kind == "zeros"


@pytest.mark.parametrize("activation", ["relu", "gelu", "poly_norm"])
def test_keeping_all_hidden_units_is_the_plain_mlp(activation):
    x = tokens(16)
    plain, kept = (built(bp.MLP(2, activation, top_k=k), 16, dtype=torch.float64)(x) for k in (None, 32))
    torch.testing.assert_close(kept, plain, rtol=1e-12, atol=1e-12)


def test_exactly_the_largest_units_are_kept_ties_among_them():
    h = torch.tensor([[3.0, -1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = keep_largest(h, 3)
    assert (kept != 0).sum() == 3 and kept[0, 0] == 3 and kept.sum() == 7


@pytest.mark.parametrize("k", [1, 5])
def test_a_token_uses_at_most_k_columns_of_the_second_matrix(k):
    module = built(bp.MLP(2, "relu", top_k=k), 16)
    module(tokens(16, (1, 1), dtype=torch.float32)).sum().backward()
    assert 0 < module.down.weight.grad.any(0).sum() <= k


# -- experts above a threshold -----------------------------------------------------------------------------------------

def test_a_threshold_of_one_takes_all_experts_by_their_probabilities():
    config, x = bp.DynamicMoE(experts=5, top_p=1, ratio=1), tokens(24)
    module = built(config, 24, dtype=torch.float64)
    assert (module.experts_used(x) == 5).all()
    experts = zip(module.gate, module.up, module.down, strict=True)
    outputs = torch.stack([module.expert(x, *weights) for weights in experts], -1)
    wanted = (outputs * F.softmax(module.router(x), -1)[:, :, None]).sum(-1)
    torch.testing.assert_close(module(x), wanted, rtol=1e-10, atol=1e-10)


def test_one_expert_of_one_is_the_dense_layer():
    x = tokens(24)
    module = built(bp.DynamicMoE(experts=1, top_p=0.3, ratio=2), 24, dtype=torch.float64)
    dense = built(bp.SwiGLU(2), 24, dtype=torch.float64)
    for name in ("gate", "up", "down"):
        getattr(dense, name).weight.data = getattr(module, name).data[0]
    torch.testing.assert_close(module(x), dense(x))


def test_a_sure_router_takes_one_expert_and_a_flat_one_many():
    sure = with_weights(bp.DynamicMoE(experts=4, top_p=0.4, ratio=1), 8, router__weight=torch.eye(4, 8) * 50)
    assert (sure.experts_used(torch.eye(8, dtype=torch.float64)[None, :4]) == 1).all()
    flat = with_weights(bp.DynamicMoE(experts=4, top_p=0.6, ratio=1), 8, router__weight=0.0)
    assert (flat.experts_used(tokens(8)) == 3).all()
    torch.testing.assert_close(flat.uncertainty(tokens(8)), torch.tensor(4.0, dtype=torch.float64).log())


@pytest.mark.parametrize("top_p", [0.2, 0.4, 0.7, 0.95])
def test_the_expected_number_of_experts_is_what_normal_scores_give(top_p):
    config = bp.DynamicMoE(experts=256, top_p=top_p)
    module = bp.DynamicMoE(experts=2, top_p=top_p, ratio=1).build(8)
    used = module.chosen(torch.randn(400, 256, generator=torch.Generator().manual_seed(0)).softmax(-1)).sum(-1)
    assert config.expected_experts == pytest.approx(used.float().mean().item(), rel=0.06)


def test_executed_multiply_adds_are_those_of_the_experts_that_were_taken():
    config, x = bp.DynamicMoE(experts=8, top_p=0.5, ratio=1), tokens(16, (1, 40), dtype=torch.float32)
    module = built(config, 16)
    used = int(module.experts_used(x).sum())
    assert macs_thop(module, x) == macs_flop_counter(module, x) == 40 * 8 * 16 + used * 3 * 16 * 16
    assert 40 < used < 8 * 40


# -- routed channels ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_all_groups_on_under_a_flat_router_are_the_dense_layer(shape):
    x = tokens(24, shape)
    module = with_weights(bp.MoHD(shared=0.5, groups=3, top_k=3, ratio=2), 24, router__weight=0.0, fusion=0.0)
    torch.testing.assert_close(module(x), sharing(bp.SwiGLU(2), 24, module)(x), rtol=1e-10, atol=1e-10)


def test_all_groups_on_under_a_flat_router_are_plain_attention():
    module = with_weights(bp.MoHDAttention(heads=2, groups=3, top_k=3), 24, router__weight=0.0, fusion=0.0)
    x = tokens(24)
    torch.testing.assert_close(module(x), sharing(bp.Attention(heads=2), 24, module)(x), rtol=1e-10, atol=1e-10)


def test_a_token_neither_reads_nor_writes_groups_it_did_not_choose_in_attention():
    module = with_weights(bp.MoHDAttention(heads=2, groups=4, top_k=1), 16, fusion=0.0, router__weight=0.0)
    with torch.no_grad():
        module.router.weight[:, 0] = torch.tensor([4.0, 1.0, 2.0, 3.0])
    x = tokens(16)
    x[..., 0] = 1.0
    y, changed = module(x), x.clone()
    changed[..., 10:] += 1.0
    torch.testing.assert_close(module(changed), y)
    assert (y[..., :10] != 0).all() and (y[..., 10:] == 0).all()


def test_without_fusion_a_token_leaves_groups_alone_that_it_did_not_choose():
    module = with_weights(bp.MoHD(shared=0.5, groups=4, top_k=1, ratio=1), 16, fusion=0.0)
    written = module(tokens(16))[..., 8:].unflatten(-1, (4, 2)).abs().sum(-1) > 0
    assert (written.sum(-1) == 1).all()


def test_fusion_reaches_the_groups_that_were_not_chosen():
    module = with_weights(bp.MoHD(shared=0.5, groups=4, top_k=1, ratio=1), 16, fusion=0.5)
    assert (module(tokens(16)) != 0).all()


def test_activation_scaling_keeps_the_norm_of_what_is_read():
    module = built(bp.MoHD(shared=0.5, groups=4, top_k=1, ratio=1), 512)
    x = tokens(512, (1, 40), dtype=torch.float32)
    _, members = module.route(x[0])
    read = (512 / 320) ** 0.5 * module.read(x[0], members, module.up.weight)
    assert read.square().mean().item() == pytest.approx(module.up(x).square().mean().item(), rel=0.1)


# -- rational units ----------------------------------------------------------------------------------------------------

def test_rational_units_that_are_the_identity_leave_two_linear_maps():
    x = tokens(24)
    module = with_weights(bp.GRKAN(ratio=2, groups=4), 24, down_numerator=IDENTITY[0], down_denominator=IDENTITY[1])
    torch.testing.assert_close(module(x), module.down(module.up(x)))


def test_the_second_unit_starts_as_swish_and_the_first_as_the_identity():
    x = torch.linspace(-3, 3, 200)[:, None]
    near = rational(x, torch.tensor(SWISH[0]), torch.tensor(SWISH[1])[None])
    assert (near - F.silu(x)).abs().max() < 1e-3
    module = built(bp.GRKAN(ratio=1, groups=2), 8)
    assert tuple(module.up_numerator.tolist()) == IDENTITY[0] and not module.up_denominator.any()
    assert module.down_denominator[1].tolist() == pytest.approx(SWISH[1])


def test_the_gain_behind_swish_keeps_the_variance():
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    assert torch.trapezoid(F.silu(x) ** 2 * density, x).item() == pytest.approx(SWISH_GAIN ** -2, abs=1e-6)


def test_a_rational_unit_has_no_pole():
    x = torch.linspace(-10, 10, 1001)[:, None]
    wild = rational(x, torch.ones(6), torch.tensor([[-3.0, 1.0, -2.0, 0.5]]))
    assert wild.isfinite().all() and wild.abs().max() <= 111111


# -- tables ------------------------------------------------------------------------------------------------------------

def test_far_from_zero_a_table_is_read_without_a_weight():
    module = built(bp.MemoryLayers(bits=4), 8, dtype=torch.float64)
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1, 1, 1], dtype=torch.float64)
    table = module.first.table
    torch.testing.assert_close(module.first(1e3 * signs[None, None])[0, 0], table[0, 0b1001] + table[1, 0b1110])


def test_only_the_vectors_that_were_read_are_trained():
    module = built(bp.MemoryLayers(bits=4), 8)
    module(tokens(8, (1, 3), dtype=torch.float32)).sum().backward()
    touched = module.first.table.grad.abs().sum(-1) > 0
    assert (touched.sum(1) <= 3).all() and touched.any(1).all()


def test_a_table_costs_a_vector_per_chunk_and_no_product():
    config = bp.MemoryLayers(bits=8)
    assert config.macs(64, 10) == 10 * 8 * (8 * 10 + 64) < bp.MLP(1).macs(64, 10) / 5


# -- parameter tokens --------------------------------------------------------------------------------------------------

def test_appending_parameter_tokens_with_zero_keys_changes_nothing_at_a_fixed_scale():
    x = tokens(24)
    small = built(bp.Pattention(ratio=2, scale=48**0.5), 24, dtype=torch.float64)
    large = built(bp.Pattention(ratio=3, scale=48**0.5), 24, dtype=torch.float64)
    large.key.weight.data = torch.cat([small.key.weight.data, torch.zeros(24, 24, dtype=torch.float64)])
    large.value.weight.data[:, :48] = small.value.weight.data
    torch.testing.assert_close(large(x), small(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(small(x), built(bp.Pattention(ratio=2), 24, dtype=torch.float64)(x))


def test_the_length_of_a_token_does_not_matter_to_its_parameter_attention():
    module, x = built(bp.Pattention(ratio=2), 24, dtype=torch.float64), tokens(24)
    torch.testing.assert_close(module(7 * x), module(x))


@pytest.mark.parametrize(("width", "head_dim"), [(24, None), (16, 24), (16, 64)])
def test_attention_by_parameter_tokens_is_attention_of_what_they_project(width, head_dim):
    module = built(bp.PattentionMixer(heads=2, head_dim=head_dim), width, dtype=torch.float64)
    x = tokens(width, (1, 63))

    def project(part, x):
        score = x @ part.key.weight.T
        root = score.square().sum(-1, keepdim=True).sqrt()
        return gelu(len(part.key.weight) ** 0.5 * score / root) @ part.value.weight.T

    plain = bp.Attention(heads=2, head_dim=head_dim).build(width).double()
    for name in ("query", "key", "value", "out"):
        setattr(plain, name, torch.nn.Identity())
        getattr(plain, name).forward = partial(project, getattr(module, name))
    torch.testing.assert_close(module(x), plain(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "head_dim"), [(24, None), (16, 24), (16, 64)])
def test_heads_whose_networks_are_the_identity_are_plain_attention(width, head_dim):
    module = built(bp.PartialFormer(heads=2, head_dim=head_dim, ratio=2), width, dtype=torch.float64)
    eye = torch.eye(module.head_dim, dtype=torch.float64).expand(2, -1, -1)
    module.head_up.data, module.head_down.data = torch.cat([eye, -eye], 1), torch.cat([eye, -eye], 2)
    x = tokens(width, (1, 63))
    plain = sharing(bp.Attention(heads=2, head_dim=head_dim), width, module)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-10, atol=1e-10)


def test_attention_by_tables_is_attention_of_what_they_hold():
    module = built(bp.MemoryLayerMixer(heads=2, bits=4), 16, dtype=torch.float64)
    x, plain = tokens(16, (1, 63)), bp.Attention(heads=2).build(16).double()
    for name in ("query", "key", "value", "out"):
        setattr(plain, name, getattr(module, name))
    assert torch.equal(module(x), plain(x))


@pytest.mark.parametrize("mixer", [bp.MemoryLayerMixer(heads=2, bits=4), bp.PartialFormer(heads=2),
                                   bp.PattentionMixer(heads=2)], ids=repr)
def test_whole_networks_of_a_paper_decode_as_they_train(mixer):
    channel = {bp.MemoryLayerMixer: bp.MemoryLayers(bits=4), bp.PartialFormer: bp.Identity(),
               bp.PattentionMixer: bp.Pattention()}[type(mixer)]
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=True),
                     body=bp.repeat(bp.Block(mixer=mixer, channel=channel), times=2))
    model, ids = space.sample(0).build(), torch.arange(12)[None]
    whole, state = model(ids), model.init_state(1)
    for t in range(12):
        logits, state = model.step(ids[:, t:t + 1], state)
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)


# -- adapters ----------------------------------------------------------------------------------------------------------

def test_adapters_leave_the_layer_as_it_is_at_the_start():
    x = tokens(16)
    module = with_weights(bp.AdapterMLP(ratio=2), 16, adapter_up__weight=0.0)
    assert bp.AdapterMLP(ratio=2).axes(16)["adapter_up.weight"].init.kind == "zeros"
    assert torch.equal(module(x), module.feed_forward(x))


def test_a_sure_gate_uses_one_adapter():
    x = tokens(16).abs()
    module = with_weights(bp.AdapterMLP(ratio=2, adapters=2, bottleneck=5), 16, gate__weight=[[100.0], [-100.0]])
    wanted = module.feed_forward(x) + F.relu(x @ module.adapter_down.weight[:5].T) @ module.adapter_up.weight[:, :5].T
    torch.testing.assert_close(module(x), wanted)


# -- fixed graphs ------------------------------------------------------------------------------------------------------

def test_one_step_over_shared_neurons_is_a_feed_forward_layer():
    module, x = built(bp.FixedGraph(neurons=16, sensory=16, outputs=16, steps=1), 16, dtype=torch.float64), tokens(16)
    plain = bp.MLP(1, "relu").build(16).double()
    plain.up.weight.data, plain.down.weight.data = module.sense.weight.data, module.read.weight.data
    torch.testing.assert_close(module(x), plain(x))


def test_a_graph_is_as_dense_as_it_says_and_keeps_the_power_of_what_it_passes_on():
    config = bp.FixedGraph(neurons=600, sensory=10, outputs=10, density=0.02)
    module = built(config, 16)
    kept = module.graph.abs() > module.threshold
    assert kept.float().mean().item() == pytest.approx(0.02, rel=0.05)
    assert (module.scale * module.graph * kept).square().sum(1).mean().item() == pytest.approx(1, rel=0.05)


def test_a_connectome_is_taken_as_it_is_and_never_trained():
    module = built(bp.FixedGraph(neurons=3, sensory=1, outputs=1, steps=3, density=1, scale=1), 16, dtype=torch.float64)
    chain = torch.tensor([[0.0, 0, 0], [0.25, 0, 0], [0, 3.0, 0]], dtype=torch.float64)
    module.graph.data = chain
    x = tokens(16)
    module(x).sum().backward()
    torch.testing.assert_close(module(x), 0.75 * F.relu(module.sense(x)) @ module.read.weight.T)
    assert module.graph.grad is None and torch.equal(module.graph, chain)


# -- all -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.MLP(activation="tanh"), "activation"),
    (bp.MLP(order=0), "order must be a whole number of at least 1 at body.channel: got 0"),
    (bp.MLP(1, "relu", top_k=99), "top_k must not exceed the hidden size at body.channel: got 99 and 16; use at most 16"),
    (bp.DynamicMoE(top_p=1.5), "top_p must be a probability above 0 at body.channel: got 1.5; use 0.4"),
    (bp.DynamicMoE(experts=0), "experts must be a whole number"),
    (bp.MoHD(shared=1), "shared must be a share of the width below 1 at body.channel: got 1; use 0.5"),
    (bp.MoHD(groups=2, top_k=3), "top_k must not exceed groups at body.channel: got 3 of 2; use at most 2"),
    (bp.MoHD(shared=0, groups=3), "groups must divide width at body.channel: got 3 and 16; use 2 or 4"),
    (bp.MoHD(shared=0.9, groups=8), "groups must not exceed the channels that are not shared at body.channel: got 8 and 2"),
    (bp.GRKAN(groups=3), "groups must divide width at body.channel: got 3 and 16; use 2 or 4"),
    (bp.MemoryLayers(bits=3), "bits must divide width at body.channel: got 3 and 16; use 2 or 4"),
    (bp.MemoryLayers(bits=16), "bits must be at most 16 at body.channel: got 18; a table"),
    (bp.MemoryLayerMixer(bits=3), "bits must divide width at body.channel: got 3 and 16; use 2 or 4"),
    (bp.MemoryLayerMixer(heads=1, head_dim=2, bits=4), "bits must divide heads * head_dim at body.channel: got 4 and 2"),
    (bp.MemoryLayerMixer(bits=4, temperature=-1), "temperature must be a positive number at body.channel: got -1"),
    (bp.FixedGraph(neurons=5, sensory=9), "sensory and outputs must not exceed neurons at body.channel: got 9 and 400 of 5"),
    (bp.FixedGraph(scale=0), "scale must be a positive number at body.channel: got 0; use None"),
    (bp.FixedGraph(density=0), "density must be a share above 0 at body.channel: got 0; use 1 for every pair"),
    (bp.PartialFormer(heads=3), "heads must divide width at body.channel: got 3 and 16"),
    (bp.PartialFormer(ratio=0), "ratio must be a positive number at body.channel: got 0"),
    (bp.MemoryLayers(bits=4, temperature=0), "temperature must be a positive number at body.channel: got 0"),
    (bp.Pattention(scale=-1), "scale must be a positive number at body.channel: got -1; use None"),
    (bp.PattentionMixer(heads=3), "heads must divide width at body.channel: got 3 and 16"),
    (bp.PattentionMixer(scale=0), "scale must be a positive number at body.channel: got 0"),
    (bp.AdapterMLP(adapters=0), "adapters must be a whole number of at least 1 at body.channel: got 0; use MLP for none"),
    (bp.AdapterMLP(activation="relu6"), "activation"),
])
def test_numbers_that_cannot_be_built_are_named(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(16, "body.channel")
    assert text in str(caught.value) and "body.channel" in str(caught.value)


def test_channel_mixers_are_elastic_in_a_space():
    channel = bp.choice(bp.MLP(bp.choice(1, 2), bp.choice("gelu", "poly_relu", "poly_norm"), top_k=bp.choice(None, 4)),
                        bp.DynamicMoE(experts=bp.choice(2, 4), top_p=bp.choice(0.3, 0.8), ratio=1),
                        bp.MoHD(shared=bp.choice(0.25, 0.5), groups=bp.choice(2, 4), top_k=bp.choice(1, 2), ratio=1),
                        bp.GRKAN(bp.choice(1, 2), groups=bp.choice(2, 4)), bp.MemoryLayers(bits=bp.choice(2, 4)),
                        bp.FixedGraph(bp.choice(20, 30), sensory=5, outputs=4, density=bp.choice(0.1, 1)),
                        bp.Pattention(bp.choice(1, 2)), bp.AdapterMLP(1, adapters=bp.choice(1, 2)))
    mixer = bp.choice(bp.PattentionMixer(heads=2), bp.MemoryLayerMixer(heads=2, bits=bp.choice(2, 4)),
                      bp.PartialFormer(heads=2, ratio=bp.choice(1, 2)))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=bp.choice(16, 24), head=bp.LanguageHead(tied=True),
                     body=bp.Block(mixer=mixer, channel=channel))
    net, ids = bp.Supernet(space, seed=0), torch.arange(12)[None]
    for seed in range(16):
        architecture = space.sample(seed)
        model = net.extract(architecture)
        torch.testing.assert_close(net.subnet(architecture)(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert architecture.cost(12).parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
