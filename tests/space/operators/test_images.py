"""Tokenisers of images, pooling heads, and the operators of token pyramids: what they equal, what they refuse."""

from __future__ import annotations

import math

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.operators.tokens_to_token import FeatureTokens
from bodyplan.testing import built, check_declaration, count_macs
from operator_examples.images import multiscale_layer, pooling_attention

torch.set_num_threads(1)


def grid(*size, width=8, seed=1, dtype=torch.float64):
    return torch.randn(2, *size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def copied(target, source, renamed=()):
    """`target` with the weights of `source`, under other names where `renamed` says so."""
    names = dict(renamed)
    target.load_state_dict({names.get(name, name): p for name, p in source.state_dict().items()})
    return target


# -- PVT v2 ------------------------------------------------------------------------------------------------------------

def test_a_fixed_grid_as_large_as_the_grid_averages_nothing():
    """Then keys and values are of every token by itself."""
    ours, x = built(bp.LinearReducedAttention(heads=2, side=4), 8, dtype=torch.float64), grid(4, 4)
    tokens = x.flatten(1, 2)
    small = F.gelu(ours.norm(ours.mix(tokens)))
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2)
               for part in (ours.query(tokens), ours.key(small), ours.value(small)))
    wanted = ours.out(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours(x), wanted.view(x.shape), rtol=1e-12, atol=1e-12)


def test_keys_of_a_fixed_grid_cost_the_same_whatever_the_image():
    config = bp.LinearReducedAttention(heads=2, side=7)
    per_token = 2 * 16 * 16 + 2 * 16 * 49
    assert config.macs(16, (28, 28)) - config.macs(16, (14, 14)) == per_token * (28 * 28 - 14 * 14)


@pytest.mark.parametrize("size", [(14, 14), (5, 9)], ids=str)
@pytest.mark.parametrize("config", [bp.LinearReducedAttention(heads=2), bp.ConvMLP(ratio=2)], ids=str)
def test_macs_on_a_grid_are_what_torch_counts(config, size):
    with torch.device("meta"):
        assert config.macs(16, size) == count_macs(config.build(16), torch.empty(1, *size, 16))


def test_filters_of_one_tap_that_is_one_are_an_mlp():
    ours, plain = built(bp.ConvMLP(ratio=2, kernel=1), 8, dtype=torch.float64), built(bp.MLP(ratio=2), 8, dtype=torch.float64)
    with torch.no_grad():
        ours.conv.taps.fill_(1.0)
    plain.load_state_dict({name: p for name, p in ours.state_dict().items() if "conv" not in name})
    torch.testing.assert_close(ours(grid(5, 3)), plain(grid(5, 3)), rtol=1e-12, atol=1e-12)


# -- tokenisers --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image", [32, (17, 9), 1], ids=str)
@pytest.mark.parametrize(("layers", "kernel", "stride"), [(1, 3, 1), (2, 7, 2), (3, 5, 1)], ids=str)
def test_a_conv_tokeniser_gives_as_many_tokens_as_it_says(image, layers, kernel, stride):
    config = bp.ConvTokenizer(image=image, layers=layers, kernel=kernel, stride=stride, between=4)
    with torch.device("meta"):
        pixels = torch.empty(1, 3, *config.sides)
        assert config.build(8)(pixels).shape == (1, config.length, 8)
        assert count_macs(config.build(8), pixels) == config.macs(8, 0)


