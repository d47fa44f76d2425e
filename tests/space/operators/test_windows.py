"""Windows and neighbourhoods: what they equal when they cover the grid, where they look, what they cost, what they refuse."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.space.model import initialise
from bodyplan.space.operators.windows import blocks, gather_windows, neighbours
from bodyplan.testing import built, count_macs

torch.set_num_threads(1)


def grid(*size, width=16, dtype=torch.float64, seed=1):
    return torch.randn(2, *size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sharing(config, other, width, renamed=()):
    """Two modules in float64 with equal weights, the names in `renamed` being the second one's."""
    first, second = built(config, width, dtype=torch.float64), built(other, width, dtype=torch.float64)
    names = dict(renamed)
    second.load_state_dict({names.get(name, name): p for name, p in first.state_dict().items()}, strict=True)
    return first, second


INSIDE = [(name, f"attention.{name}") for name in ("query.weight", "key.weight", "value.weight", "bias")]


@pytest.mark.parametrize("size", [(5, 4), (7, 7), (1, 6), (9,)], ids=str)
def test_a_neighbourhood_that_covers_the_grid_is_attention_over_all_of_it_with_the_same_bias(size):
    ours, whole = sharing(bp.NeighbourhoodAttention(heads=2, kernel=17), bp.WindowAttention(heads=2, window=17), 16)
    torch.testing.assert_close(ours(grid(*size)), whole(grid(*size)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 4), (8, 8), (63,)], ids=str)
@pytest.mark.parametrize("block", [64, 100])
def test_a_block_that_covers_the_grid_is_attention_over_all_of_it(size, block):
    """Whatever the halo, and with biases whatever the table's size."""
    ours = built(bp.HaloAttention(heads=2, block=block, halo=3, position=None), 16, dtype=torch.float64)
    x = grid(*size)
    tokens = x.flatten(1, -2)
    q, k, v = (project(tokens).unflatten(-1, (2, 8)).transpose(1, 2) for project in
               (ours.attention.query, ours.attention.key, ours.attention.value))
    y = (q @ k.mT / math.sqrt(8)).softmax(-1) @ v
    torch.testing.assert_close(ours(x), ours.out(y.transpose(1, 2).flatten(2)).view(x.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 6), (10,)], ids=str)
def test_no_halo_is_windows_that_do_not_shift(size):
    windows, ours = sharing(bp.WindowAttention(heads=4, window=4),
                            bp.HaloAttention(heads=4, block=4, halo=0, position="bias"), 16, INSIDE)
    torch.testing.assert_close(ours(grid(*size)), windows(grid(*size)), rtol=1e-12, atol=1e-12)


