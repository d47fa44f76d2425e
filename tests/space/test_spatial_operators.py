"""Operators on grids against their papers' formulas, place by place in float64; costs on grids; bad numbers."""

from __future__ import annotations

import itertools
import math

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.testing import built, count_macs

torch.set_num_threads(1)


def neighbours(x_BHWD, row, column, size):
    """(i, j, token) of the square around a place, those on the grid only."""
    half = size // 2
    for i in range(size):
        for j in range(size):
            r, c = row + i - half, column + j - half
            if 0 <= r < x_BHWD.shape[1] and 0 <= c < x_BHWD.shape[2]:
                yield i, j, x_BHWD[:, r, c]


def by_place(x_BHWD, formula):
    rows = [torch.stack([formula(r, c) for c in range(x_BHWD.shape[2])], 1) for r in range(x_BHWD.shape[1])]
    return torch.stack(rows, 1)


def depthwise(w, config, x, name="taps"):
    return by_place(x, lambda r, c: sum(w[name][:, i, j] * token for i, j, token in neighbours(x, r, c, config.kernel)))


def dilated(w, config, x):
    """Place by place: tap (i, j) reads the token `dilation` times as far off."""
    rows, columns, half = *x.shape[1:3], config.kernel // 2
    y = torch.zeros_like(x)
    for r, c, i, j in itertools.product(range(rows), range(columns), range(config.kernel), range(config.kernel)):
        down, across = r + config.dilation * (i - half), c + config.dilation * (j - half)
        if 0 <= down < rows and 0 <= across < columns:
            y[:, r, c] += w["taps"][:, i, j] * x[:, down, across]
    return y


def layer_norm(x, gain, shift, eps):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps) * gain + shift


def batch_norm(w, x, prefix="norm."):
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0)
    y = (rows - mean) / torch.sqrt(((rows - mean) ** 2).mean(0) + 1e-5)
    return (y * w[f"{prefix}weight"] + w[f"{prefix}bias"]).view(x.shape)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def convnext(w, config, x):
    y = layer_norm(depthwise(w, config, x, "conv.taps"), w["norm.weight"], w["norm.bias"], 1e-6)
    y = gelu(y @ w["up.weight"].T) @ w["down.weight"].T
    return y if config.layer_scale is None else y * w["scale"]


def conv2d(w, config, x):
    x = {"relu": lambda: x.clamp(min=0), "gelu": lambda: gelu(x), "silu": lambda: x * x.sigmoid(),
         None: lambda: x}[config.activation]()
    y = by_place(x, lambda r, c: sum(token @ w["weight"][:, :, i, j].T
                                     for i, j, token in neighbours(x, r, c, config.kernel)))
    return batch_norm(w, y) if config.norm else y


def mean_of_neighbours(w, config, x):
    def mean(r, c):
        found = [token for _, _, token in neighbours(x, r, c, config.size)]
        return sum(found) / len(found)
    return by_place(x, mean)


def pooling(w, config, x):
    return mean_of_neighbours(w, config, x) - x


def mobile_conv(w, config, x):
    y = batch_norm(w, x @ w["up.weight"].T, "up_norm.").clamp(0, 6)
    y = batch_norm(w, depthwise(w, config, y, "conv.taps"), "conv_norm.").clamp(0, 6)
    return batch_norm(w, y @ w["down.weight"].T, "down_norm.")


def heads_of(x, weight, heads):
    return (x @ weight.T).unflatten(-1, (heads, -1))