def test_a_conv_tokeniser_is_torchs_layers():
    config = bp.ConvTokenizer(layers=2, between=6, image=(12, 10), position=None)
    ours = built(config, 8, dtype=torch.float64)
    layers = [torch.nn.Conv2d(3, 6, 3, padding=1, bias=False), torch.nn.Conv2d(6, 8, 3, padding=1, bias=False)]
    theirs = torch.nn.Sequential(*(part for conv in layers for part in (conv, torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))))
    for conv, layer in zip(layers, ours.layers.values(), strict=True):
        conv.weight = torch.nn.Parameter(layer.weight.detach())
    pixels = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(ours(pixels), theirs(pixels).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_a_class_token_goes_before_the_patches():
    with_token, without = (built(bp.PatchEmbedding(4, 3, 12, class_token=token), 8) for token in (True, False))
    without.load_state_dict({name: p for name, p in with_token.state_dict().items() if name != "token"})
    pixels = torch.randn(2, 3, 12, 12)
    x = with_token(pixels)
    assert x.shape == (2, bp.PatchEmbedding(4, 3, 12, class_token=True).length, 8)
    assert torch.equal(x[:, 1:], without(pixels)) and torch.equal(x[:, 0], with_token.token.expand(2, 8))


@pytest.mark.parametrize(("patch", "kernel", "image"), [(8, 16, 32), (7, 14, (28, 21)), (3, 5, 11), (4, 4, 12)], ids=str)
def test_windows_inside_the_image_are_a_convolution_without_padding(patch, kernel, image):
    config = bp.PatchEmbedding(patch, 3, image, kernel=kernel, padded=False, position=False)
    config.check(8, "here")
    module, pixels = built(config, 8, dtype=torch.float64), torch.randn(2, 3, *config.sides, dtype=torch.float64)
    weight = module.projection.weight.view(8, 3, kernel, kernel)
    theirs = F.conv2d(pixels, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(pixels), theirs, rtol=1e-12, atol=1e-12)
    assert theirs.shape[1] == config.length
    with torch.device("meta"):
        assert count_macs(config.build(8), torch.empty(1, 3, *config.sides)) == config.macs(8, 0)


@pytest.mark.parametrize(("kernel", "stride", "image"), [(4, 4, 12), (7, 4, 12), (3, 2, (8, 6))], ids=str)
def test_one_soft_split_is_a_patch_embedding(kernel, stride, image):
    ours = built(bp.TokensToToken(3, image, (kernel,), (stride,), position=None), 8, dtype=torch.float64)
    patches = bp.PatchEmbedding(stride, 3, image, kernel=kernel, position=False).build(8).double()
    with torch.no_grad():
        patches.projection.weight.copy_(ours.project["1"].weight)
    pixels = torch.randn(2, 3, *bp.TokensToToken(3, image).sides, dtype=torch.float64)
    torch.testing.assert_close(ours(pixels), patches(pixels), rtol=1e-12, atol=1e-12)


def test_random_features_come_near_softmax_attention_the_more_there_are():
    """In the mean over all that they are multiplied with: positive features have the softmax kernel as their expectation."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 12, 4, dtype=torch.float64) / 4 for _ in range(3))
    exact = (q @ k.mT).softmax(-1) @ v
    errors = []
    for features in (16, 1024, 65536):
        layer = FeatureTokens(9, 4, features).double()
        with torch.no_grad():
            layer.random_features.normal_()
            errors.append((layer.mixed(q, k, v) - exact).abs().mean().item())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


@pytest.mark.parametrize("mixer", ["performer", "transformer"])
@pytest.mark.parametrize("image", [24, (17, 9)], ids=str)
def test_soft_splits_cost_what_they_declare(image, mixer):
    config = bp.TokensToToken(image=image, token_dim=8, mixer=mixer, class_token=True)
    with torch.device("meta"):
        pixels = torch.empty(1, 3, *config.sides)
        assert count_macs(config.build(16), pixels) == config.macs(16, 0)
        assert config.build(16)(pixels).shape == (1, config.length, 16)


def test_a_compression_stem_has_a_quarter_of_the_tokens_of_16_by_16_patches():
    assert bp.CompressionStem().length == (7, 7) and bp.PatchEmbedding(16, 3, 224).length == 4 * 49
    config = bp.CompressionStem(image=(32, 64), hidden=4, latent=6)
    with torch.device("meta"):
        pixels = torch.empty(1, 3, 32, 64)
        assert config.build(8)(pixels).shape == (1, *config.length, 8)
        assert count_macs(config.build(8), pixels) == config.macs(8, 0)


def test_divisive_normalisation_without_gains_divides_by_the_offset():
    stem = built(bp.CompressionStem(image=8, halvings=2, hidden=4, latent=5), 8, dtype=torch.float64)
    norm, x = stem.norms["2_0"], grid(4, 5).permute(0, 3, 1, 2)[:, :4]
    with torch.no_grad():
        norm.gain.zero_()
        norm.offset.fill_(2.0)
    torch.testing.assert_close(norm(x), x / 2, rtol=1e-12, atol=1e-12)


# -- ResFormer ---------------------------------------------------------------------------------------------------------

def test_values_that_are_not_filtered_leave_attention_over_all_tokens():
    ours, x = bp.LocalValueAttention(heads=2).build(8).double(), grid(5, 4)
    plain = built(bp.ReducedAttention(heads=2, reduction=1), 8, dtype=torch.float64)
    with torch.no_grad():
        ours.taps.zero_()
    ours.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)


def test_filtered_sines_are_positions_of_every_resolution():
    """A place is a share of the grid: at twice the resolution every second place has what its own had."""
    module = built(bp.PatchEmbedding(4, 1, 16, grid=True, position="conv"), 8, dtype=torch.float64)
    with torch.no_grad():
        module.position_taps.zero_()
        module.position_taps[:, 1, 1] = 1.0
    small, large = (module(torch.zeros(1, 1, side, side, dtype=torch.float64)) for side in (16, 32))
    assert small.shape == (1, 4, 4, 8) and large.shape == (1, 8, 8, 8)
    torch.testing.assert_close(large[:, 1::2, 1::2], small, rtol=1e-12, atol=1e-12)
    rows, columns = small[0, :, 0, :4], small[0, 0, :, 4:]
    assert torch.equal(rows, columns)
    wanted = [[f(2 * math.pi * (place + 1) / 4 / 10000 ** (2 * (i // 2) / 4)) for i, f in enumerate(
        (math.sin, math.cos, math.sin, math.cos))] for place in range(4)]
    torch.testing.assert_close(rows, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_a_model_of_conditioned_positions_costs_what_it_declares_and_runs_at_another_resolution():
    space = bp.Space(embed=bp.PatchEmbedding(4, 1, 16, grid=True, position="conv"), width=16, norm=bp.LayerNorm(),
                     body=bp.Block(mixer=bp.LocalValueAttention(heads=2), channel=bp.MLP()), head=bp.ClassifierHead(5))
    architecture, pixels = space.sample(0), torch.randn(1, 1, 16, 16)
    assert macs_flop_counter(architecture.build(), pixels) == architecture.cost().macs
    assert macs_thop(architecture.build(), pixels) == architecture.cost().macs
    assert architecture.build()(torch.randn(1, 1, 28, 20)).shape == (1, 5)


# -- PiT ---------------------------------------------------------------------------------------------------------------

def macro_built(config, width, seed=0):
    """A macro's module in float64, filled as its declarations say."""
    return built(config, width, seed, torch.float64)


@pytest.mark.parametrize("size", [(27, 27), (8, 5), (1, 4)], ids=str)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_the_pooling_layer_is_a_grouped_convolution(size, copies):
    config = bp.TokenPooling(width=8 * copies)
    config.check(8, "here")
    module, x = macro_built(config, 8), grid(*size)
    theirs = F.conv2d(x.permute(0, 3, 1, 2), module.taps[:, None], stride=2, padding=1, groups=8).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), theirs, rtol=1e-12, atol=1e-12)
    assert config.out(8, size) == (8 * copies, tuple(module(x).shape[1:3]))