def test_blocks_of_one_token_are_a_neighbourhood_where_no_border_is_near():
    ours = built(bp.NeighbourhoodAttention(heads=2, kernel=5), 16, dtype=torch.float64)
    halo = built(bp.HaloAttention(heads=2, block=1, halo=2, position="bias"), 16, dtype=torch.float64)
    for name in ("query", "key", "value"):
        getattr(halo.attention, name).weight.data = getattr(ours, name).weight.data
    halo.out.weight.data, halo.attention.bias.data = ours.out.weight.data, ours.bias.data[2:-2, 2:-2]
    y, z = ours(grid(9, 8)), halo(grid(9, 8))
    torch.testing.assert_close(y[:, 2:-2, 2:-2], z[:, 2:-2, 2:-2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(y[:, 0], z[:, 0])               # at the border a neighbourhood moves, a halo is cut off


@pytest.mark.parametrize("dilation", [2, 3])
def test_gaps_are_neighbourhoods_of_every_other_token(dilation):
    """The tokens of each remainder, taken out, attend as at dilation 1."""
    ours, dense = sharing(bp.NeighbourhoodAttention(heads=2, kernel=3, dilation=dilation),
                          bp.NeighbourhoodAttention(heads=2, kernel=3), 16)
    x = grid(4 * dilation, 11)
    y = ours(x)
    for row in range(dilation):
        for column in range(dilation):
            part = x[:, row::dilation, column::dilation]
            torch.testing.assert_close(y[:, row::dilation, column::dilation], dense(part), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel", "dilation"), [(1, 3, 1), (10, 3, 1), (63, 7, 1), (100, 7, 3), (20, 5, 4)])
def test_every_place_has_as_many_neighbours_itself_among_them(size, kernel, dilation):
    found = neighbours(size, kernel, dilation, torch.device("cpu"))
    for place, row in enumerate(found.tolist()):
        on_grid = [p for p in row if p < size]
        line = range(place % dilation, size, dilation)
        assert len(on_grid) == min(kernel, len(line)) and place in on_grid
        reach = max(abs(p - place) for p in on_grid)
        assert all(abs(p - place) >= reach - dilation * (kernel // 2) for p in line if p not in on_grid)
        assert on_grid == sorted(set(on_grid)) and all((p - place) % dilation == 0 for p in on_grid)


def test_gathered_windows_hold_the_places_that_are_named():
    x = torch.arange(30.0).view(1, 5, 6, 1)
    rows, columns = blocks(5, 2, 1, x.device), blocks(6, 3, 0, x.device)
    windows = gather_windows(x, rows, columns)
    assert windows.shape == (1, 3, 2, 4 * 3, 1)
    assert windows[0, 1, 1, :, 0].tolist() == [6 * r + c for r in (1, 2, 3, 4) for c in (3, 4, 5)]
    assert windows[0, 0, 0, :3, 0].tolist() == [0, 1, 2]                      # off the grid: the nearest place on it


@pytest.mark.parametrize("config", [
    bp.HaloAttention(heads=2, block=4, halo=1), bp.HaloAttention(heads=2, block=4, halo=2, position="bias"),
    bp.NeighbourhoodAttention(heads=2, kernel=3), bp.NeighbourhoodAttention(heads=2, kernel=5, dilation=2)], ids=str)
def test_a_token_depends_on_what_its_window_sees_and_on_nothing_else(config):
    module = built(config, 16, dtype=torch.float64)
    x = grid(12, 10).requires_grad_()
    row, column = 5, 3
    (gradient,) = torch.autograd.grad(module(x)[0, row, column].sum(), x)
    seen = {tuple(place) for place in gradient[0].abs().sum(-1).nonzero().tolist()}
    if isinstance(config, bp.HaloAttention):
        rows, columns = range(4 - config.halo, 8 + config.halo), range(max(0 - config.halo, 0), 4 + config.halo)
    else:
        half, step = config.kernel // 2 * config.dilation, config.dilation
        first = max(column - half, column % step)
        rows, columns = range(row - half, row + half + 1, step), range(first, first + 2 * half + 1, step)
    assert seen == {(r, c) for r in rows for c in columns}


@pytest.mark.parametrize("config", [
    bp.NeighbourhoodAttention(heads=2), bp.NeighbourhoodAttention(heads=2, dilation=4), bp.HaloAttention(heads=2),
    bp.HaloBottleneck(heads=2)], ids=str)
def test_costs_are_linear_in_tokens(config):
    small, large = config.macs(32, (64, 64)), config.macs(32, (256, 64))
    assert large == pytest.approx(4 * small, rel=1e-9)


@pytest.mark.parametrize(("config", "width"), [
    (bp.NeighbourhoodAttention(heads=1, head_dim=24), 16), (bp.NeighbourhoodAttention(heads=1, kernel=3, dilation=5), 64),
    (bp.HaloAttention(heads=1, head_dim=24), 16), (bp.HaloAttention(heads=1, head_dim=64, block=5, position="bias"), 16),
    (bp.HaloBottleneck(heads=2, head_dim=8, values=2.5), 24), (bp.ConvAttention(heads=1, head_dim=24, kv_stride=3), 16)],
    ids=str)
@pytest.mark.parametrize("size", [(1, 1), (9, 10), (63,), (100,)], ids=str)
def test_macs_are_what_torch_counts(config, width, size):
    """What fills up the last blocks included: everything is executed, so everything is declared."""
    with torch.device("meta"):
        counted = count_macs(config.build(width).eval(), torch.empty(1, *size, width))
    assert config.macs(width, size if len(size) == 2 else size[0]) == counted


@pytest.mark.parametrize("config", [bp.NeighbourhoodAttention(heads=2, kernel=3, dilation=2), bp.HaloAttention(heads=2),
                                    bp.ConvAttention(heads=2), bp.HaloBottleneck(heads=2)], ids=str)
def test_a_sequence_is_a_grid_of_one_column(config):
    module = built(config, 16)
    x = grid(63, dtype=torch.float32)
    assert torch.equal(module(x), module(x[:, :, None])[:, :, 0])
    assert config.macs(16, 63) == config.macs(16, (63, 1))


@pytest.mark.slow
@pytest.mark.parametrize("config", [bp.NeighbourhoodAttention(heads=2), bp.NeighbourhoodAttention(heads=2, dilation=8),
                                    bp.HaloAttention(heads=2)], ids=str)
@pytest.mark.parametrize("size", [(128, 128), (16384,)], ids=str)
def test_sixteen_thousand_tokens_are_finite(config, size):
    with torch.no_grad():
        assert built(config, 8)(grid(*size, width=8, dtype=torch.float32)[:1]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [bp.NeighbourhoodAttention(heads=2, dilation=2), bp.HaloAttention(heads=2)], ids=str)
def test_half_precision_is_close(config, dtype):
    module = built(config, 16)
    x = grid(9, 10, dtype=torch.float32)
    with torch.no_grad():
        whole, half = module(x), module.to(dtype)(x.to(dtype))
    assert (half.float() - whole).abs().max() < 0.05 * whole.abs().max()


def test_keys_without_a_stride_and_one_tap_are_attention_with_batch_norms():
    ours = built(bp.ConvAttention(heads=2, kernel=1, kv_stride=1), 16, dtype=torch.float64).eval()
    x = grid(5, 4)
    tokens = x.flatten(1, 2)

    def projected(part):
        y = (tokens * part.taps.flatten() - part.norm.running_mean) / torch.sqrt(part.norm.running_var + 1e-5)
        return (y * part.norm.weight + part.norm.bias) @ part.project.weight.T

    q, k, v = (projected(part) for part in (ours.query, ours.key, ours.value))
    q, k, v = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (q, k, v))
    y = ((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).flatten(2) @ ours.out.weight.T
    torch.testing.assert_close(ours(x), y.view(x.shape), rtol=1e-9, atol=1e-9)


# -- among channels, to representatives, of the whole grid ---------------------------------------------------------------

def test_interleaved_windows_of_one_token_apart_are_attention_over_all_of_it():
    """A window that covers the grid is one window, interleaved or not."""
    ours, halo = sharing(bp.InterleavedAttention(heads=2, window=9, kernel=None),
                         bp.HaloAttention(heads=2, block=9, halo=0, position=None), 16, INSIDE[:3])
    torch.testing.assert_close(ours(grid(5, 7)), halo(grid(5, 7)), rtol=1e-12, atol=1e-12)


def test_interleaved_windows_are_windows_of_the_rearranged_grid():
    ours, windows = sharing(bp.InterleavedAttention(heads=2, window=3, kernel=None),
                            bp.HaloAttention(heads=2, block=3, halo=0, position=None), 16, INSIDE[:3])
    x = grid(6, 12)
    rows, columns = (torch.arange(n).view(3, n // 3).T.flatten() for n in (6, 12))
    torch.testing.assert_close(ours(x)[:, rows][:, :, columns], windows(x[:, rows][:, :, columns]), rtol=1e-12, atol=1e-12)


def test_one_layer_of_interleaved_windows_and_a_filter_reaches_far_and_near():
    module = built(bp.InterleavedAttention(heads=2, window=3, kernel=3), 16, dtype=torch.float64)
    x = grid(9, 9).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, 4, 4].sum(), x)
    seen = {tuple(place) for place in gradient[0].abs().sum(-1).nonzero().tolist()}
    assert seen == {(r, c) for r in (1, 4, 7) for c in (1, 4, 7)} | {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_a_causal_neighbourhood_longer_than_the_sequence_is_causal_attention():
    ours, whole = (built(config, 16, dtype=torch.float64) for config in (
        bp.CausalNeighbourhood(heads=2, kernel=100), bp.Attention(heads=2, rotary=False)))
    ours.load_state_dict(whole.state_dict() | {"bias": torch.zeros(100, 2)})
    torch.testing.assert_close(ours(grid(63)), whole(grid(63)), rtol=1e-12, atol=1e-12)


def test_a_causal_neighbourhood_without_gaps_and_biases_is_a_sliding_window():
    ours, window = (built(config, 16, dtype=torch.float64) for config in (
        bp.CausalNeighbourhood(heads=2, kernel=7), bp.Attention(heads=2, rotary=False, window=7)))
    ours.load_state_dict(window.state_dict() | {"bias": torch.zeros(7, 2)})
    torch.testing.assert_close(ours(grid(100)), window(grid(100)), rtol=1e-12, atol=1e-12)


def test_the_state_of_a_causal_neighbourhood_stops_growing():
    config = bp.CausalNeighbourhood(heads=2, kernel=4, dilation=5)
    assert config.state_numel(16, 15) == config.state_numel(16, 10_000) == 2 * 15 * 16


def test_a_grid_that_is_small_enough_represents_itself():
    """Without recursion, and with the filters at their middle tap, keys are those of every token."""
    module = built(bp.RecursiveAttention(heads=2, ratio=1.0), 16, dtype=torch.float64)
    for part in (module.local, module.position):
        part.taps.data.zero_()
    module.local.taps.data[:, 1, 1] = 1
    x = grid(5, 7)
    tokens = x.flatten(1, 2)
    keys = torch.nn.functional.gelu(module.norm(module.mix(tokens)))
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2)
               for part in (module.query(tokens), module.key(keys), module.value(keys)))
    y = module.out(((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x), y.view(x.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "left"), [((64, 64), (4, 4)), ((63, 17), (4, 2)), ((15, 15), (15, 15)),
                                            ((256, 16), (4, 1))])
def test_recursion_stops_when_few_places_are_left(size, left):
    from bodyplan.space.operators.recursive_attention import representatives

    assert representatives(size, 4, 16)[-1] == left
    module = built(bp.RecursiveAttention(heads=2), 8)
    assert module.shrunk(grid(*size, width=8, dtype=torch.float32)).shape == (2, *left, 8)


def with_keys_that_are_the_queries(weights, heads, temperature):
    module = built(bp.TransposedAttention(heads=heads, weights=weights), 16, dtype=torch.float64)
    with torch.no_grad():
        module.temperature.fill_(temperature)
        module.key.weight.copy_(module.query.weight)
        module.key_conv.taps.copy_(module.query_conv.taps)
    return module


@pytest.mark.parametrize("weights", ["relu", "softmax"])
def test_a_channel_alone_in_its_head_passes_as_it_is(weights):
    """Its cosine to itself is one, and softmax over one is one."""
    module, x = with_keys_that_are_the_queries(weights, 16, 1.0), grid(5, 7)
    torch.testing.assert_close(module(x), module.out(module.value_conv(module.value(x))), rtol=1e-10, atol=1e-10)


def test_similarities_below_zero_are_left_out():
    module = with_keys_that_are_the_queries("relu", 16, -1.0)
    assert not module(grid(5, 7)).any()


def test_filters_of_one_tap_scale_each_token():
    module = built(bp.DynamicLocalConv(heads=4, kernel=1), 16, dtype=torch.float64)
    x = grid(5, 7)
    u = module.input(x)
    factor = module.taps(module.reduce(u) * module.conv.taps.flatten())
    torch.testing.assert_close(module(x), module.out(u * factor.repeat_interleave(4, -1)), rtol=1e-12, atol=1e-12)


def test_one_range_pools_nothing():
    x = grid(5, 7)
    torch.testing.assert_close(built(bp.TokenAwarePooling(ranges=1), 16, dtype=torch.float64)(x), x, rtol=1e-12, atol=1e-12)


def test_equal_weights_average_the_averages():
    module = built(bp.TokenAwarePooling(ranges=3), 16, dtype=torch.float64)
    module.second.data.zero_()
    x = torch.ones(1, 9, 9, 16, dtype=torch.float64)
    y = module(x).detach()
    assert torch.allclose(y[0, 4, 4], torch.ones(16, dtype=torch.float64))
    assert y[0, 0, 0, 0].item() == pytest.approx((1 + 4 / 9 + 4 / 9) / 3)     # zeros outside, as in the authors' code


def test_a_gate_of_one_half_and_no_squeeze_halves_two_convolutions():
    module = built(bp.ConvChannelAttention(scale=0.5), 30, dtype=torch.float64)
    module.restore.weight.data.zero_()
    x = grid(5, 7, width=30)
    h = torch.nn.functional.gelu(torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), module.compress, padding=1))
    y = torch.nn.functional.conv2d(h, module.expand, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), 0.25 * y, rtol=1e-12, atol=1e-12)


def test_the_hybrid_block_is_windows_beside_channel_attention():
    block = bp.Block(mixer=bp.Parallel(branches=(bp.WindowAttention(heads=2, window=4, shift=True),
                                                 bp.ConvChannelAttention(scale=0.01))), channel=bp.MLP(ratio=2))
    space = bp.Space(embed=bp.PatchEmbedding(patch=2, image=16, grid=True, position=False), width=16, body=(
        block, bp.Block(mixer=bp.HaloAttention(heads=2, block=4, halo=1, position="bias"), channel=bp.MLP(ratio=2))),
        head=bp.ClassifierHead(classes=5))
    assert space.sample(0).build(seed=0)(torch.randn(2, 1, 16, 16)).isfinite().all()


def test_correlations_cost_in_proportion_to_the_window():
    """From base on, a token's products do not depend on the window, so that windows may grow from layer to layer."""
    def products(window):
        config = bp.SpatialChannelCorrelation(heads=2, window=window)
        offsets = (2 * window - 1) ** 2 * (2 * 2 + 2 * 2 * 2 + 2 * 2)
        return config.macs(32, (128, 128)) - offsets

    assert products(8) == products(16) == products(64)


def test_windows_of_the_base_size_correlate_place_with_place():
    module = built(bp.SpatialChannelCorrelation(heads=1, window=4), 16, dtype=torch.float64)
    module.parts.data.fill_(1)
    q, v = grid(1, 1, 16, width=8), grid(1, 1, 16, width=8, seed=2)
    ours = module.along_space(q, v)
    torch.testing.assert_close(ours, (q @ v.mT / 8 + module.bias(q)[0]) @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [
    bp.RecursiveAttention(heads=2), bp.TransposedAttention(heads=2), bp.DynamicLocalConv(heads=2), bp.TokenAwarePooling(),
    bp.ConvChannelAttention(), bp.InterleavedAttention(heads=2), bp.SpatialChannelCorrelation(heads=2),
    bp.CausalNeighbourhood(heads=2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_finite(config, dtype):
    with torch.no_grad():
        y = built(config, 16).to(dtype)(grid(63, dtype=torch.float32).to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    bp.RecursiveAttention(heads=2), bp.TransposedAttention(heads=2), bp.DynamicLocalConv(heads=2), bp.TokenAwarePooling(),
    bp.SpatialChannelCorrelation(heads=2), bp.CausalNeighbourhood(heads=2, dilation=16)], ids=str)
def test_sixteen_thousand_tokens_of_linear_mixers_are_finite(config):
    with torch.no_grad():
        assert built(config, 8)(grid(16384, width=8, dtype=torch.float32)[:1]).isfinite().all()


# -- transitions -------------------------------------------------------------------------------------------------------

def transition(item, width=8, dtype=torch.float64):
    module = item.build(width).to(dtype)
    declared = item.axes(width)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {n: d.shape for n, d in declared.items()}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        initialise(parameter.data, declared[name], generator)
    return module


MERGING = [bp.ConvEmbedding(width=12), bp.ConvEmbedding(width=12, kernel=5, stride=3), bp.ConvEmbedding(kernel=2),
           bp.DeformableMerging(width=12), bp.DeformableMerging(width=12, kernel=3),
           bp.HaloDownsample(width=12, heads=2, head_dim=4, block=4, halo=1),
           bp.HaloDownsample(width=12, heads=2, head_dim=4, block=3, halo=1, stride=3, values=1.5, position="bias")]


@pytest.mark.parametrize("item", MERGING, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 7), (9,)], ids=str)
def test_a_transition_gives_the_size_and_the_costs_it_declares(item, size):
    length = size if len(size) == 2 else size[0]
    width, shape = item.out(8, length)
    with torch.device("meta"):
        module = item.build(8).eval()                                          # one token has no variance
        seen = []
        counted = count_macs(lambda x: seen.append(module(x)), torch.empty(1, *size, 8))
    assert seen[0].shape == (1, *(shape if isinstance(shape, tuple) else (shape,)), width)
    assert item.macs(8, length) == counted


def test_tokens_merged_without_steps_are_a_strided_convolution():
    module = transition(bp.DeformableMerging(width=12))
    x = grid(6, 8, width=8)
    plain = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), module.weight, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), torch.nn.functional.gelu(module.norm(plain)), rtol=1e-10, atol=1e-10)


