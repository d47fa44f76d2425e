"""Tokenisers of images, pooling heads, and the operators of token pyramids: what they equal, what they refuse."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.testing import built, count_macs

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
    (bp.ConvMLP(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ConvMLP(ratio=0), "ratio must be a positive number at body[0].mixer: got 0"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)
