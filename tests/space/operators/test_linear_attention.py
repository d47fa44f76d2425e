"""Linear attention and its kin: where each becomes something known, what it promises, what it answers to bad numbers."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.attention import attend
from bodyplan.space.operators.nprf import normal_numbers
from bodyplan.testing import built

torch.set_num_threads(1)


def inputs(length, width=16, batch=2, seed=0, dtype=torch.float64):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module_of(config, width=16, dtype=torch.float64, **weights):
    """The operator's module, with the weights of these names set."""
    module = built(config, width, dtype=dtype)
    for name, value in weights.items():
        module.get_parameter(name.replace("__", ".")).data[...] = value
    return module


def with_weights_of(config, module, width=16, also=()):
    """Another operator's module with the parameters of `module` that have a name in it, or the name given for it."""
    other, theirs = built(config, width, dtype=torch.float64), dict(module.named_parameters()) | dict(also)
    for name, parameter in other.named_parameters():
        parameter.data[...] = theirs[name]
    return other


def same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# -- linear attention, decays, gates -----------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("feature", ["elu", "relu", "softmax", "taylor"])
def test_the_last_token_sees_what_it_sees_both_ways(length, feature):
    causal = module_of(bp.LinearAttention(heads=2, feature=feature))
    both = with_weights_of(bp.LinearAttention(heads=2, feature=feature, bidirectional=True), causal)
    x = inputs(length)
    same(causal(x)[:, -1], both(x)[:, -1])


@pytest.mark.parametrize("key_dim", [24, 64])
def test_taylor_features_come_close_to_a_softmax_of_small_scores(key_dim):
    based = module_of(bp.Based(heads=2, key_dim=key_dim))
    based.query.weight.data *= 0.01
    x = inputs(63)
    q, k, v = (each(x).unflatten(-1, (2, -1)) for each in (based.query, based.key, based.value))
    wanted = based.out(attend(q, k, v, None).flatten(2))
    error = (based(x) - wanted).abs().max()
    mean = based.out((v.cumsum(1) / torch.arange(1, 64)[:, None, None]).flatten(2))
    assert error < 1e-4 and error < 0.01 * (mean - wanted).abs().max()


def test_retention_that_forgets_nothing_is_linear_attention_with_a_norm():
    retention = module_of(bp.Retention(heads=2, expand_v=1, decay=(1.0, 1.0), position=None, norm="rms", gate=False))
    ones = torch.ones(8, dtype=torch.float64)
    linear = with_weights_of(bp.LinearAttention(heads=2, feature="identity", normalise=False, output_norm=True), retention,
                             also={"norm.weight": ones})
    same(retention(inputs(63)), linear(inputs(63)), 1e-4)       # the norms' eps weigh differently on scaled outputs


@pytest.mark.parametrize("decay", [(1.0, 0.5), "retnet", "geometric"])
def test_decay_scale_zero_forgets_nothing(decay):
    scaled = module_of(bp.Lightning(heads=2, decay=decay, decay_scale=0.0))
    same(scaled(inputs(40)), with_weights_of(bp.Lightning(heads=2, decay=(1.0, 1.0)), scaled)(inputs(40)))


def test_head_h_of_retention_keeps_its_decay_however_many_heads_there_are():
    many, few = (bp.Retention(heads=heads, key_dim=4).build(16).log_decay for heads in (4, 2))
    assert many[:2] == few and math.isclose(math.exp(few[0]), 1 - 2**-5)


@pytest.mark.parametrize("config", [bp.Retention(heads=2), bp.Lightning(heads=2), bp.Lightning(heads=2, position="rotary")])
def test_positions_count_as_distances_alone(config):
    module, x = module_of(config), inputs(17)
    later = module.init_state(2, torch.float64) | {"position": 1000}
    same(module.step(x, later)[0], module(x), 1e-8)


def test_gla_with_open_gates_is_linear_attention_with_a_norm():
    gla = module_of(bp.GLA(heads=2, expand_k=1, gate=False), decay_up__weight=0.0, decay_up__bias=40.0)
    linear = with_weights_of(bp.LinearAttention(heads=2, feature="identity", normalise=False, output_norm=True), gla)
    same(gla(inputs(63)), linear(inputs(63)), 1e-4)             # the norms' eps weigh differently on scaled outputs