def window_attention(w, config, x):
    """Each pair of tokens on its own: same window, and the bias of their offset."""
    rows, columns = x.shape[1:3]
    sides = [min(config.window, n) for n in (rows, columns)]
    shifts = [s // 2 if config.shift and s < n else 0 for s, n in zip(sides, (rows, columns), strict=True)]
    q, k, v = (heads_of(x, w[f"{name}.weight"], config.heads) for name in ("query", "key", "value"))

    def window_of(place):
        return tuple((p - shift) // side for p, shift, side in zip(place, shifts, sides, strict=True))

    def attended(r, c):
        seen = [(i, j) for i in range(rows) for j in range(columns) if window_of((i, j)) == window_of((r, c))]
        middle = config.window - 1
        scores = torch.stack([(q[:, r, c] * k[:, i, j]).sum(-1) / math.sqrt(q.shape[-1])
                              + w["bias"][r - i + middle, c - j + middle] for i, j in seen], -1)
        values = torch.stack([v[:, i, j] for i, j in seen], -1)
        return (scores.softmax(-1)[..., None, :] * values).sum(-1).flatten(1)

    return by_place(x, attended) @ w["out.weight"].T


def reduced_attention(w, config, x):
    rows, columns, side = *x.shape[1:3], config.reduction
    smaller = x.flatten(1, 2)
    if side > 1:
        cells = []
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                cells.append(sum(x[:, top + i, left + j] @ w["squares"][:, :, i, j].T for i in range(side)
                                 for j in range(side) if top + i < rows and left + j < columns))
        smaller = layer_norm(torch.stack(cells, 1), w["norm.weight"], w["norm.bias"], 1e-5)
    q = heads_of(x.flatten(1, 2), w["query.weight"], config.heads)
    k, v = (heads_of(smaller, w[f"{name}.weight"], config.heads) for name in ("key", "value"))
    weights = (torch.einsum("bthp,bshp->bhts", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    y = torch.einsum("bhts,bshp->bthp", weights, v).flatten(2) @ w["out.weight"].T
    return y.view(x.shape)


CASES = [
    (bp.DepthwiseConv2d(kernel=3), 4, depthwise), (bp.DepthwiseConv2d(kernel=7), 4, depthwise),
    (bp.DepthwiseConv2d(kernel=3, dilation=1), 4, dilated), (bp.DepthwiseConv2d(kernel=3, dilation=2), 4, dilated),
    (bp.DepthwiseConv2d(kernel=5, dilation=3), 4, dilated),
    (bp.ConvNeXtUnit(kernel=5, ratio=2), 8, convnext),
    (bp.ConvNeXtUnit(kernel=3, ratio=1, layer_scale=0.5), 8, convnext),
    *((bp.Conv2d(kernel=3, activation=name, norm=False), 4, conv2d) for name in ("relu", "gelu", "silu", None)),
    (bp.Conv2d(kernel=1), 4, conv2d), (bp.Conv2d(kernel=5), 4, conv2d),
    (bp.Pooling(size=3), 4, pooling), (bp.Pooling(size=5), 4, pooling), (bp.AveragePool(size=3), 4, mean_of_neighbours),
    (bp.MobileConv(kernel=3, expand=2), 4, mobile_conv),
    (bp.WindowAttention(heads=2, window=2), 8, window_attention),
    (bp.WindowAttention(heads=2, window=3), 8, window_attention),
    (bp.WindowAttention(heads=2, window=2, shift=True), 8, window_attention),
    (bp.WindowAttention(heads=1, window=3, shift=True, head_dim=3), 8, window_attention),
    (bp.WindowAttention(heads=2, window=5, shift=True), 8, window_attention),
    (bp.WindowAttention(heads=2, window=9, shift=True), 8, window_attention),
    (bp.ReducedAttention(heads=2, reduction=1), 8, reduced_attention),
    (bp.ReducedAttention(heads=2, reduction=2), 8, reduced_attention),
    (bp.ReducedAttention(heads=1, reduction=3, head_dim=5), 8, reduced_attention),
]


@pytest.mark.parametrize(("config", "width", "reference"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 6)], ids=str)
def test_operator_computes_its_papers_formula_on_a_grid(config, width, reference, grid):
    module = built(config, width, dtype=torch.float64)
    weights = dict(module.named_parameters())
    x_BHWD = torch.randn(2, *grid, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_BHWD.requires_grad_()
    ours, theirs = module(x_BHWD), reference(weights, config, x_BHWD)
    assert ours.shape == x_BHWD.shape
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    mask = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = [x_BHWD, *(p for p in weights.values() if p.requires_grad)]
    pairs = zip(*(torch.autograd.grad((y * mask).sum(), leaves, allow_unused=True, materialize_grads=True)
                  for y in (ours, theirs)), strict=True)
    for mine, wanted in pairs:
        assert torch.allclose(mine, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("config", "width"), [case[:2] for case in CASES], ids=str)
def test_a_sequence_is_a_grid_of_one_column(config, width):
    module = built(config, width)
    x_BTD = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(3))
    assert torch.equal(module(x_BTD), module(x_BTD[:, :, None])[:, :, 0])
    assert config.macs(width, 9) == config.macs(width, (9, 1))


@pytest.mark.parametrize(("config", "width"), [case[:2] for case in CASES], ids=str)
@pytest.mark.parametrize("grid", [(8, 8), (5, 9)], ids=str)
def test_macs_on_a_grid_are_what_torch_counts(config, width, grid):
    """Padding of windows, squares and filters included: everything is executed, so everything is declared."""
    with torch.device("meta"):
        counted = count_macs(config.build(width), torch.empty(1, *grid, width))
    assert config.macs(width, grid) == counted


def test_costs_by_hand():
    assert bp.WindowAttention(heads=2, window=4).macs(8, (6, 8)) == 48 * 4 * 64 + 2 * 8 * (8 * 8) * 16
    reduced = bp.ReducedAttention(heads=2, reduction=2)
    assert reduced.macs(8, (4, 6)) == 24 * 2 * 64 + 6 * (256 + 2 * 64) + 2 * 8 * 24 * 6
    assert bp.Conv2d(kernel=3).macs(4, (5, 5)) == 25 * 16 * 9
    assert bp.MobileConv(kernel=5, expand=3).macs(4, (5, 5)) == 25 * (2 * 4 * 12 + 12 * 25)
    assert bp.Pooling().macs(64, (7, 7)) == bp.Zero().macs(64, 100) == 0


def test_zero_blocks_values_that_are_not_finite():
    y = bp.Zero().build(4)(torch.full((1, 2, 2, 4), math.inf))
    assert y.shape == (1, 2, 2, 4) and not y.any()


def test_a_smaller_window_reads_the_middle_of_the_bias_table():
    from bodyplan.space.axes import take

    big, small = (bp.WindowAttention(heads=2, window=n).axes(8)["bias"] for n in (5, 3))
    table = torch.arange(81.0).view(9, 9, 1).expand(9, 9, 2)
    assert torch.equal(take(table, big, small), table[2:7, 2:7])


@pytest.mark.parametrize(("config", "text"), [
    (bp.DepthwiseConv2d(dilation=0), "dilation must be a whole number of at least 1 at body[0].mixer: got 0; use 1"),
    (bp.DepthwiseConv2d(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ConvNeXtUnit(layer_scale=0), "layer_scale must be positive at body[0].mixer: got 0; use 1e-6"),
    (bp.ConvNeXtUnit(ratio=-1), "ratio must be a positive number at body[0].mixer: got -1"),
    (bp.Conv2d(activation="rellu"), "unknown activation 'rellu'; did you mean 'relu'?"),
    (bp.Pooling(size=2), "size must be odd at body[0].mixer: got 2; use 1 or 3"),
    (bp.AveragePool(size=0), "size must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.MobileConv(expand=1.5), "expand must be a whole number of at least 1 at body[0].mixer: got 1.5"),
    (bp.WindowAttention(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.WindowAttention(window=0), "window must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.ReducedAttention(heads=4, reduction=0), "reduction must be a whole number of at least 1 at body[0].mixer"),
    (bp.ReducedAttention(heads=3), "heads must divide width at body[0].mixer: got 3 and 64; use 2 or 4"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)


# -- norms, embeddings and heads on grids --------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(6, 9, 8), (3, 4, 5, 8)], ids=["sequence", "grid"])
def test_batch_norm_is_torchs_in_training_and_evaluation(shape):
    """The same module of torch, which wants channels first, over three batches and then in evaluation mode."""
    module, theirs = bp.BatchNorm(momentum=0.3).build(8).double(), torch.nn.BatchNorm1d(8, momentum=0.3).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            values = torch.randn(8, dtype=torch.float64)
            getattr(module, name).copy_(values)
            getattr(theirs, name).copy_(values)
    for _ in range(3):
        x = 3 * torch.randn(shape, dtype=torch.float64) + 1
        assert torch.allclose(module(x), theirs(x.flatten(0, -2)).view(shape))
    assert torch.allclose(module.running_mean, theirs.running_mean)
    assert torch.allclose(module.running_var, theirs.running_var)
    module.eval()
    theirs.eval()
    assert torch.allclose(module(x), theirs(x.flatten(0, -2)).view(shape))


def test_batch_norm_updates_the_statistics_it_is_called_with():
    """Under functional_call the tensors passed in change, not the module's own; gradients reach gain and shift."""
    module = bp.BatchNorm().build(4)
    passed = {name: p.detach().clone() for name, p in module.named_parameters()}
    passed["weight"].requires_grad_()
    x = torch.randn(16, 3, 4) + 5
    torch.func.functional_call(module, passed, (x,)).square().sum().backward()
    assert torch.allclose(passed["running_mean"], 0.1 * x.mean((0, 1)), atol=1e-6) and passed["weight"].grad is not None
    assert not module.running_mean.any() and not passed["running_mean"].requires_grad
    before = passed["running_mean"].clone()
    torch.func.functional_call(module.eval(), passed, (x,))
    assert torch.equal(passed["running_mean"], before)


def test_statistics_are_declared_and_take_no_gradient():
    for config in (bp.BatchNorm(), bp.Conv2d(), bp.MobileConv(), bp.ConformerConv()):
        declared, module = config.axes(16), config.build(16)
        statistics = {name for name, entry in declared.items() if entry.statistic}
        assert statistics == {name for name, p in module.named_parameters() if not p.requires_grad} != set()
        assert all(name.endswith(("running_mean", "running_var")) for name in statistics)
        assert {declared[name].share for name in statistics} == {"own"}


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_its_formula(bias):
    module = built(bp.LayerNorm(bias=bias, eps=1e-3), 8, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    shift = module.bias if bias else 0.0
    assert torch.allclose(module(x), layer_norm(x, module.weight, shift, 1e-3))
    assert ("bias" in bp.LayerNorm(bias=bias).axes(8)) == bias


def test_no_norm_changes_nothing():
    x = torch.randn(2, 3, 8)
    assert bp.NoNorm().build(8)(x) is x and bp.NoNorm().axes(8) == {}


def test_patches_keep_their_grid_and_may_do_without_positions():
    flat, grid, bare = (bp.PatchEmbedding(patch=2, channels=3, image=(4, 6), **options)
                        for options in ({}, {"grid": True}, {"grid": True, "position": False}))
    pixels = torch.randn(2, 3, 4, 6)
    x_BTD, x_BHWD = built(flat, 8)(pixels), built(grid, 8)(pixels)
    assert x_BHWD.shape == (2, 2, 3, 8) and torch.equal(x_BHWD.flatten(1, 2), x_BTD)
    module = built(bare, 8)
    assert list(bare.axes(8)) == ["projection.weight"] == [name for name, _ in module.named_parameters()]
    corner = pixels[:, :, 2:4, 4:6].flatten(1) @ module.projection.weight.T
    assert torch.allclose(module(pixels)[:, 1, 2], corner, atol=1e-6)


def test_frames_are_stacked_in_order():
    config = bp.FrameEmbedding(features=3, stack=2)
    module, frames = built(config, 8), torch.randn(2, 7, 3)
    x_BTD = module(frames)
    assert x_BTD.shape == (2, 3, 8)
    second = torch.cat([frames[:, 2], frames[:, 3]], -1) @ module.projection.weight.T
    assert torch.allclose(x_BTD[:, 1], second, atol=1e-6)
    with torch.device("meta"):
        counted = count_macs(config.build(8), torch.empty(1, 40, 3))
    assert config.macs(8, 20) == counted


def test_class_scores_of_a_grid_are_those_of_its_tokens():
    module, x_BHWD = built(bp.ClassifierHead(classes=5), 8), torch.randn(3, 4, 5, 8)
    assert torch.equal(module(x_BHWD), module(x_BHWD.flatten(1, 2)))
    x_BTD = torch.randn(3, 7, 8)
    assert torch.equal(module(x_BTD), F.linear(x_BTD.mean(1), module.scores.weight, module.scores.bias))
