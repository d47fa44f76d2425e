"""Softmax attention's options and relatives: what ties each to plain attention, what its paper promises, and errors."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.graph import operator_label
from bodyplan.space.operators.causal_attention import attend, visible
from bodyplan.space.operators.relative_position import bucket_bounds, slopes
from bodyplan.testing import built, check_causality, check_costs, check_reference, check_state, check_streaming
from exported_folders import assert_equal_to_the_module, assert_tidy, export_all, judged, model_text
from operator_examples.softmax_attention import (
    alibi_slopes,
    attention,
    linear,
    normed,
    plain_heads,
    t5_bucket,
    turned,
)

torch.set_num_threads(1)
WHERE = "body[0].mixer"


def inputs(length, width=16, batch=2, seed=0, dtype=torch.float32):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def put(module, **values):
    """The module with some parameters set to one number."""
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name.replace("__", ".")).fill_(value)
    return module


def like(module, config, width=16, dtype=torch.float64):
    """Another operator's module with this one's weights wherever the names agree."""
    other = built(config, width, dtype=dtype)
    other.load_state_dict(module.state_dict(), strict=False)
    return other


# -- options of Attention ---------------------------------------------------------------------------------------------

OPTIONS = [
    bp.Attention(heads=2, position="alibi"), bp.Attention(heads=3, head_dim=4, position="alibi", bidirectional=True),
    bp.Attention(heads=4, kv_heads=2, position="t5", reach=40, buckets=8),
    bp.Attention(heads=2, position="t5", reach=20, buckets=8, bidirectional=True, window=9),
    bp.Attention(heads=4, kv_heads=2, position="fire", reach=30, position_hidden=5),
    bp.Attention(heads=2, position="transformer_xl"),
    bp.Attention(heads=4, kv_heads=2, position="transformer_xl", bidirectional=True),
    *(bp.Attention(heads=4, kv_heads=2, position=m, reach=5) for m in ("m1", "m2", "m3", "m4")),
    *(bp.Attention(heads=2, position=m, reach=5, bidirectional=True, window=7) for m in ("m1", "m2", "m3", "m4")),
    bp.Attention(heads=4, kv_heads=2, persistent=3), bp.Attention(heads=2, persistent=2, window=4, gate="head"),
    bp.Attention(heads=2, gate="channel", temperature=True), bp.Attention(heads=2, clip_gamma=-0.1, clip_zeta=1.1),
    bp.Attention(heads=4, kv_heads=1, qkv_conv=3), bp.Attention(heads=2, qkv_conv=3, bidirectional=True, qk_norm=True),
    bp.Attention(heads=2, symmetric=True, sink=True), bp.Attention(heads=4, kv_heads=2, shaped=0.5),
    bp.Attention(heads=2, shaped=1.0, window=3, bidirectional=True), bp.Attention(heads=2, weights="relu_norm", rotary=False),
    bp.Attention(heads=2, position=None, symmetric=True, qkv_conv=2, shaped=1.0),
]


@pytest.mark.parametrize("config", OPTIONS, ids=operator_label)
def test_an_option_of_attention_is_its_papers_formula(config, monkeypatch):
    monkeypatch.setattr("bodyplan.testing.behaviour.LENGTHS", (1, 2, 11))
    config.check(16, WHERE)
    check_reference(config, 16, attention)


@pytest.mark.parametrize("config", OPTIONS, ids=operator_label)
def test_an_option_of_attention_streams_and_costs_what_it_says(config):
    check_causality(config, 16)
    check_costs(config, 16)
    if config.streaming:
        check_streaming(config, 16)
        check_state(config, 16)


@pytest.mark.parametrize("length", [1, 63, 100])
@torch.no_grad()
def test_written_scores_equal_fused_ones_where_an_option_does_nothing(length):
    plain = built(bp.Attention(heads=2, head_dim=24, window=50), 16, dtype=torch.float64)
    x_BTD = inputs(length, dtype=torch.float64)
    for config, values in ((dict(temperature=True), {"log_temperature": 0.0}), (dict(sink=True), {"sink": -1e9}),
                           (dict(gate="head"), {"head_gate__weight": 0.0, "head_gate__bias": 1e9}),
                           (dict(gate="channel"), {"channel_gate__weight": 0.0, "channel_gate__bias": 1e9}),
                           (dict(clip_zeta=1 + 1e-15), {})):
        module = put(like(plain, bp.Attention(heads=2, head_dim=24, window=50, **config)), **values)
        assert torch.allclose(module(x_BTD), plain(x_BTD), atol=1e-12), config


@torch.no_grad()
def test_positions_that_say_nothing_are_no_positions():
    plain = built(bp.Attention(heads=2, head_dim=64, rotary=False), 16, dtype=torch.float64)
    x_BTD = inputs(63, dtype=torch.float64)
    silent = {"t5": {"position__bucket_bias": 0.0}, "m1": {"position__by_distance": 1.0}, "m2": {"position__by_offset": 1.0},
              "m3": {"position__factors": 1.0}, "m4": {"position__vectors": 0.0},
              "fire": {"position__out__weight": 0.0, "position__out__bias": 2.0},
              "transformer_xl": {"position__distance__weight": 0.0, "position__key_bias": 0.0}}
    for position, values in silent.items():
        module = put(like(plain, bp.Attention(heads=2, head_dim=64, position=position)), **values)
        assert torch.allclose(module(x_BTD), plain(x_BTD), atol=1e-12), position


def test_slopes_are_those_of_alibi():
    for heads in (1, 2, 3, 6, 8, 12, 16):
        assert slopes(heads) == pytest.approx(alibi_slopes(heads))
    assert slopes(8) == [2.0**-i for i in range(1, 9)]


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (16, 128), (8, 20), (4, 7), (2, 3)])
def test_buckets_are_those_of_t5(buckets, reach):
    bounds = torch.tensor(bucket_bounds(buckets, reach))
    found = torch.bucketize(torch.arange(3 * reach), bounds, right=True).tolist()
    assert found == [t5_bucket(n, buckets, reach, False) for n in range(3 * reach)]
    assert max(found) == buckets - 1


@torch.no_grad()
def test_relative_positions_do_not_change_when_tokens_shift():
    """FIRE apart, whose scale is the length so far."""
    for position in ("alibi", "t5", "m1", "m2", "m3", "m4", "transformer_xl"):
        module = built(bp.Attention(heads=2, position=position, reach=40, window=8), 16, dtype=torch.float64)
        x_BTD = inputs(30, dtype=torch.float64)
        assert torch.allclose(module(x_BTD)[:, 15:], module(x_BTD[:, 5:])[:, 10:], atol=1e-12), position


@torch.no_grad()
def test_fire_maps_any_length_to_one_interval():
    module = built(bp.Attention(heads=2, position="fire"), 16)
    seen = []
    module.position.hidden.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(inputs(2000, batch=1))
    assert seen[0].min() == 0 and seen[0].max() <= 1 and seen[0][-1, 0] > 0.999


@torch.no_grad()
def test_persistent_vectors_are_tokens_without_positions_that_all_see():
    config = bp.Attention(heads=2, persistent=3, rotary=False)
    module = built(config, 16, dtype=torch.float64)
    x_MD = inputs(3, batch=1, seed=5, dtype=torch.float64)[0]
    module.persistent_key.copy_(module.key(x_MD).view(3, 2, 8).transpose(0, 1))
    module.persistent_value.copy_(module.value(x_MD).view(3, 2, 8).transpose(0, 1))
    plain, x_BTD = like(module, bp.Attention(heads=2, rotary=False)), inputs(9, dtype=torch.float64)
    whole = plain(torch.cat([x_MD.expand(2, -1, -1), x_BTD], 1))[:, 3:]
    assert torch.allclose(module(x_BTD), whole, atol=1e-12)


@torch.no_grad()
def test_an_all_attention_layer_is_a_block_without_a_channel_mixer():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=32, head=bp.LanguageHead(),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=2, persistent=bp.choice(8, 128))), 2))
    big = max((space.sample(seed) for seed in range(20)), key=lambda a: a.cost().parameters)
    assert big.build()(torch.randint(16, (2, 7))).shape == (2, 7, 16)
    assert big.cost().parameters > 2 * 2 * 32 * 128                # as many as a feed-forward layer of ratio 4 holds


@torch.no_grad()
def test_clipped_weights_reach_zero_and_one_exactly():
    module = built(bp.Attention(heads=2, clip_gamma=-0.1, clip_zeta=1.1), 16)
    weight = module.weights(torch.tensor([[[[[-20.0, 0.0, 20.0], [0.0, 0.0, 0.1]]]]]))
    assert weight[0, 0, 0, 0].tolist() == [0.0, 0.0, 1.0] and 0 < weight[0, 0, 0, 1].min() < 1


@torch.no_grad()
def test_a_closed_gate_and_a_strong_sink_give_nothing():
    x_BTD = inputs(9)
    closed = put(built(bp.Attention(heads=2, gate="head"), 16), head_gate__weight=0.0, head_gate__bias=-1e9)
    drained = put(built(bp.Attention(heads=2, sink=True), 16), sink=1e9)
    assert not closed(x_BTD).any() and not drained(x_BTD).any()


@torch.no_grad()
def test_a_convolution_that_keeps_the_token_is_no_convolution():
    module = built(bp.Attention(heads=2, qkv_conv=3), 16, dtype=torch.float64)
    put(module, query_taps=0.0, key_taps=0.0, value_taps=0.0)
    for taps in (module.query_taps, module.key_taps, module.value_taps):
        taps[:, -1] = 1
    plain, x_BTD = like(module, bp.Attention(heads=2)), inputs(20, dtype=torch.float64)
    assert torch.allclose(module(x_BTD), plain(x_BTD), atol=1e-12)


@torch.no_grad()
def test_symmetric_scores_are_those_of_equal_queries_and_keys():
    module = built(bp.Attention(heads=2, symmetric=True), 16, dtype=torch.float64)
    plain, x_BTD = like(module, bp.Attention(heads=2)), inputs(20, dtype=torch.float64)
    plain.query.weight.copy_(plain.key.weight)
    assert torch.allclose(module(x_BTD), plain(x_BTD), atol=1e-12)


@torch.no_grad()
def test_shaped_attention_is_the_identity_at_infinite_temperature():
    module = built(bp.Attention(heads=2, shaped=1e12), 16, dtype=torch.float64)
    x_BTD = inputs(20, dtype=torch.float64)
    assert torch.allclose(module(x_BTD), module.out(module.value(x_BTD)), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_options_stay_finite_in_half_precision(dtype):
    for config in OPTIONS:
        assert built(config, 16, dtype=dtype)(10 * inputs(40, dtype=dtype)).isfinite().all(), config


def test_options_are_elastic_side_by_side():
    """Positions, gates and filters of one layer may all be choices: each holds tensors of its own."""
    attention = bp.Attention(heads=bp.choice(2, 4), head_dim=8, persistent=bp.choice(0, 2, 4),
                             position=bp.choice("rotary", "alibi", "t5", "fire", "m1", "m2", "m3", "m4", "transformer_xl"),
                             gate=bp.choice(None, "head", "channel"), qkv_conv=bp.choice(None, 2, 3))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(16, 32), head=bp.LanguageHead(),
                     body=bp.Block(attention))
    net, ids = bp.Supernet(space, seed=0), torch.randint(16, (2, 9))
    for seed in range(12):
        architecture = space.sample(seed)
        with torch.no_grad():
            assert torch.allclose(net.subnet(architecture)(ids), net.extract(architecture)(ids), atol=1e-5)


@pytest.mark.parametrize(("config", "text"), [
    (bp.Attention(position="t6"), "unknown position 't6'; did you mean 't5'"),
    (bp.Attention(position="t5", buckets=7), "buckets must be a multiple of 2 and fewer than reach at body[0].mixer: got 7"),
    (bp.Attention(position="t5", buckets=32, reach=16), "fewer than reach"),
    (bp.Attention(position="fire", bidirectional=True), "so keys must not be after it at body[0].mixer"),
    (bp.Attention(reach=1), "reach must be a whole number of at least 2 at body[0].mixer: got 1"),
    (bp.Attention(persistent=-1), "persistent must be a whole number of at least 0"),
    (bp.Attention(gate="heads"), "unknown gate 'heads'; did you mean 'head'"),
    (bp.Attention(weights="relu"), "unknown weights 'relu'"),
    (bp.Attention(clip_gamma=0.1), "stretched beyond 0 and 1 at body[0].mixer: got clip_gamma=0.1"),
    (bp.Attention(qkv_conv=0), "qkv_conv must be a whole number of at least 1 at body[0].mixer: got 0; use None"),
    (bp.Attention(qkv_conv=4, bidirectional=True), "qkv_conv must be odd where tokens look both ways"),
    (bp.Attention(shaped=0), "shaped is tau0, a positive number, at body[0].mixer: got 0"),
    (bp.Attention(weights="relu_norm", sink=True), "sink and clipping are of a softmax"),
    (bp.Attention(symmetric=True, kv_heads=2), "symmetric scores need a key of its own for every query"),
    (bp.Attention(reuse_kv=True, sink=True), "reuse_kv goes with plain softmax scores"),
])
def test_an_option_that_cannot_be_built_is_named_with_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, WHERE)
    assert text in str(caught.value)


def test_options_at_their_default_leave_label_and_module_alone():
    assert operator_label(bp.Attention(heads=2, position="rotary", persistent=0, gate=None)) == "Attention(heads=2)"
    assert type(bp.Attention(heads=2).build(8)).__name__ == "CausalAttention"


# -- relatives --------------------------------------------------------------------------------------------------------

RELATIVES = [
    bp.MixtureOfHeads(heads=4, shared_heads=1, top_k=2), bp.GINAttention(heads=2), bp.PositionalAttention(heads=4),
    bp.ManhattanAttention(heads=2), bp.ManhattanAttention(heads=2, decompose=False, inside=True),
    bp.SphericalAttention(heads=2, radius=0.7), bp.SphericalAttention(heads=2, grid="equiangular"),
    bp.CrossViewAttention(heads=2, views=3),
    bp.SingleHeadAttention(query_dim=4), bp.ChannelAttention(reach=128), bp.Activator(), bp.PointerHead(hidden=8),
    # Filters are short here: torch 2 on a CPU hangs in depthwise float16 convolutions of 17 taps.
    bp.SplitAttention(heads=2, kernel=5), bp.GatedAttentionUnit(chunk=16, query_dim=32, kernel=5),
    bp.DilatedFSMN(channels=16, order=3, kernel=5)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", RELATIVES, ids=operator_label)
@torch.no_grad()
def test_relatives_stay_finite_in_half_precision(config, dtype):
    module = built(config, 16, dtype=dtype).eval()
    for length in (1, 63, 100):
        assert module(10 * inputs(length, dtype=dtype)).isfinite().all(), length


@pytest.mark.parametrize("length", [2, 30])
@pytest.mark.parametrize("config", [c for c in OPTIONS + RELATIVES if c.kind != "head"], ids=operator_label)
def test_two_counters_of_multiply_adds_agree(config, length):
    module, x = built(config, 16).eval(), inputs(length, batch=1)
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9)


@torch.no_grad()
def test_all_heads_on_with_indifferent_routers_are_multi_head_attention():
    config = bp.MixtureOfHeads(heads=6, head_dim=24, shared_heads=2, top_k=4)
    module = put(built(config, 16, dtype=torch.float64), share__weight=0.0, route__weight=0.0, weigh__weight=0.0)
    for length in (1, 63, 100):
        x_BTD = inputs(length, dtype=torch.float64)
        assert torch.allclose(module(x_BTD), like(module, bp.Attention(heads=6, head_dim=24))(x_BTD), atol=1e-12)


@torch.no_grad()
def test_a_token_uses_its_shared_heads_and_top_k_others():
    gates = built(bp.MixtureOfHeads(heads=8, shared_heads=2, top_k=3), 16).gates(inputs(50))
    assert ((gates > 0).sum(-1) == 5).all() and (gates[..., :2] > 0).all()
    assert torch.allclose(gates[..., :2].sum(-1) / 2 + gates[..., 2:].sum(-1) / 3, torch.tensor(2.0))


@torch.no_grad()
def test_gin_without_its_own_node_and_with_identity_networks_is_attention():
    config = bp.GINAttention(heads=2, ratio=2)
    module = put(built(config, 16, dtype=torch.float64), epsilon=-1.0)
    # silu(x) - silu(-x) = x: two hidden units per entry give the identity.
    eye = torch.eye(8, dtype=torch.float64)
    module.up.copy_(torch.cat([eye, -eye]))
    module.down.copy_(torch.cat([eye, -eye], 1))
    x_BTD = inputs(63, dtype=torch.float64)
    assert torch.allclose(module(x_BTD), like(module, bp.Attention(heads=2))(x_BTD), atol=1e-12)


@torch.no_grad()
def test_a_threshold_of_zero_keeps_all_edges_and_a_high_one_leaves_the_node_alone():
    every, x_BTD = built(bp.GINAttention(heads=2), 16, dtype=torch.float64), inputs(20, dtype=torch.float64)
    assert torch.allclose(every(x_BTD), like(every, bp.GINAttention(heads=2, threshold=0.0))(x_BTD), atol=1e-12)
    cut = like(every, bp.GINAttention(heads=2, threshold=0.999999))
    assert torch.allclose(cut(x_BTD)[:, 5:], torch.cat([cut(x_BTD[:, :1]), cut(x_BTD)[:, 1:]], 1)[:, 5:])
    moved = x_BTD.clone()
    moved[:, 3] += 1
    assert torch.allclose(cut(moved)[:, 10:], cut(x_BTD)[:, 10:], atol=1e-5)


@torch.no_grad()
def test_closed_gates_leave_content_and_open_ones_start_as_a_convolution():
    x_BHWD = torch.randn(2, 6, 7, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    module = put(built(bp.PositionalAttention(heads=9, head_dim=4), 16, dtype=torch.float64), gate=-1e9)
    plain = like(module, bp.Attention(heads=9, head_dim=4, bidirectional=True, rotary=False))
    assert torch.allclose(module(x_BHWD), plain(x_BHWD.flatten(1, 2)).view(x_BHWD.shape), atol=1e-12)
    sharp = built(bp.PositionalAttention(heads=9, head_dim=4, strength=100.0), 16, dtype=torch.float64)
    put(sharp, gate=1e9, place=0.0)
    value, weight = sharp.value(x_BHWD).unflatten(-1, (9, 4)), sharp.out.weight.unflatten(1, (9, 4))
    wanted = sum(value[:, 1 + a:5 + a, 1 + b:6 + b, 3 * (a + 1) + b + 1] @ weight[:, 3 * (a + 1) + b + 1].T
                 for a in (-1, 0, 1) for b in (-1, 0, 1))
    assert torch.allclose(sharp(x_BHWD)[:, 1:5, 1:6], wanted, atol=1e-9)


@torch.no_grad()
def test_manhattan_attention_without_decay_is_attention_and_lines_are_all_pairs_of_a_line():
    x_BHWD = torch.randn(2, 5, 4, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options = dict(heads=2, first=60.0, span=0.0, rotary=False)
    module = put(built(bp.ManhattanAttention(**options, decompose=False), 16, dtype=torch.float64), taps=0.0)
    plain = like(module, bp.Attention(heads=2, bidirectional=True, rotary=False))
    assert torch.allclose(module(x_BHWD), plain(x_BHWD.flatten(1, 2)).view(x_BHWD.shape), atol=1e-9)
    line = x_BHWD.flatten(1, 2)[:, None]
    for inside in (False, True):
        pairs = built(bp.ManhattanAttention(heads=2, inside=inside, decompose=False), 16, dtype=torch.float64)
        lines = like(pairs, bp.ManhattanAttention(heads=2, inside=True, decompose=True))
        if inside:
            assert torch.allclose(pairs(line), lines(line), atol=1e-12)
        else:
            assert not torch.allclose(pairs(line), lines(line), atol=1e-3)


@torch.no_grad()
def test_nearer_tokens_count_more_under_manhattan_decay():
    module = put(built(bp.ManhattanAttention(heads=1, first=1.0, span=0.0, decompose=False, rotary=False), 4,
                       dtype=torch.float64), query__weight=0.0, taps=0.0)
    for name in ("value", "out"):
        getattr(module, name).weight.copy_(torch.eye(4))
    x_BHWD = torch.zeros(1, 5, 5, 4, dtype=torch.float64)
    x_BHWD[0, 2, 2, 0] = 25
    y = module(x_BHWD)[0, :, :, 0]
    assert torch.allclose(y, torch.tensor([[0.5 ** (abs(r - 2) + abs(c - 2)) for c in range(5)] for r in range(5)]).double())


@pytest.mark.parametrize("grid", ["cells", "equiangular"])
@pytest.mark.parametrize("rows", [1, 2, 9, 32])
def test_quadrature_weights_sum_to_the_sphere_and_integrate_what_they_should(rows, grid):
    from bodyplan.space.operators.spherical_attention import latitudes

    angles, weights = latitudes(rows, grid)
    assert sum(weights) == pytest.approx(2) and min(weights) > 0 and len(angles) == rows
    if grid == "equiangular" and rows > 2:
        assert sum(w * math.cos(a) ** 2 for a, w in zip(angles, weights, strict=True)) == pytest.approx(2 / 3)


@torch.no_grad()
def test_attention_on_the_sphere_does_not_change_when_the_grid_is_refined():
    """A constant query averages the values over the area, however many rows stand near a pole."""
    module = put(built(bp.SphericalAttention(heads=1), 4, dtype=torch.float64), query__weight=0.0)
    for name in ("value", "out"):
        getattr(module, name).weight.copy_(torch.eye(4))
    for rows, error in ((20, 1e-2), (40, 1e-3)):
        square_H = torch.tensor([math.cos(math.pi * (r + 0.5) / rows) ** 2 for r in range(rows)], dtype=torch.float64)
        mean = module(square_H[None, :, None, None].expand(1, rows, 8, 4))[0, 0, 0, 0]
        assert mean == pytest.approx(1 / 3, abs=error)


@torch.no_grad()
@pytest.mark.parametrize("views", [2, 3])
def test_each_view_reads_the_others_as_a_decoder_reads_an_encoders_memory(views):
    module = built(bp.CrossViewAttention(heads=2, views=views), 8, dtype=torch.float64)
    reader = built(bp.CrossAttention(heads=2), 8, dtype=torch.float64)
    reader.load_state_dict(module.state_dict())
    parts = torch.randn(2, views, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind(1)
    wanted = [reader(part, {"memory": torch.cat([p for p in parts if p is not part], 1)}) for part in parts]
    assert torch.allclose(module(torch.cat(parts, 1)), torch.cat(wanted, 1), atol=1e-12)
    turned = [*parts[1:], parts[0]]
    assert torch.allclose(module(torch.cat(turned, 1)), torch.cat([*wanted[1:], wanted[0]], 1), atol=1e-12)


@torch.no_grad()
def test_a_radius_of_half_a_turn_sees_all_and_a_small_one_only_neighbours():
    x_BHWD = torch.randn(1, 6, 8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = built(bp.SphericalAttention(heads=2), 16, dtype=torch.float64)
    assert torch.allclose(whole(x_BHWD), like(whole, bp.SphericalAttention(heads=2, radius=torch.pi))(x_BHWD), atol=1e-12)
    near = like(whole, bp.SphericalAttention(heads=2, radius=0.8))
    moved = x_BHWD.clone()
    moved[0, 3, 7] += 1
    apart = (near(moved) - near(x_BHWD)).abs().sum(-1)[0] > 1e-9
    assert apart[3, 0] and apart[3, 6] and not apart[3, 3] and not apart[0, 3]


@torch.no_grad()
def test_channels_that_pass_by_reach_the_output_unmixed():
    module = built(bp.SingleHeadAttention(ratio=0.25, query_dim=4), 16, dtype=torch.float64).eval()
    x_BTD = inputs(9, dtype=torch.float64).abs()
    moved = x_BTD.clone()
    moved[:, 3, 10] += 1
    apart = (module(moved) - module(x_BTD)).abs().sum(-1) > 1e-12
    assert apart[:, 3].all() and apart.sum() == 2
    moved[:, 3, 1] += 1
    assert ((module(moved) - module(x_BTD)).abs().sum(-1) > 1e-12).sum() > 2


@torch.no_grad()
def test_a_split_with_a_silent_path_is_the_other_path():
    module = put(built(bp.SplitAttention(heads=2, rotary=True), 16, dtype=torch.float64), taps=0.0)
    x_BTD = inputs(63, dtype=torch.float64)
    plain = like(module, bp.Attention(heads=2, head_dim=4, bidirectional=True))
    assert torch.allclose(module(x_BTD), plain(x_BTD), atol=1e-12)


@torch.no_grad()
def test_a_small_sepformer_loops_one_split_layer():
    layer = bp.Block(mixer=bp.SplitAttention(heads=2, kernel=5), channel=bp.MLP())
    space = bp.Space(embed=bp.FrameEmbedding(features=4, stack=1), width=16, head=bp.ClassifierHead(classes=3),
                     body=bp.Looped((layer,), bp.Loop(times=4)))
    once = bp.Space(embed=bp.FrameEmbedding(features=4, stack=1), width=16, head=bp.ClassifierHead(classes=3), body=(layer,))
    assert space.sample(0).cost().parameters == once.sample(0).cost().parameters


@torch.no_grad()
def test_channels_are_mixed_and_their_order_does_not_matter():
    module = built(bp.ChannelAttention(reach=20, query_dim=4), 8, dtype=torch.float64)
    x_BTD = inputs(20, 8, dtype=torch.float64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(module(x_BTD[..., order]), module(x_BTD)[..., order], atol=1e-12)
    with pytest.raises(ValueError, match="at most `reach` tokens: got 21 and 20"):
        module(inputs(21, 8, dtype=torch.float64))


@torch.no_grad()
def test_a_gated_unit_of_one_chunk_sees_the_same_as_of_many_but_for_the_near_part():
    x_BTD = inputs(30, dtype=torch.float64)
    module = built(bp.GatedAttentionUnit(chunk=30, query_dim=8, kernel=3, rotary=2), 16, dtype=torch.float64)
    module.scale[0], module.offset[0] = 0, 0                   # near queries say nothing
    many = like(module, bp.GatedAttentionUnit(chunk=7, query_dim=8, kernel=3, rotary=2))
    assert torch.allclose(module(x_BTD), many(x_BTD), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("config", [bp.GatedAttentionUnit(chunk=64, query_dim=16, rotary=4), bp.DilatedFSMN(channels=16)],
                         ids=operator_label)
@torch.no_grad()
def test_mossformer_is_linear_and_finite_at_16384_tokens(config):
    from bodyplan.testing import count_macs

    module = built(config, 16)
    assert module(inputs(16384, batch=1)).isfinite().all()
    with torch.device("meta"):
        meta = config.build(16)
        counts = [count_macs(meta, torch.empty(1, n, 16)) for n in (4096, 16384)]
    assert counts[1] == pytest.approx(4 * counts[0], rel=1e-3)


@torch.no_grad()
def test_a_memory_without_taps_leaves_the_gates():
    module = put(built(bp.DilatedFSMN(channels=8), 16, dtype=torch.float64), taps=0.0, shift=0.0)
    x_BTD = inputs(20, dtype=torch.float64)
    h = module.input(x_BTD)
    h = module.input_norm(torch.where(h > 0, h, 0.25 * h))
    assert torch.allclose(module(x_BTD), module.out(module.out_norm(module.to_v(h) * module.to_u(h) + h)), atol=1e-12)


@torch.no_grad()
def test_a_memory_filter_steps_over_tokens():
    module = built(bp.DilatedFSMN(channels=8, order=3, kernel=1), 16, dtype=torch.float64)
    x_BTC = torch.zeros(1, 40, 8, dtype=torch.float64)
    x_BTC[0, 20] = 1
    for step in (1, 2, 4):
        y_BTC = module.filtered(x_BTC, torch.ones(8, 5, dtype=torch.float64), step)
        assert y_BTC[0, :, 0].nonzero().flatten().tolist() == [20 + step * n for n in (-2, -1, 0, 1, 2)]


@torch.no_grad()
def test_an_activator_sees_each_token_alone():
    module, x_BTD = built(bp.Activator(), 16), inputs(9)
    assert torch.allclose(module(x_BTD)[:, 4:5], module(x_BTD[:, 4:5]), atol=1e-6)


@torch.no_grad()
def test_a_pointer_gives_as_many_classes_as_tokens():
    for length in (1, 63, 100):
        scores = built(bp.PointerHead(hidden=8), 16)(inputs(length))
        back = built(bp.PointerHead(hidden=8, backwards=True), 16)(inputs(length)).softmax(-1)
        assert scores.shape == (2, length, length) and torch.equal(back.tril(), back)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=16, head=bp.PointerHead(hidden=8),
                     body=(bp.Block(mixer=bp.Attention(heads=2, bidirectional=True)),))
    assert space.sample(0).build()(torch.randint(16, (2, 7))).shape == (2, 7, 7)


@pytest.mark.parametrize(("config", "text"), [
    (bp.MixtureOfHeads(heads=4, shared_heads=2, top_k=3), "must not exceed heads at body[0].mixer: got 2 and 3 of 4; use 2"),
    (bp.MixtureOfHeads(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.GINAttention(threshold=1.0), "threshold is a weight of attention"),
    (bp.GINAttention(heads=2, head_dim=5), "head_dim must be even"),
    (bp.PositionalAttention(strength=-1), "strength must be a number of at least 0"),
    (bp.ManhattanAttention(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ManhattanAttention(first=0), "first must be above 0 and span at least 0"),
    (bp.CrossViewAttention(views=1), "views must be a whole number of at least 2 at body[0].mixer: got 1; use Attention("),
    (bp.SphericalAttention(grid="cell"), "unknown grid 'cell'; did you mean 'cells'"),
    (bp.SphericalAttention(radius=4), "radius is an angle above 0 and at most pi at body[0].mixer: got 4"),
    (bp.SingleHeadAttention(ratio=1), "leave channels that pass by at body[0].mixer: got 1 of 64"),
    (bp.SplitAttention(share=1.0), "share must leave channels to both paths"),
    (bp.SplitAttention(heads=2, share=0.3), "heads must divide the channels that attend at body[0].mixer: got 2 and 19"),
    (bp.SplitAttention(kernel=4), "kernel must be odd"),
    (bp.ChannelAttention(reach=0), "reach must be a whole number"),
    (bp.GatedAttentionUnit(query_dim=16, rotary=9), "rotary pairs must fit into query_dim at body[0].mixer: got 9 and 16"),
    (bp.DilatedFSMN(order=0), "order must be a whole number"),
    (bp.Activator(ratio=0), "ratio must be a positive number"),
    (bp.PointerHead(hidden=0), "hidden must be a whole number"),
])
def test_a_relative_that_cannot_be_built_is_named_with_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, WHERE)
    assert text in str(caught.value)


# -- layers that remember ---------------------------------------------------------------------------------------------

TEXT = {"embed": bp.TokenEmbedding(vocab=32), "head": bp.LanguageHead(tied=False)}
IMAGE = {"embed": bp.PatchEmbedding(patch=4, image=28, grid=True), "head": bp.ClassifierHead(classes=3)}
MEMORIES = {
    "mixed layers": [bp.LayerMixAttention(heads=4, kv_heads=2)] * 4,
    "mixed layers in windows": [bp.LayerMixAttention(heads=2, window=w, rotary=False) for w in (None, 4, 6)],
    "skipped layers": [bp.SkipAttention(heads=4, offset=2, skipped=3)] * 5,
    "skipped groups in windows": [bp.SkipAttention(heads=4, kv_heads=2, offset=1, skipped=1, window=4)] * 3,
}


def stacked(mixers, residual=None):
    """The operators of a stack as it places them."""
    items = [bp.Block(mixer=mixer) for mixer in mixers]
    return [item.mixer for item in (residual or bp.LayerMemory()).rewritten(items, 16)]


def through(modules, x, states=None):
    """A residual stream of layers that share: outputs and the states after them."""
    shared, after = {}, []
    for module, state in zip(modules, states or [None] * len(modules), strict=True):
        y, new = module.step(x, state, shared)
        x = x + y
        after.append(new)
    return x, after


def remembered(configs, weights, x):
    """Both papers' formulas, layer by layer, with plain lists of every layer's keys and values."""
    memory = []
    for config, w in zip(configs, weights, strict=True):
        kv_heads, per_group, size = config.plain.sizes(x.shape[-1])
        q = (x @ w["query.weight"].T).unflatten(-1, (config.heads, size))
        k, v = ((x @ w[f"{name}.weight"].T).unflatten(-1, (-1, size)) for name in ("key", "value"))
        q, k = (turned(q, 10000.0), turned(k, 10000.0)) if config.rotary else (q, k)
        if isinstance(config, bp.SkipAttention):
            if config.borrows:
                k, v = (torch.cat([own, held[:, :, kv_heads - config.skipped:]], 2)
                        for own, held in zip((k, v), memory[-config.offset], strict=True))
            memory.append((k, v))
        else:
            memory.append((k, v))
            if config.before:
                k, v = (torch.stack([part[:, :, g] + sum(w["own"][g, h] * part[:, :, h] for h in range(kv_heads))
                                     + sum(w["earlier"][g, layer, h] * memory[layer][at][:, :, h]
                                           for layer in range(config.before) for h in range(kv_heads))
                                     for g in range(kv_heads)], 2) for at, part in enumerate((k, v)))
        k, v = k.repeat_interleave(per_group, 2), v.repeat_interleave(per_group, 2)
        x = x + plain_heads(q, k, v, config.window, False).flatten(2) @ w["out.weight"].T
    return x


@pytest.mark.parametrize("name", MEMORIES)
def test_layers_that_remember_are_their_papers_formula(name):
    configs = stacked(MEMORIES[name])
    modules = [built(config, 16, seed=i, dtype=torch.float64) for i, config in enumerate(configs)]
    x = inputs(11, dtype=torch.float64).requires_grad_()
    ours, theirs = through(modules, x)[0], remembered(configs, [dict(m.named_parameters()) for m in modules], x)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    leaves, mask = [x, *(p for m in modules for p in m.parameters())], inputs(11, seed=3, dtype=torch.float64)
    for mine, wanted in zip(*(torch.autograd.grad((y * mask).sum(), leaves) for y in (ours, theirs)), strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", MEMORIES)
@torch.no_grad()
def test_layers_that_remember_decode_as_they_prefill_and_hold_what_they_say(name):
    configs = stacked(MEMORIES[name])
    modules, x_BTD = [built(config, 16, seed=i) for i, config in enumerate(configs)], inputs(12)
    whole, _ = through(modules, x_BTD)
    states, pieces = [module.init_state(2) for module in modules], []
    for piece in x_BTD.split([5, 1, 1, 3, 1, 1], 1):
        y, states = through(modules, piece, states)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    for config, state in zip(configs, states, strict=True):
        assert state["key"].numel() + state["value"].numel() == 2 * config.state_numel(16, 12)
    for config in configs:
        assert config.axes(16).keys() == dict(config.build(16).named_parameters()).keys()
        assert all(tuple(p.shape) == config.axes(16)[n].shape for n, p in config.build(16).named_parameters())


@torch.no_grad()
def test_a_stack_counts_the_layers_that_remember_and_leaves_others():
    mixers = [bp.Attention(heads=2), bp.LayerMixAttention(heads=2), bp.ShortConv(), bp.LayerMixAttention(heads=2)]
    assert [getattr(m, "before", None) for m in stacked(mixers)] == [None, 0, None, 1]
    skips = stacked([bp.SkipAttention(offset=2, skipped=3)] * 4)
    assert [m.borrows for m in skips] == [0, 0, 3, 3]
    assert skips[3].macs(64, 100) < skips[0].macs(64, 100)
    assert skips[3].state_numel(64, 100) * 4 == skips[0].state_numel(64, 100)


@torch.no_grad()
def test_mixing_in_nothing_is_plain_attention():
    configs = stacked([bp.LayerMixAttention()] * 3)
    modules = [built(config, 16, seed=i, dtype=torch.float64) for i, config in enumerate(configs)]
    for module in modules[1:]:
        put(module, own=0.0, earlier=0.0)
    plain, x_BTD = [like(module, bp.Attention()) for module in modules], inputs(63, dtype=torch.float64)
    assert torch.allclose(through(modules, x_BTD)[0], through(plain, x_BTD)[0], atol=1e-12)


@torch.no_grad()
def test_a_layer_that_borrows_all_but_one_head_from_itself_a_layer_ago_is_grouped_by_it():
    """Where both layers project keys alike and the stream has not moved, borrowing changes nothing."""
    first, second = (built(config, 16, seed=1, dtype=torch.float64)
                     for config in stacked([bp.SkipAttention(heads=4, offset=1, skipped=3)] * 2))
    second.key.weight.copy_(first.key.weight[:4])
    second.value.weight.copy_(first.value.weight[:4])
    for name in ("query", "out"):
        getattr(second, name).weight.copy_(getattr(first, name).weight)
    shared, x_BTD = {}, inputs(63, dtype=torch.float64)
    assert torch.allclose(first(x_BTD, shared), second(x_BTD, shared), atol=1e-12)


@pytest.mark.parametrize("mixer", [bp.LayerMixAttention(heads=bp.choice(2, 4), kv_heads=2, head_dim=4),
                                   bp.SkipAttention(heads=4, head_dim=4, offset=1, skipped=bp.choice(1, 2))])
@torch.no_grad()
def test_memories_are_searched_in_one_supernet(mixer):
    layer = bp.Block(mixer=mixer, channel=bp.MLP(ratio=1))
    body = bp.Stack(bp.repeat(layer, times=bp.integer(1, 4)), bp.LayerMemory())
    space = bp.Space(width=bp.choice(16, 32), body=body, **TEXT)
    net, ids, ran = bp.Supernet(space, seed=0), torch.randint(16, (2, 9)), 0
    for seed in range(10):
        architecture = space.sample(seed)
        try:
            wanted = architecture.build(seed=0)(ids)
        except ValueError as error:                            # layers that differ in sizes say so
            assert "LayerMemory()" in str(error)
            continue
        ran += 1
        assert wanted.shape == (2, 9, 32)
        assert torch.allclose(net.subnet(architecture)(ids), net.extract(architecture)(ids), atol=1e-5)
    assert ran > 5


@torch.no_grad()
def test_forward_cross_attention_without_scale_adds_keys_that_are_the_same_for_all():
    first, second = (built(config, 16, seed=i, dtype=torch.float64)
                     for i, config in enumerate(stacked([bp.ForwardCrossAttention(heads=2)] * 2)))
    x_BHWD, shared = torch.randn(2, 6, 5, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64), {}
    x_BHWD = x_BHWD + first(x_BHWD, shared)
    second.bias.fill_(-1e9)                                    # cross tokens that nobody looks at
    plain = like(second, bp.Attention(heads=2, bidirectional=True, rotary=False))
    assert torch.allclose(second(x_BHWD, shared), plain(x_BHWD.flatten(1, 2)).view(x_BHWD.shape), atol=1e-12)


def test_forward_cross_attention_is_its_formula():
    configs = stacked([bp.ForwardCrossAttention(heads=2, kernel=3, stride=2)] * 3)
    modules = [built(config, 8, seed=i, dtype=torch.float64) for i, config in enumerate(configs)]
    x = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shared, ours, theirs, crosses = {}, x, x, []
    for module in modules:
        w, before = dict(module.named_parameters()), theirs
        ours = ours + module(ours, shared)
        tokens = before.flatten(1, 2)
        scaled = [w["scale"][n] * cross(made, w_next["taps"]) for n, (made, w_next) in enumerate(
            zip(crosses, [dict(m.named_parameters()) for m in modules[1:]], strict=False))] if crosses else []
        more = [normed(w, "norm", part) for part in scaled]
        everything = torch.cat([tokens, *more], 1)
        q, k, v = (linear(w, n, part).unflatten(-1, (2, -1)) for n, part in
                   (("query", tokens), ("key", everything), ("value", everything)))
        biases = [w["bias"][n].expand(part.shape[1], 2) for n, part in enumerate(more)]
        bias = torch.cat([torch.zeros(20, 2, dtype=torch.float64), *biases])
        score = (torch.einsum("bthp,bshp->bhts", q, k) / 2 + bias.T[:, None]).softmax(-1)
        y = linear(w, "out", torch.einsum("bhts,bshp->bthp", score, v).flatten(2)).view(x.shape)
        crosses.append(before + y)
        theirs = before + y
    assert torch.allclose(ours, theirs, atol=1e-9)


def cross(x, taps):
    """A depthwise filter every second place, place by place."""
    kernel, tokens = taps.shape[-1], []
    for r in range(0, x.shape[1], 2):
        for c in range(0, x.shape[2], 2):
            places = [(a, b, r + a - kernel // 2, c + b - kernel // 2) for a in range(kernel) for b in range(kernel)]
            tokens.append(sum(taps[:, a, b] * x[:, i, j] for a, b, i, j in places
                              if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]))
    return torch.stack(tokens, 1)


def stage_of_fca(times, side=5, width=8):
    """Attention and enhancement of so many layers, with weights that are not their starting values."""
    from bodyplan.space.presets.fcaformer import layer

    blocks = [part for n in range(times) for part in layer(2, side, n + 1 < times, ratio=1, scale=0.5)]
    stack = bp.Stack(tuple(blocks), bp.LayerMemory()).build(width).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).abs())
    return stack.eval()


def test_a_stage_of_fcaformer_is_its_formulas():
    """Layer by layer, pair by pair: distances, scaled and biased cross tokens, enhancement in the place of the stream."""
    stack, crosses = stage_of_fca(3), []
    x = torch.randn(2, 5, 5, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    y = x
    for looking, enhance, feed in zip(stack.layers[::3], stack.layers[1::3], stack.layers[2::3], strict=True):
        op, w = looking.mixer.op, dict(looking.mixer.op.named_parameters())
        tokens = looking.mixer.norm(y).flatten(1, 2)
        more = [torch.nn.functional.layer_norm(w["scale"][n][:, None] * part, (8,), w["norm.weight"], w["norm.bias"])
                for n, part in enumerate(crosses)]
        q, k, v = ((part @ w[f"{name}.weight"].T).unflatten(-1, (2, 4)) for name, part in (
            ("query", tokens), ("key", torch.cat([tokens, *more], 1)), ("value", torch.cat([tokens, *more], 1))))
        bias = torch.stack([torch.stack([w["distance"][:, abs(i // 5 - j // 5), abs(i % 5 - j % 5)] for j in range(25)] + [
            w["bias"][n, s] for n in range(len(more)) for s in range(more[n].shape[1])]) for i in range(25)])
        score = torch.einsum("bthp,bshp->bhts", q, k) / 2 + bias.permute(2, 0, 1)
        given = torch.einsum("bhts,bshp->bthp", score.softmax(-1), v).flatten(2) @ w["out.weight"].T
        y = y + looking.mixer.join.weight * given.view(y.shape)
        if enhance.mixer.op.merging is not None:
            conv = torch.nn.functional.conv2d(y.permute(0, 3, 1, 2), enhance.mixer.op.merging[:, None], stride=4, padding=3,
                                              groups=8)
            crosses.append(conv.flatten(2).mT)
            assert crosses[-1].shape[1] == op.scale.shape[1] if op.scale is not None else True
        filtered = torch.nn.functional.conv2d(y.permute(0, 3, 1, 2), enhance.mixer.op.taps[:, None], padding=1, groups=8)
        norm = enhance.mixer.op.norm
        y = ((filtered.permute(0, 2, 3, 1) - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias)
        y = y + feed.channel.join.weight * feed.channel.op(feed.channel.norm(y))
    assert len(crosses) == 2 and crosses[0].shape[1] == 4
    ours = stack(x)
    assert torch.allclose(ours, y, atol=1e-9)
    wanted = [x, *stack.parameters()]
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), [p for p in wanted if p.requires_grad], retain_graph=True,
                                          allow_unused=True) for out in (ours, y)), strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-8))


@torch.no_grad()
def test_cross_tokens_that_nobody_looks_at_and_no_distances_leave_plain_attention():
    stack = stage_of_fca(2, width=16)
    second = stack.layers[3].mixer.op
    second.bias.fill_(-1e9)
    second.distance.zero_()
    plain = like(second, bp.Attention(heads=2, bidirectional=True, rotary=False))
    x = torch.randn(2, 5, 5, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    shared = {"layers": [torch.randn(2, 4, 16, dtype=torch.float64)]}
    assert torch.allclose(second(x, shared), plain(x.flatten(1, 2)).view(x.shape), atol=1e-12)


def test_every_weight_of_a_forward_cross_stack_takes_part_and_costs_what_torch_counts():
    layer = bp.Block(mixer=bp.ForwardCrossAttention(heads=2), channel=bp.MLP(ratio=1))
    architecture = bp.Space(width=16, body=bp.Stack((layer,) * 3, bp.LayerMemory()), **IMAGE).sample(0)
    model = architecture.build(seed=0)
    images = torch.rand(2, 1, 28, 28)
    model(images).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert architecture.cost().macs == macs_thop(model.eval(), images[:1])
    assert architecture.cost().macs == pytest.approx(macs_flop_counter(model, images[:1]), rel=1e-9)


@pytest.mark.parametrize("mixer", [bp.LayerMixAttention(before=1), bp.SkipAttention(before=2),
                                   bp.ForwardCrossAttention(before=1), bp.FcaAttention(before=1)], ids=operator_label)
def test_a_layer_that_remembers_nothing_says_where_it_belongs(mixer):
    with pytest.raises(ValueError, match="LayerMemory()"):
        built(mixer, 16)(inputs(9))


def test_what_cannot_be_skipped_is_named():
    with pytest.raises(ValueError, match="skipped must leave a key/value head of the layer's own at here: got 2 of 2"):
        bp.SkipAttention(heads=4, kv_heads=2, skipped=2).check(16, "here")


@torch.no_grad()
def test_an_option_on_scores_keeps_its_layer_out_of_shared_keys():
    plain = bp.Attention()
    mixers = stacked([plain, plain, bp.Attention(sink=True), plain, plain], bp.CrossLayerKV(3))
    assert [m.reuse_kv for m in mixers] == [False, True, False, False, True]


# -- spans of attention -----------------------------------------------------------------------------------------------

def test_masformer_bounds_how_many_layers_see_everything():
    space = bp.presets.masformer.space(full=2)
    spans = [[block.mixer.window for block in space.sample(seed).plan.layers] for seed in range(40)]
    assert max(each.count(None) for each in spans) == 2 and {each.count(None) for each in spans} == {0, 1, 2}
    assert len({each.index(None) for each in spans if None in each}) > 2
    assert [block.mixer.window for block in bp.presets.masformer.fixed().plan.layers] == [None, 32, 32, 32]


def test_masformer_costs_less_than_half_of_full_attention_on_long_texts():
    from bodyplan.space.presets.masformer import block

    full = bp.Space(embed=bp.TokenEmbedding(256), width=64, body=(block(2, None),) * 4, head=bp.LanguageHead()).sample(0)
    assert 2 * bp.presets.masformer.fixed("tiny").cost(length=16384).macs < full.cost(length=16384).macs


# -- without the package ----------------------------------------------------------------------------------------------

EXPORTED = {
    "mixed layers": (TEXT, MEMORIES["mixed layers"]), "skipped layers": (TEXT, MEMORIES["skipped layers"]),
    "cross tokens": (IMAGE, [bp.ForwardCrossAttention(heads=2)] * 3)}


def test_stacks_that_remember_and_options_compute_the_same_without_the_package(tmp_path):
    found = {name: bp.Space(width=16, body=bp.Stack(tuple(bp.Block(mixer=m, channel=bp.MLP(ratio=1)) for m in mixers),
                                                    bp.LayerMemory()), **ends).sample(0)
             for name, (ends, mixers) in EXPORTED.items()}
    some = [bp.Attention(heads=4, kv_heads=2, position=p, reach=5, qkv_conv=3) for p in ("alibi", "fire", "m3", "m4")]
    options = tuple(bp.Block(mixer=config) for config in (*some, bp.Attention(heads=2, shaped=0.5, sink=True, window=4)))
    found["options"] = bp.Space(width=16, body=options, **TEXT).sample(0)
    root = export_all(tmp_path, found)
    verdicts = judged(root, found)
    for name in found:
        assert_equal_to_the_module(verdicts[name], root, name)
        assert_tidy(model_text(root, name))


# -- windows in linear time --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("bidirectional", "before"), [(False, 0), (False, 1), (False, 6), (False, 40), (True, 0)])
@pytest.mark.parametrize("length", [15, 21, 63, 100])
def test_a_window_in_blocks_is_a_window_as_a_mask(length, before, bidirectional):
    q, k, v = (inputs(size, heads * 24, dtype=torch.float64, seed=heads).unflatten(-1, (heads, 24)).requires_grad_()
               for size, heads in ((length, 4), (length + before, 2), (length + before, 2)))
    y = attend(q, k, v, 7, bidirectional)
    mask = visible(length, length + before, 7, bidirectional, y.device)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(y, wanted)
    ours, theirs = (torch.autograd.grad((each * wanted.detach()).sum(), (q, k, v), retain_graph=True) for each in (y, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("before", [0, 5, 40])
@pytest.mark.parametrize("config", [
    bp.Attention(heads=4, kv_heads=2, window=7, position="t5", reach=12, buckets=4, sink=True),
    bp.Attention(heads=4, window=20, position="alibi", shaped=0.5), bp.Attention(heads=2, window=9, temperature=True,
                                                                               persistent=3)])
def test_scores_in_blocks_are_scores_of_all_pairs(config, before):
    module = built(config, 16, dtype=torch.float64)
    q, k, v = (inputs(size, 16, dtype=torch.float64, seed=size).unflatten(-1, (module.heads, -1))
               for size in (150, 150 + before, 151 + before))
    k, v = k[:, :, :module.kv_heads], v[:, 1:, :module.kv_heads]
    torch.testing.assert_close(module.attend(q, k, v, before), module.attend_block(q, k, v, before))