def test_gla_with_closed_gates_sees_the_token_alone():
    gla = module_of(bp.GLA(heads=2, temperature=1), decay_up__weight=0.0, decay_up__bias=-80.0)
    x = inputs(20)
    same(gla(x), torch.cat([gla(x[:, t:t + 1]) for t in range(20)], dim=1))


# -- Liger -------------------------------------------------------------------------------------------------------------

def test_liger_without_its_recurrence_is_attention_with_a_window_on_the_same_parameters():
    config, attention = bp.Liger(heads=4, kv_heads=2, window=9, mix=0.0), bp.Attention(heads=4, kv_heads=2, window=9)
    assert config.axes(32) == attention.axes(32)
    liger = module_of(config, 32)
    same(liger(inputs(63, 32)), with_weights_of(attention, liger, 32)(inputs(63, 32)))


def test_liger_with_a_window_over_all_and_without_recurrence_is_full_attention():
    liger = module_of(bp.Liger(heads=2, window=100, mix=0.0))
    same(liger(inputs(63)), with_weights_of(bp.Attention(heads=2), liger)(inputs(63)))


# -- kernels, agents, super tokens, hashes -----------------------------------------------------------------------------

def test_aaren_with_a_query_of_zeros_gives_running_means():
    aaren, x = module_of(bp.Aaren(heads=2), query=0.0), inputs(63)
    same(aaren(x), aaren.out(aaren.value(x).cumsum(1) / torch.arange(1, 64)[:, None]))


def test_aaren_survives_scores_beyond_the_range_of_exp():
    aaren = module_of(bp.Aaren(heads=2), dtype=torch.float32)
    aaren.query.data *= 1e4
    x = inputs(100, dtype=torch.float32).requires_grad_()
    y = aaren(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    state, steps = aaren.init_state(2), []
    for t in range(100):
        step, state = aaren.step(x[:, t:t + 1], state)
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, 1), y, rtol=1e-4, atol=1e-4)


def test_a_state_of_aaren_does_not_grow():
    aaren = module_of(bp.Aaren(heads=2))
    sizes = {sum(v.numel() for v in aaren.step(inputs(n), None)[1].values()) for n in (1, 63)}
    assert sizes == {2 * 2 * (8 + 2)}