def test_merged_tokens_lie_where_the_steps_say():
    """Interpolated between the four tokens around, nothing outside the grid; each window and place on its own."""
    module = transition(bp.DeformableMerging(width=12)).eval()
    generator = torch.Generator().manual_seed(2)
    module.offset.data.normal_(0, 0.3, generator=generator)
    module.offset_bias.data.normal_(0, 1, generator=generator)
    x = grid(5, 7, width=8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))

    def token(r, c):
        return x[0, r, c] if 0 <= r < 5 and 0 <= c < 7 else torch.zeros(8, dtype=x.dtype)

    def between(r, c):
        top, left = math.floor(r), math.floor(c)
        return sum((1 - abs(r - i)) * (1 - abs(c - j)) * token(i, j) for i in (top, top + 1) for j in (left, left + 1))

    for row in range(3):
        for column in range(4):
            window = padded[0, 2 * row:2 * row + 2, 2 * column:2 * column + 2]
            steps = torch.einsum("odij,ijd->o", module.offset, window) + module.offset_bias
            steps = steps.view(2, 2, 2).tolist()
            y = sum(module.weight[:, :, i, j] @ between(2 * row + i + steps[i][j][0], 2 * column + j + steps[i][j][1])
                    for i in range(2) for j in range(2))
            wanted = torch.nn.functional.gelu(module.norm(y))
            torch.testing.assert_close(module(x)[0, row, column], wanted, rtol=1e-9, atol=1e-9)


