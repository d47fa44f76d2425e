"""Attention both ways, with norms, across layers and to a memory; the Conformer's convolution."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.space.graph import operator_label
from bodyplan.testing import built, check_causality, check_elasticity, check_reference, check_streaming, count_macs

torch.set_num_threads(1)


def rms(x, gain):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def turned(x_BTHP, base):
    """Rotary positions as complex numbers."""
    length, half = x_BTHP.shape[1], x_BTHP.shape[-1] // 2
    angle = torch.tensor([[t * base ** (-i / half) for i in range(half)] for t in range(length)], dtype=torch.float64)
    z = torch.complex(x_BTHP[..., :half], x_BTHP[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([z.real, z.imag], -1)


def attention(w, config, x, kv=None, first=None, publish=None):
    """Pair by pair. kv: keys and values of an earlier layer; first: values to mix in."""
    (batch, length, _), (groups, per_group, size) = x.shape, config.sizes(x.shape[-1])
    q = (x @ w["query.weight"].T).view(batch, length, config.heads, size)
    if kv is None:
        k, v = ((x @ w[f"{n}.weight"].T).view(batch, length, groups, size) for n in ("key", "value"))
        k = rms(k, w["key_norm.weight"]) if config.qk_norm else k
        k = turned(k, config.rope_base) if config.rotary else k
        raw = v
        if config.value_residual:
            v = w["mix"][0] * v + w["mix"][1] * (v if first is None else first)
    else:
        (k, v), raw = kv, None
    q = rms(q, w["query_norm.weight"]) if config.qk_norm else q
    q = turned(q, config.rope_base) if config.rotary else q
    if publish is not None:
        publish.update(kv=(k, v), raw=raw)
    rows = []
    for t in range(length):
        reach = config.window or length
        seen = [s for s in range(length) if abs(t - s) < reach and (config.bidirectional or s <= t)]
        heads = []
        for h in range(config.heads):
            keys, values = k[:, seen, h // per_group], v[:, seen, h // per_group]
            weights = ((q[:, t, h, None] * keys).sum(-1) / math.sqrt(size)).softmax(-1)
            heads.append((weights[..., None] * values).sum(1))
        rows.append(torch.cat(heads, -1))
    return torch.stack(rows, 1) @ w["out.weight"].T


@pytest.mark.parametrize("config", [
    bp.Attention(heads=2, bidirectional=True), bp.Attention(heads=4, kv_heads=2, bidirectional=True, window=3),
    bp.Attention(heads=2, rotary=False), bp.Attention(heads=2, window=4, rotary=False, qk_norm=True),
    bp.Attention(heads=2, kv_heads=1, qk_norm=True)], ids=operator_label)
def test_attention_with_options_is_its_formula(config):
    check_reference(config, 8, attention)


@torch.no_grad()
def test_bidirectional_attention_is_blind_to_order_without_positions():
    module, x_BTD = built(bp.Attention(heads=2, bidirectional=True, rotary=False), 8), torch.randn(2, 9, 8)
    order = torch.randperm(9)
    assert torch.allclose(module(x_BTD)[:, order], module(x_BTD[:, order]), atol=1e-6)


def test_what_looks_ahead_says_so():
    both, causal = bp.Attention(heads=2, bidirectional=True), bp.Attention(heads=2)
    assert (causal.causal, causal.streaming, both.causal, both.streaming) == (True, True, False, False)
    assert both.state_numel(8, 100) == 0
    assert (bp.ConformerConv().causal, bp.ConformerConv(norm="layer", bidirectional=False).causal) == (False, True)


@pytest.mark.parametrize("config", [
    bp.Attention(heads=2, bidirectional=True), bp.Attention(heads=4, kv_heads=1, bidirectional=True, rotary=False)],
    ids=operator_label)
def test_macs_of_attention_both_ways_are_what_torch_counts(config):
    with torch.device("meta"):
        counted = count_macs(config.build(16), torch.empty(1, 50, 16))
    assert config.macs(16, 50) == counted


@pytest.mark.parametrize(("length", "window"), [(1, 1), (7, 3), (7, 7), (5, 9), (6, None)])
def test_visible_pairs_are_the_pairs_that_see_each_other(length, window):
    pairs = [(t, s) for t in range(length) for s in range(length) if abs(t - s) < (window or length)]
    assert bp.Attention(window=window, bidirectional=True).visible_pairs(length) == len(pairs)
    assert bp.Attention(window=window).visible_pairs(length) == sum(s <= t for t, s in pairs)


def test_new_options_leave_old_hashes_alone():
    assert operator_label(bp.Attention(heads=2)) == "Attention(heads=2)"
    assert operator_label(bp.PatchEmbedding(patch=2)) == "PatchEmbedding(patch=2)"


def test_options_are_elastic():
    check_elasticity([(bp.Attention(heads=4, kv_heads=2, qk_norm=True), 32),
                      (bp.Attention(heads=2, kv_heads=1, head_dim=8, qk_norm=True), 16),
                      (bp.Attention(heads=2, head_dim=4, qk_norm=True), 16)])


# -- across layers -------------------------------------------------------------------------------------------------

LAYERS = {
    "value residual": (bp.Attention(heads=4, kv_heads=2), bp.Attention(heads=4, kv_heads=2, value_residual=True),
                       bp.Attention(heads=2, kv_heads=2, head_dim=4, window=3, value_residual=True)),
    "value residual everywhere": (bp.Attention(heads=2, value_residual=True),) * 3,
    "keys and values of the layer before": (
        bp.Attention(heads=4, kv_heads=2), bp.Attention(heads=2, kv_heads=2, head_dim=4, reuse_kv=True),
        bp.Attention(heads=4, kv_heads=2, qk_norm=True),
        bp.Attention(heads=4, kv_heads=2, qk_norm=True, reuse_kv=True)),
    "windows": (bp.Attention(heads=2, window=4), bp.Attention(heads=2, reuse_kv=True),
                bp.Attention(heads=2, window=2, reuse_kv=True)),
    "no positions": (bp.Attention(heads=2, rotary=False), bp.Attention(heads=2, rotary=False, reuse_kv=True)),
    "values of the first, keys and values of the second": (
        bp.Attention(heads=2), bp.Attention(heads=2, value_residual=True), bp.Attention(heads=2, reuse_kv=True)),
}


def through(modules, x, states=None):
    """A residual stream of attention layers that share: outputs and the states after them."""
    shared, after = {}, []
    for module, state in zip(modules, states or [None] * len(modules), strict=True):
        y, new = module.step(x, state, shared)
        x = x + y
        after.append(new)
    return x, after


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_share_are_their_papers_formula(name):
    configs = LAYERS[name]
    modules = [built(config, 16, seed=i, dtype=torch.float64) for i, config in enumerate(configs)]
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x.requires_grad_()
    ours, theirs, held, first, reach = through(modules, x)[0], x, None, None, None
    for config, module in zip(configs, modules, strict=True):
        published = {}
        reach = config.window if not config.reuse_kv else min([w for w in (reach, config.window) if w], default=None)
        y = attention(dict(module.named_parameters()), bp.Attention(**{**vars(config), "window": reach}), theirs,
                      held if config.reuse_kv else None, first, published)
        held, theirs = published["kv"], theirs + y
        reach = reach if config.reuse_kv else config.window
        first = published["raw"] if first is None else first
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    leaves = [x, *(p for module in modules for p in module.parameters())]
    mask = torch.randn(x.shape, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    for mine, wanted in zip(*(torch.autograd.grad((y * mask).sum(), leaves) for y in (ours, theirs)), strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-7, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_share_decode_as_they_prefill(name):
    modules = [built(config, 16, seed=i) for i, config in enumerate(LAYERS[name])]
    x_BTD = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(9))
    whole, _ = through(modules, x_BTD)
    states, pieces = [module.init_state(2) for module in modules], []
    for piece in x_BTD.split([5, 1, 1, 3, 1, 1], 1):
        y, states = through(modules, piece, states)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


@torch.no_grad()
def test_publishing_changes_no_bit_of_a_plain_layer():
    module, x_BTD, shared = built(bp.Attention(heads=4, kv_heads=2), 16), torch.randn(2, 9, 16), {}
    assert torch.equal(module(x_BTD), module(x_BTD, shared))
    keys, values, start, window = shared["kv"]
    assert keys.shape == values.shape == (2, 9, 2, 4) and (start, window) == (0, None)
    assert torch.equal(shared["first_value"], values)


def test_a_layer_that_reuses_keys_holds_and_costs_less():
    own, reuse = bp.Attention(heads=4, kv_heads=2), bp.Attention(heads=4, kv_heads=2, reuse_kv=True)
    assert set(own.axes(16)) - set(reuse.axes(16)) == {"key.weight", "value.weight"}
    assert own.decode_macs(16, 50) - reuse.decode_macs(16, 50) == 2 * 16 * 8
    assert reuse.state_numel(16, 50) == 0
    assert {name: p.shape for name, p in reuse.axes(16).items()} == {
        name: tuple(p.shape) for name, p in reuse.build(16).named_parameters()}


def test_a_value_residual_starts_as_the_mean_of_both():
    module = built(bp.Attention(heads=2, value_residual=True), 16)
    assert module.mix.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("config", "shared", "text"), [
    (bp.Attention(heads=2, reuse_kv=True), {}, "reuse_kv needs an attention layer with keys and values before it"),
    (bp.Attention(heads=2, value_residual=True), None, "value_residual mixes in the values of the first attention"),
    (bp.Attention(heads=4, reuse_kv=True), {"kv": (torch.zeros(1, 3, 2, 8), torch.zeros(1, 3, 2, 8), 0, None)},
     "reuse_kv needs the kv_heads and head_dim of the layer before: got 4 and 4 after 2 and 8"),
    (bp.Attention(heads=4, value_residual=True), {"first_value": torch.zeros(1, 3, 2, 8)},
     "value_residual mixes values of one shape: got [kv_heads, head_dim] [4, 4] after [2, 8]"),
])
def test_a_layer_that_finds_nothing_to_share_says_what_is_missing(config, shared, text):
    with pytest.raises(ValueError) as caught:
        built(config, 16).step(torch.zeros(1, 3, 16), None, shared)
    assert text in str(caught.value)


def test_values_that_are_not_there_cannot_be_mixed():
    with pytest.raises(ValueError, match="value_residual needs values of the layer's own at body"):
        bp.Attention(heads=2, reuse_kv=True, value_residual=True).check(16, "body[0].mixer")


# -- to a memory ---------------------------------------------------------------------------------------------------

def cross_attention(w, config, x, memory):
    (groups, per_group, size), (batch, length, _) = config.sizes(x.shape[-1]), x.shape
    q = (x @ w["query.weight"].T).view(batch, length, config.heads, size)
    k, v = ((memory @ w[f"{n}.weight"].T).view(batch, -1, groups, size).repeat_interleave(per_group, 2)
            for n in ("key", "value"))
    weights = (torch.einsum("bthp,bshp->bhts", q, k) / math.sqrt(size)).softmax(-1)
    return torch.einsum("bhts,bshp->bthp", weights, v).flatten(2) @ w["out.weight"].T


@pytest.mark.parametrize("config", [bp.CrossAttention(heads=2), bp.CrossAttention(heads=4, kv_heads=2, head_dim=3)],
                         ids=operator_label)
def test_cross_attention_is_its_formula_and_decodes_from_kept_keys(config):
    module = built(config, 8, dtype=torch.float64)
    x, memory = torch.randn(2, 7, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    ours, theirs = module(x, {"memory": memory}), cross_attention(weights, config, x, memory)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    leaves = [memory, *weights.values()]
    for mine, wanted in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, theirs)), strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-7, atol=1e-9)
    state, pieces, shared = module.init_state(2, dtype=torch.float64), [], {"memory": memory}
    for piece in x.split([3, 1, 2, 1], 1):
        y, state = module.step(piece, state, shared)
        pieces.append(y)
        shared = {}                                       # the memory is read once
    assert torch.allclose(torch.cat(pieces, 1), theirs, rtol=1e-9, atol=1e-10)


def test_cross_attention_costs_what_torch_counts_for_a_memory_as_long_as_the_stream():
    config = bp.CrossAttention(heads=4, kv_heads=2)
    with torch.device("meta"):
        module, x_BTD = config.build(16), torch.empty(1, 30, 16)
        assert config.macs(16, 30) == count_macs(lambda x: module(x, {"memory": x}), x_BTD)
        _, state = module.step(x_BTD, None, {"memory": x_BTD})
        assert config.decode_macs(16, 30) == count_macs(lambda x: module.step(x, state, {}), x_BTD[:, :1])
    assert config.state_numel(16, 30) == sum(value.numel() for value in state.values())


@pytest.mark.parametrize(("config", "text"), [
    (bp.CrossAttention(heads=3), "heads must divide width at body[0].mixer: got 3 and 64; use 2 or 4"),
    (bp.CrossAttention(heads=4, kv_heads=3), "kv_heads must divide heads at body[0].mixer: got 3 and 4; use 2 or 4"),
    (bp.ConformerConv(kernel=8), "kernel must be odd at body[0].mixer: got 8; use 7 or 9"),
    (bp.ConformerConv(norm="bach"), "unknown norm 'bach'; did you mean 'batch'?"),
    (bp.ConformerConv(bidirectional=False), "a causal convolution needs a norm of each token at body[0].mixer"),
    (bp.FrameEmbedding(stack=0), "stack must be a whole number of at least 1 at body[0].mixer: got 0; use 1"),
    (bp.BatchNorm(momentum=0), "momentum must be above 0 and at most 1 at body[0].mixer: got 0; use 0.1"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)


# -- the Conformer's convolution -----------------------------------------------------------------------------------

def conformer_conv(w, config, x):
    a, b = (x @ w["input.weight"].T).chunk(2, -1)
    u, taps, length = a * torch.sigmoid(b), config.kernel, x.shape[1]
    ahead = taps // 2 if config.bidirectional else 0                  # how far the last tap looks ahead
    rows = [sum(w["taps"][:, j] * u[:, t + j - taps + 1 + ahead] for j in range(taps)
                if 0 <= t + j - taps + 1 + ahead < length) for t in range(length)]
    y = torch.stack(rows, 1)
    over = (0, 1) if config.norm == "batch" else -1
    mean = y.mean(over, keepdim=True)
    y = (y - mean) / torch.sqrt(((y - mean) ** 2).mean(over, keepdim=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    return (y * torch.sigmoid(y)) @ w["out.weight"].T


@pytest.mark.parametrize("config", [bp.ConformerConv(kernel=5), bp.ConformerConv(kernel=3, norm="layer"),
                                    bp.ConformerConv(kernel=4, norm="layer", bidirectional=False)], ids=operator_label)
def test_conformer_convolution_is_its_formula(config):
    module = built(config, 6, dtype=torch.float64)
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    assert torch.allclose(module(x), conformer_conv(dict(module.named_parameters()), config, x), rtol=1e-9, atol=1e-9)


def test_causal_conformer_convolution_streams():
    config = bp.ConformerConv(kernel=7, norm="layer", bidirectional=False)
    check_causality(config, 16)
    check_streaming(config, 16)


@pytest.mark.parametrize("config", [
    bp.ConformerConv(kernel=5), bp.ConformerConv(kernel=4, norm="layer", bidirectional=False)], ids=operator_label)
def test_conformer_convolution_costs_what_torch_counts(config):
    with torch.device("meta"):
        counted = count_macs(config.build(16), torch.empty(1, 40, 16))
    # A causal filter pads its past as input, and its first outputs are fewer than its padded inputs: the count agrees.
    assert config.macs(16, 40) == counted


def test_a_smaller_centred_kernel_is_the_middle_of_a_larger_one():
    from bodyplan.space.axes import take

    taps = torch.arange(7.0).expand(4, 7)
    big, small = (bp.ConformerConv(kernel=n).axes(4)["taps"] for n in (7, 3))
    assert take(taps, big, small)[0].tolist() == [2.0, 3.0, 4.0]
    big, small = (bp.ConformerConv(kernel=n, norm="layer", bidirectional=False).axes(4)["taps"] for n in (7, 3))
    assert take(taps, big, small)[0].tolist() == [4.0, 5.0, 6.0]