@pytest.mark.parametrize("bidirectional", [False, True])
def test_random_features_estimate_the_softmax_of_normalised_queries_and_keys(bidirectional):
    nprf = module_of(bp.NPRF(heads=2, features=4000, reach=8, bidirectional=bidirectional))
    nprf.bias.data.zero_()
    if bidirectional:
        nprf.ahead.data.zero_()
    x = inputs(20)
    q, k = (torch.nn.functional.normalize(each(x).unflatten(-1, (2, -1)), dim=-1) for each in (nprf.query, nprf.key))
    v = nprf.value(x).unflatten(-1, (2, -1))
    wanted = nprf.out(attend(q * 8**0.5, k, v, None, bidirectional).flatten(2))
    assert (nprf(x) - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_large_bias_at_distance_zero_leaves_the_token_alone():
    nprf, x = module_of(bp.NPRF(heads=2, features=8, reach=4), bias=-20.0), inputs(40)
    nprf.bias.data[:, 0] = 20.0
    same(nprf(x), nprf.out(nprf.value(x)), 1e-8)


def test_random_directions_look_normal_and_nest():
    w = normal_numbers(4, 128, 64, "cpu", torch.float64)
    assert abs(w.mean()) < 0.02 and abs(w.std() - 1) < 0.02 and abs((w**4).mean() - 3) < 0.1
    flat = w.flatten(0, 1)
    assert (torch.corrcoef(flat.t()) - torch.eye(64)).abs().max() < 0.25
    assert torch.equal(w[:2, :5, :24], normal_numbers(2, 5, 24, "cpu", torch.float64))


def test_one_agent_tells_every_token_what_the_mean_query_finds():
    agent = module_of(bp.AgentAttention(heads=2, side=1, table=None, kernel=None))
    x = inputs(30).view(2, 5, 6, 16)
    q, k, v = (each(x).flatten(1, 2).unflatten(-1, (2, -1)) for each in (agent.query, agent.key, agent.value))
    wanted = agent.out(attend(q.mean(1, keepdim=True), k, v, None, bidirectional=True).flatten(2))
    same(agent(x).flatten(1, 2), wanted.expand(-1, 30, -1))


def test_agents_take_a_grid_of_any_size_and_a_sequence():
    agent = module_of(bp.AgentAttention(heads=2))
    for shape in ((1, 1), (63,), (100,), (3, 21)):
        x = torch.randn(2, *shape, 16, dtype=torch.float64)
        assert agent(x).shape == x.shape and agent(x).isfinite().all()


def test_a_grid_in_one_cell_gets_the_value_of_its_mean():
    module = module_of(bp.SuperTokenAttention(heads=2, cell=9))
    x = inputs(63).view(2, 9, 7, 16)
    same(module(x).flatten(1, 2), module.out(module.value(x.mean((1, 2))))[:, None].expand(-1, 63, -1))


@pytest.mark.parametrize("shape", [(9, 9), (7, 10), (1, 6), (63,)])
def test_the_shares_of_a_token_in_super_tokens_sum_to_one(shape):
    module = module_of(bp.SuperTokenAttention(heads=2, cell=4, iterations=2))
    module.attended = torch.ones_like
    same(module(torch.randn(2, *shape, 16, dtype=torch.float64)), torch.ones(2, *shape, 16, dtype=torch.float64), 1e-9)


def test_equal_codes_weigh_all_tokens_alike():
    eco, x = module_of(bp.EcoFormer(heads=2, bits=5), hash=0.0), inputs(63)
    same(eco(x), eco.out(eco.value(x).mean(1, keepdim=True)).expand(-1, 63, -1))


def test_codes_are_bits_and_train_what_gives_them():
    eco, x = module_of(bp.EcoFormer(heads=2, bits=5)), inputs(20)
    codes = eco.codes(eco.query(x))
    same(codes.abs(), torch.ones_like(codes), 1e-12)
    eco(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in (eco.hash, eco.anchors, eco.mean, eco.query.weight))


def test_products_with_codes_are_additions_and_part_of_the_cost():
    config = bp.EcoFormer(heads=4, bits=16)
    assert config.additions(64, 100) == 2 * 100 * 4 * 16 * 17 < config.macs(64, 100)


# -- key-value attention, estimated attention, feed-forward sequences --------------------------------------------------

@pytest.mark.parametrize("bidirectional", [False, True])
def test_key_value_attention_is_attention_whose_queries_are_keys(bidirectional):
    module, x = module_of(bp.KeyValueAttention(heads=2, bidirectional=bidirectional)), inputs(63)
    attention = with_weights_of(bp.Attention(heads=2, rotary=False, bidirectional=bidirectional), module,
                                also={"query.weight": module.key.weight})
    same(module(x), attention(x))


def test_scores_of_a_pair_are_symmetric_without_positions_and_not_with_them():
    module = module_of(bp.KeyValueAttention(heads=2, frequencies=4, bidirectional=True))
    bias = module.bias(10, 10, module.places)
    assert (bias - bias.transpose(1, 2)).abs().max() > 0.01
    module.places.data.zero_()
    plain = with_weights_of(bp.KeyValueAttention(heads=2, bidirectional=True), module)
    same(module(inputs(10)), plain(inputs(10)))


@pytest.mark.parametrize("length", [1, 10, 63])
def test_sea_that_chooses_all_tokens_and_trusts_them_is_full_attention(length):
    config, x = bp.SEA(heads=2, tokens=64, columns=16, features=8), inputs(length)
    sea = module_of(config, trust__weight=0.0, trust__bias=60.0)
    same(sea(x), with_weights_of(bp.Attention(heads=2, rotary=False, bidirectional=True), sea)(x))
    sea.trust.bias.data.fill_(-60.0)
    same(sea(x), sea.out(sea.value(x).mean(1, keepdim=True)).expand(-1, length, -1))


@pytest.mark.parametrize("length", [1, 7, 63, 100, 1000])
def test_sea_attends_to_about_as_many_tokens_as_it_was_told(length):
    sea, x = module_of(bp.SEA(heads=2, tokens=12, columns=32, features=8)), inputs(length)
    estimate = sea.estimate(x)
    same(estimate.sum(-1), torch.ones(2, 2, length, dtype=torch.float64))
    index, is_real, _ = sea.chosen(estimate, length)
    chosen = is_real.sum(-1)
    assert chosen.min() >= min(length, 12) / 2 and chosen.max() <= max(12, math.ceil(length / 32)) * 1.5
    lists = torch.where(is_real, index, -1 - torch.arange(index.shape[-1]))
    assert all(len(set(row)) == len(row) for row in lists.flatten(0, 2)[:50].tolist())


def test_the_estimate_learns_from_the_scores_and_from_a_teacher():
    sea, x = module_of(bp.SEA(heads=2, tokens=4, columns=8, features=8)), inputs(20)
    sea(x).square().sum().backward()
    assert sea.decode.weight.grad.abs().max() > 0 and sea.widen.grad.abs().max() > 0
    teacher = torch.softmax(torch.randn(2, 2, 20, 8, dtype=torch.float64), -1)
    loss = (teacher * (teacher.log() - sea.estimate(x).log())).sum()
    assert torch.autograd.grad(loss, sea.encode.weight)[0].abs().max() > 0


def test_one_network_per_head_and_an_open_projection_is_one_network():
    heads = module_of(bp.SequenceFF(max_len=30, hidden=9, heads=1), out__weight=torch.eye(16))
    names = ("up", "up_bias")
    also = {name: heads.get_parameter(f"head_{name}")[0] for name in names}
    also |= {name: heads.get_parameter(f"head_{name}")[:, 0] for name in ("down", "down_bias")}
    layer = with_weights_of(bp.SequenceFF(max_len=30, hidden=9), heads, also=also)
    same(layer(inputs(21)), heads(inputs(21)))


def test_a_sequence_longer_than_the_network_is_refused():
    with pytest.raises(ValueError, match="at most max_len tokens: got 31 and 30; use a larger max_len"):
        module_of(bp.SequenceFF(max_len=30, hidden=9))(inputs(31))


# -- lengths and precisions --------------------------------------------------------------------------------------------

LINEAR = [bp.LinearAttention(heads=2), bp.LinearAttention(heads=2, bidirectional=True), bp.Based(heads=2, key_dim=4),
          bp.Retention(heads=2), bp.Lightning(heads=2), bp.GLA(heads=2), bp.Liger(heads=2), bp.Aaren(heads=2),
          bp.EcoFormer(heads=2), bp.NPRF(heads=2, features=4), bp.SEA(heads=2, tokens=8, columns=256, features=8)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", LINEAR, ids=lambda config: type(config).__name__)
@torch.no_grad()
def test_linear_mixers_stay_finite_over_16384_tokens_in_half_precision(config, dtype):
    module, x = module_of(config, dtype=dtype), inputs(16384, batch=1, dtype=dtype)
    y = module(x)
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize("config", [bp.AgentAttention(heads=2), bp.SuperTokenAttention(heads=2, cell=8)])
@torch.no_grad()
def test_mixers_of_grids_stay_finite_over_128_by_128_places(config):
    x = inputs(16384, batch=1, dtype=torch.bfloat16).view(1, 128, 128, 16)
    assert module_of(config, dtype=torch.bfloat16)(x).isfinite().all()


def test_half_precision_sums_are_divided_before_they_are_stored():
    module = module_of(bp.LinearAttention(heads=1), dtype=torch.float16, value__weight=30 * torch.eye(16))
    x = torch.ones(1, 8192, 16, dtype=torch.float16)
    torch.testing.assert_close(module(x)[0, -1], module(x)[0, 0], rtol=0.01, atol=0.01)


# -- errors ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.LinearAttention(heads=6), "heads must divide width at body[0].mixer: got 6 and 64; use 4 or 8"),
    (bp.LinearAttention(key_dim=0), "key_dim must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.LinearAttention(feature="eluu"), "unknown feature 'eluu'; did you mean 'elu'?"),
    (bp.LinearAttention(feature="identity"), "normalise needs features that are not negative at body[0].mixer: got feature="),
    (bp.Based(key_dim=1.5), "key_dim must be a whole number of at least 1 at body[0].mixer: got 1.5"),
    (bp.Retention(heads=0), "heads must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.Retention(key_dim=5, heads=2), "the key size of a head must be even, for rotary pairs, at body[0].mixer: got 5"),
    (bp.Retention(decay=(0.5, 0.5)), "one number in (0, 1] for each head at body[0].mixer: got (0.5, 0.5) for 4 heads"),
    (bp.Retention(heads=2, decay=(0.5, 1.5)), "one number in (0, 1] for each head at body[0].mixer: got (0.5, 1.5)"),
    (bp.Lightning(decay="linaer"), "unknown decay 'linaer'; did you mean 'linear'?"),
    (bp.Lightning(decay_scale=2), "decay_scale must be a number from 0 to 1 at body[0].mixer: got 2; use 1 - l / L"),
    (bp.Lightning(position="lrp"), "unknown position 'lrp'; did you mean 'lrpe'?"),
    (bp.Lightning(norm="layr"), "unknown norm 'layr'; did you mean 'layer'?"),
    (bp.Lightning(feature="taylor"), "unknown feature 'taylor'"),
    (bp.GLA(expand_k=0.01), "expand_k * width / heads must be a whole number at body[0].mixer: got 0.01, 64 and 4"),
    (bp.GLA(rank=0), "rank must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.GLA(temperature=0), "temperature must be a positive number at body[0].mixer: got 0; use 16"),
    (bp.Liger(window=None), "window must be a whole number of at least 1 at body[0].mixer: got None; use 64"),
    (bp.Liger(mix=1.5), "mix must be a number from 0 to 1 at body[0].mixer: got 1.5"),
    (bp.Liger(heads=4, kv_heads=3), "kv_heads must divide heads at body[0].mixer: got 3 and 4"),
    (bp.Aaren(key_dim=0), "key_dim must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.NPRF(features=0), "features must be a whole number of at least 1 at body[0].mixer: got 0; use 64"),
    (bp.NPRF(reach=0), "reach must be a whole number of at least 1 at body[0].mixer: got 0; use the length"),
    (bp.AgentAttention(side=0), "side must be a whole number of at least 1 at body[0].mixer: got 0; use 7 for 49 agents"),
    (bp.AgentAttention(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.SuperTokenAttention(cell=0), "cell must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.EcoFormer(bits=0), "bits must be a whole number of at least 1 at body[0].mixer: got 0; use 16"),
    (bp.SEA(tokens=0), "tokens must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.SequenceFF(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.KeyValueAttention(frequencies=-1), "frequencies must be a whole number of at least 0 at body[0].mixer: got -1"),
    (bp.SwiGLU(activation="gelu"), "activation must be 'silu' or None at body[0].mixer: got 'gelu'"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)


def test_swiglu_without_an_activation_is_a_product_of_two_projections():
    module, x = module_of(bp.SwiGLU(2, activation=None)), inputs(5)
    same(module(2 * x), 4 * module(x))


def test_a_norm_without_a_gain_has_nothing_to_train():
    module, x = module_of(bp.RMSNorm(gain=False)), inputs(5)
    assert not list(module.parameters())
    same(module(x).square().mean(-1), torch.ones(2, 5, dtype=torch.float64), 1e-5)


# -- whole models ------------------------------------------------------------------------------------------------------

def test_the_hybrid_of_based_has_all_three_mixers_and_streams():
    architecture = bp.presets.based.fixed()
    mixers = {type(layer.mixer).__name__ for layer in architecture.plan.layers}
    assert mixers == {"Based", "Attention", "ShortConv"}
    model, ids = architecture.build().eval(), torch.arange(40)[None] * 7 % 256
    with torch.no_grad():
        whole, state, steps = model(ids), model.init_state(1), []
        for t in range(40):
            step, state = model.step(ids[:, t:t + 1], state)
            steps.append(step)
    same(torch.cat(steps, 1), whole, 1e-4)


def test_a_larger_key_buys_recall_with_state():
    sizes = [bp.Based(heads=4, key_dim=k).state_numel(64, 10**6) for k in (4, 8, 16)]
    assert sizes == [4 * (1 + k + k * k) * 17 for k in (4, 8, 16)]


def test_transnormer_slows_its_decays_layer_by_layer_and_turns_in_the_first_alone():
    mixers = [layer.mixer for layer in bp.presets.transnormer.fixed().plan.layers]
    assert [m.position for m in mixers] == ["lrpe", None, None, None]
    assert [m.decay_scale for m in mixers] == [1.0, 0.75, 0.5, 0.25]
