"""Softmax attention's options and relatives: what ties each to plain attention, what its paper promises, and errors."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
from bodyplan.space.graph import operator_label
from bodyplan.space.operators.relative_position import bucket_bounds, slopes
from bodyplan.testing import built, check_causality, check_costs, check_reference, check_state, check_streaming
from operator_examples.softmax_attention import alibi_slopes, attention, t5_bucket

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
