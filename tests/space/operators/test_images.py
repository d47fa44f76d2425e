"""Tokenisers of images, what reads a grid for scores, and the operators of their pyramids: what they equal, what they refuse."""

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
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (ours.query(tokens), ours.key(small), ours.value(small)))
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


# -- what is refused ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.LinearReducedAttention(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.LinearReducedAttention(side=0), "side must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.ConvMLP(kernel=4), "kernel must be odd at body[0].mixer: got 4; use 3 or 5"),
    (bp.ConvMLP(ratio=0), "ratio must be a positive number at body[0].mixer: got 0"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)