def test_the_pooling_layer_with_filters_of_one_tap_leaves_every_second_token():
    module, x = macro_built(bp.TokenPooling(width=16), 8), grid(6, 7)
    with torch.no_grad():
        module.taps.zero_()
        module.taps[:, 1, 1] = 1.0
    assert torch.equal(module(x), x[:, ::2, ::2].repeat_interleave(2, -1))


@pytest.mark.parametrize(("size", "rows"), [((5, 5), None), ((4, 6), 4)], ids=str)
def test_the_pooling_layer_pools_patches_and_projects_the_class_token(size, rows):
    config = bp.TokenPooling(width=16, class_token=True, rows=rows)
    module, plain, x, token = macro_built(config, 8), bp.TokenPooling(width=16).build(8).double(), grid(*size), grid(1)
    with torch.no_grad():
        plain.taps.copy_(module.taps)
    y = module(torch.cat([token, x.flatten(1, 2)], 1))
    torch.testing.assert_close(y[:, 1:], plain(x).flatten(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[:, :1], token @ module.class_token.weight.T, rtol=1e-12, atol=1e-12)
    assert config.out(8, 1 + size[0] * size[1]) == (16, y.shape[1])


# -- MViT --------------------------------------------------------------------------------------------------------------

def equal_with_gradients(ours, theirs, leaves):
    """Outputs, and gradients to the leaves, of two ways to compute the same."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    mask = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=ours.dtype)
    mine, wanted = (torch.autograd.grad((y * mask).sum(), leaves, allow_unused=True, materialize_grads=True)
                    for y in (ours, theirs))
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("pool", ["conv", "max"])
def test_pooling_attention_without_a_stride_and_a_kernel_is_attention_over_all_tokens(pool):
    ours = built(bp.PoolingAttention(heads=2, kv_stride=1, kernel=1, pool=pool), 8, dtype=torch.float64)
    plain = copied(bp.ReducedAttention(heads=2, reduction=1).build(8).double(), ours)
    torch.testing.assert_close(ours(grid(4, 5)), plain(grid(4, 5)), rtol=1e-12, atol=1e-12)


GIVEN = [({}, (5, 4)), ({"class_token": True}, (10,)), ({"class_token": True, "rows": 2}, (7,)), ({"frames": 3}, (9, 2)),
         ({"frames": 2, "class_token": True}, (9,)), ({"frames": 2, "class_token": True, "rows": 1}, (7,))]


@pytest.mark.parametrize(("options", "size"), GIVEN, ids=str)
@pytest.mark.parametrize("pool", ["conv", "max", "mean"])
def test_pooling_attention_of_videos_and_class_tokens_is_its_formula(options, size, pool):
    config = bp.PoolingAttention(heads=2, pool=pool, **options)
    config.check(8, "here")
    check_declaration(config, 8)
    module, x = built(config, 8, dtype=torch.float64), grid(*size).requires_grad_()
    theirs = pooling_attention(dict(module.named_parameters()), config, x).view(x.shape)
    equal_with_gradients(module(x), theirs, [x, *module.parameters()])
    with torch.device("meta"):
        assert count_macs(config.build(8), torch.empty(1, *size, 8)) == config.macs(8, size if len(size) == 2 else size[0])


@pytest.mark.parametrize(("options", "size"), GIVEN, ids=str)
@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"width": 12}, {"stride": 2, "width": 16, "kv_stride": 1}], ids=str)
def test_a_multiscale_layer_is_its_formula(options, size, changes):
    config = bp.MultiscaleLayer(heads=2, **options, **changes)
    config.check(8, "here")
    module, x = macro_built(config, 8), grid(*size).requires_grad_()
    ours = module(x)
    theirs = multiscale_layer(dict(module.named_parameters()), config, x)
    equal_with_gradients(ours, theirs.view(ours.shape), [x, *module.parameters()])
    length = size if len(size) == 2 else size[0]
    after = ours.shape[1] if len(size) == 1 else tuple(ours.shape[1:3])
    assert config.out(8, length) == (ours.shape[-1], after)
    with torch.device("meta"):
        assert count_macs(config.build(8), torch.empty(1, *size, 8)) == config.macs(8, length)


def test_a_multiscale_layer_that_changes_nothing_is_a_block():
    config = bp.MultiscaleLayer(heads=2, kv_stride=2, ratio=2)
    block = bp.Block(mixer=bp.PoolingAttention(heads=2, kv_stride=2), channel=bp.MLP(ratio=2), norm=bp.LayerNorm())
    module, x = macro_built(config, 8), grid(5, 4)
    names = [("norm.", "mixer.norm."), ("attention.", "mixer.op."), ("mlp_norm.", "channel.norm."), ("up.", "channel.op.up."),
             ("down.", "channel.op.down.")]
    held = {}
    for name, p in module.state_dict().items():
        old, new = next(pair for pair in names if name.startswith(pair[0]))
        held[new + name[len(old):]] = p
    plain = block.build(8).double()
    plain.mixer.spatial = True
    plain.load_state_dict(held)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-12, atol=1e-12)


def test_frames_of_one_tap_in_time_do_not_meet():
    """Each frame's pooled tokens are those of an image, where filters see one frame."""
    video, image = (built(bp.PoolingAttention(heads=1, kv_stride=2, frames=frames), 8, dtype=torch.float64)
                    for frames in (2, 1))
    with torch.no_grad():
        for name in ("key_pool", "value_pool"):
            taps = getattr(video, name).taps
            taps[:, [0, 2]] = 0
            getattr(image, name).taps.copy_(taps[:, 1:2])
    x = grid(8, 4)
    volume = x.unflatten(1, (2, 4)).permute(0, 4, 1, 2, 3)
    frames = [image.key_pool(frame[:, :, None]) for frame in volume.unbind(2)]
    torch.testing.assert_close(video.key_pool(volume), torch.cat(frames, 2), rtol=1e-12, atol=1e-12)


def test_a_video_of_one_frame_is_an_image():
    tubes = built(bp.TubeEmbedding(patch=2, tube=1, image=(6, 4), frames=1, kernel=3), 8, dtype=torch.float64)
    patches = bp.PatchEmbedding(2, 3, (6, 4), kernel=3, grid=True).build(8).double()
    with torch.no_grad():
        tubes.frame_position.zero_()
        patches.projection.weight.copy_(tubes.weight.flatten(1))
        patches.position.copy_(tubes.position)
    pixels = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(tubes(pixels[:, :, None]), patches(pixels), rtol=1e-12, atol=1e-12)


def test_a_model_of_videos_learns_and_costs_what_it_declares():
    space = bp.Space(embed=bp.TubeEmbedding(patch=4, image=16, frames=4, tube_kernel=3, kernel=7), width=bp.choice(8, 16),
                     body=(bp.MultiscaleLayer(width=16, frames=2), bp.MultiscaleLayer(2, stride=2, frames=2, kv_stride=1)),
                     head=bp.PooledHead(5), norm=bp.LayerNorm())
    net, video = bp.Supernet(space, seed=0), torch.randn(2, 3, 4, 16, 16)
    for seed in (0, 1):
        architecture = space.sample(seed)
        model = net.extract(architecture)
        assert torch.allclose(net.subnet(architecture)(video), model(video), rtol=1e-4, atol=1e-5)
        model(video).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert macs_flop_counter(architecture.build(), video[:1]) == architecture.cost().macs
        assert macs_thop(architecture.build(), video[:1]) == architecture.cost().macs


# -- heads -------------------------------------------------------------------------------------------------------------

def scores_of(pool, x, classes=3, **options):
    """Of a pooling with the same score matrix whatever the pooling."""
    head = built(bp.PooledHead(classes, pool=pool, **options), x.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        head.scores.weight.copy_(torch.linspace(-1, 1, head.scores.weight.numel()).view_as(head.scores.weight))
        head.scores.bias.zero_()
    return head


def test_sequence_pooling_without_scores_is_the_mean():
    x = grid(7)
    head = scores_of("attention", x)
    assert not torch.allclose(head(x), scores_of("mean", x)(x))
    with torch.no_grad():
        head.weigh.weight.zero_()
    torch.testing.assert_close(head(x), scores_of("mean", x)(x), rtol=1e-12, atol=1e-12)


def test_sequence_pooling_with_one_token_that_stands_out_is_that_token():
    x = grid(7)
    x[:, 3, 0] = 100.0
    head = scores_of("attention", x)
    with torch.no_grad():
        head.weigh.weight.zero_()
        head.weigh.weight[0, 0] = 50.0
    torch.testing.assert_close(head(x), scores_of("class", x)(x[:, 3:4]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_power_pooling_lies_between_the_mean_and_the_maximum_and_reaches_both(groups):
    x = grid(5, 3).abs() + 0.1
    mean, top = (scores_of(pool, x)(x) for pool in ("mean", "max"))
    torch.testing.assert_close(scores_of("power", x, groups=groups, power=1)(x), mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scores_of("power", x, groups=groups, power=1e6)(x), top, rtol=1e-5, atol=1e-5)
    between = bp.PooledHead(2, pool="power", groups=groups).build(8).double()
    with torch.no_grad():
        between.power.fill_(3.0)
        between.scores.weight.copy_(torch.eye(2, 8))
        between.scores.bias.zero_()
    values = between(x)
    tokens = x.flatten(1, 2)[..., :2]
    assert (values > tokens.mean(1)).all() and (values < tokens.amax(1)).all()


def test_power_pooling_has_a_power_per_group():
    x = grid(9).abs() + 0.1
    head = scores_of("power", x, classes=8, groups=2)
    with torch.no_grad():
        head.scores.weight.copy_(torch.eye(8))
        head.power.copy_(torch.tensor([1.0, 1e6]))
    torch.testing.assert_close(head(x)[:, :4], x.mean(1)[:, :4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head(x)[:, 4:], x.amax(1)[:, 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_power_pooling_stays_in_the_range_of_half_precision(dtype):
    x = torch.tensor([300.0, 2.0, 0.0]).view(1, 3, 1).expand(1, 3, 8).to(dtype)
    head = scores_of("power", x.double()).to(dtype)
    assert head(x).isfinite().all()


def test_the_mean_is_the_classifiers():
    x = grid(4, 5)
    classifier = copied(bp.ClassifierHead(3).build(8).double(), scores_of("mean", x))
    assert torch.equal(classifier(x), scores_of("mean", x)(x))


# -- what is refused ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.LinearReducedAttention(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.LinearReducedAttention(side=0), "side must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.ConvTokenizer(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ConvTokenizer(layers=0), "layers must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.ConvTokenizer(position="sin"), "unknown position 'sin'; did you mean 'sine'?"),
    (bp.PooledHead(3, pool="avg"), "unknown pool 'avg'"),
    (bp.PooledHead(3, pool="power", groups=5), "groups must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.PooledHead(3, pool="max", groups=4), "groups are of pool='power' at body[0].mixer: got 4 with pool='max'; use 1"),
    (bp.PooledHead(3, pool="power", power=0), "power must be a positive number at body[0].mixer: got 0"),
    (bp.PatchEmbedding(4, 3, 16, grid=True, class_token=True), "a class token has no place on a grid at body[0].mixer"),
    (bp.PatchEmbedding(4, 3, 18, kernel=8, padded=False), "windows inside the image fill it at body[0].mixer: got kernel=8"),
    (bp.PatchEmbedding(4, 3, 4, kernel=8, padded=False), "windows inside the image fill it at body[0].mixer: got kernel=8"),
    (bp.TokenPooling(width=100), "the width before must divide width at body[0].mixer: got 64 and 100"),
    (bp.TokenPooling(stride=0), "stride must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.TokenPooling(rows=0), "rows must be a whole number of at least 1 at body[0].mixer: got 0; use None for a square"),
    (bp.CompressionStem(image=48, halvings=4), "2^(halvings + 1) must divide image at body[0].mixer: got 32 and 48"),
    (bp.DenseHead(0), "classes must be a whole number of at least 1 at body[0].mixer: got 0; use 1 for one value per place"),
    (bp.PatchEmbedding(position="sine"), "position is True, False or 'conv' at body[0].mixer: got 'sine'"),
    (bp.LocalValueAttention(kernel=2), "kernel must be odd at body[0].mixer: got 2; use 1 or 3"),
    (bp.TokensToToken(kernels=(7, 3)), "kernels and strides have a number per split at body[0].mixer: got (7, 3) and"),
    (bp.TokensToToken(kernels=(3, 3, 3)), "kernels must be a whole number of at least 4 at body[0].mixer: got 3"),
    (bp.TokensToToken(mixer="reformer"), "unknown mixer 'reformer'; did you mean 'performer'?"),
    (bp.TokensToToken(lift=0), "lift is a positive share of token_dim at body[0].mixer: got 0; use 0.5"),
    (bp.PoolingAttention(kernel=2), "kernel must be odd at body[0].mixer: got 2; use 1 or 3"),
    (bp.PoolingAttention(pool="avg"), "unknown pool 'avg'"),
    (bp.PoolingAttention(frames=0), "frames must be a whole number of at least 1 at body[0].mixer: got 0; use 1"),
    (bp.MultiscaleLayer(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.MultiscaleLayer(width=0), "width must be a whole number of at least 1 at body[0].mixer: got 0; use None to keep it"),
    (bp.TubeEmbedding(frames=15), "tube must divide frames at body[0].mixer: got 2 and 15; use 1 or 3"),
    (bp.TubeEmbedding(kernel=2), "kernel must be a whole number of at least 4 at body[0].mixer: got 2"),
    (bp.ConvMLP(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ConvMLP(ratio=0), "ratio must be a positive number at body[0].mixer: got 0"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)