def test_the_steps_of_merged_tokens_are_learned():
    module = transition(bp.DeformableMerging(width=12))
    module(grid(6, 8, width=8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in (module.offset, module.offset_bias, module.weight))


def test_queries_on_a_coarser_grid_are_those_of_the_fine_one():
    """At every second place downsampling attention is the attention of all places."""
    sizes = {"heads": 2, "head_dim": 4, "block": 4, "halo": 1}
    fine = transition(bp.HaloDownsample(width=12, stride=1, **sizes)).eval()
    coarse = transition(bp.HaloDownsample(width=12, stride=2, **sizes)).eval()
    coarse.load_state_dict(fine.state_dict())
    x = grid(7, 8, width=8)
    torch.testing.assert_close(coarse(x), fine(x)[:, ::2, ::2], rtol=1e-12, atol=1e-12)


# -- errors ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("part", "text"), [
    (bp.NeighbourhoodAttention(heads=3), "heads must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.NeighbourhoodAttention(kernel=4), "kernel must be odd at here: got 4; use 3 or 5"),
    (bp.NeighbourhoodAttention(dilation=0), "dilation must be a whole number of at least 1 at here: got 0; use 1"),
    (bp.HaloAttention(halo=-1), "halo must be a whole number of at least 0 at here: got -1; use 0 for windows"),
    (bp.HaloAttention(block=0), "block must be a whole number of at least 1"),
    (bp.HaloAttention(position="relativ"), "unknown position 'relativ'; did you mean 'relative'"),
    (bp.HaloBottleneck(values=0), "values must be a positive number at here: got 0"),
    (bp.HaloBottleneck(head_dim=None), "head_dim must be a whole number"),
    (bp.CausalNeighbourhood(kernel=0), "kernel must be a whole number of at least 1"),
    (bp.InterleavedAttention(window=0), "window must be a whole number of at least 1"),
    (bp.InterleavedAttention(kernel=2), "kernel must be odd at here: got 2; use 1 or 3"),
    (bp.RecursiveAttention(heads=3), "heads must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.RecursiveAttention(stride=1), "stride must be a whole number of at least 2 at here: got 1"),
    (bp.RecursiveAttention(most=1), "most must be a whole number of at least 2 at here: got 1; a grid of one place"),
    (bp.RecursiveAttention(ratio=0), "ratio must be a positive number at here: got 0"),
    (bp.TransposedAttention(heads=4, weights="rely"), "unknown weights 'rely'; did you mean 'relu'"),
    (bp.DynamicLocalConv(heads=5), "heads must divide width at here: got 5 and 16; use 2 or 4"),
    (bp.DynamicLocalConv(heads=4, reduction=0), "reduction must be a whole number"),
    (bp.TokenAwarePooling(ranges=0), "ranges must be a whole number of at least 1"),
    (bp.ConvChannelAttention(squeeze=0), "squeeze must be a whole number of at least 1"),
    (bp.SpatialChannelCorrelation(window=12), "base must divide window at here: got 8 and 12; use"),
    (bp.SpatialChannelCorrelation(heads=3), "2 . heads must divide width at here: got 6 and 16; use 4 or 8"),
    (bp.ConvAttention(kernel=2), "kernel must be odd at here: got 2; use 1 or 3"),
    (bp.ConvAttention(kv_stride=0), "kv_stride must be a whole number of at least 1 at here: got 0; use 1 for a key"),
    (bp.ConvEmbedding(kernel=1), "kernel must be a whole number of at least 2 at here: got 1; a kernel covers its stride"),
    (bp.ConvEmbedding(width=0), "width must be a whole number of at least 1 at here: got 0; use None to keep it"),
    (bp.DeformableMerging(stride=0), "stride must be a whole number of at least 1"),
    (bp.HaloDownsample(block=7), "stride must divide block at here: got 2 and 7; use 1 or 7"),
    (bp.PatchEmbedding(patch=4, kernel=3), "kernel must be a whole number of at least 4 at here: got 3; use None")], ids=str)
def test_bad_numbers_are_named(part, text):
    with pytest.raises(ValueError, match=text):
        part.check(16, "here")


def test_windows_of_a_stem_take_in_the_pixels_around_a_patch():
    """Sizes as of the patches; the convolution of the same taps, zeros outside, then the norm."""
    stem = bp.PatchEmbedding(patch=4, channels=3, image=(8, 12), kernel=7, norm=True, position=False, grid=True)
    module = built(stem, 16, dtype=torch.float64)
    pixels = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = module.projection.weight.view(16, 3, 7, 7)
    wanted = torch.nn.functional.conv2d(torch.nn.functional.pad(pixels, (2, 1, 2, 1)), taps, stride=4).permute(0, 2, 3, 1)
    assert module(pixels).shape == (2, 2, 3, 16)
    torch.testing.assert_close(module(pixels), module.norm(wanted), rtol=1e-10, atol=1e-10)
