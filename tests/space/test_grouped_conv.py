"""Grouped convolution and low-rank layers against their formulas, and what their numbers must be."""

import math

import pytest
import torch
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.testing import built, check_reference, count_macs

torch.set_num_threads(1)


def grouped(w, config, x_BTD):
    """Tap by tap and group by group."""
    u = torch.einsum("btd,cd->btc", x_BTD, w["input.weight"])
    channels = u.shape[2] // config.groups
    outputs = []
    for t in range(u.shape[1]):
        parts = []
        for g in range(config.groups):
            part = slice(g * channels, (g + 1) * channels)
            total = torch.zeros(len(u), channels, dtype=u.dtype)
            for j in range(config.kernel):
                s = t - config.kernel + 1 + j
                if s >= 0:
                    total = total + u[:, s, part] @ w["taps"][part, :, j].T
            parts.append(total)
        outputs.append(torch.cat(parts, -1))
    y = torch.stack(outputs, 1)
    return torch.einsum("btc,dc->btd", y * torch.sigmoid(y), w["out.weight"])


@pytest.mark.parametrize("config", [GroupedConv(kernel=3, groups=2), GroupedConv(kernel=4, groups=3, channels=2),
                                    GroupedConv(kernel=1, groups=1)])
def test_a_grouped_convolution_is_its_formula(config):
    check_reference(config, 8, grouped)


def low_rank(w, config, x_BTD):
    h = x_BTD @ (w["up_out.weight"] @ w["up_in.weight"]).T
    active = {"gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2, "silu": lambda x: x * torch.sigmoid(x),
              "squared_relu": lambda x: x.clamp(min=0) ** 2}[config.activation]
    return active(h) @ (w["down_out.weight"] @ w["down_in.weight"]).T


@pytest.mark.parametrize("activation", ["gelu", "silu", "squared_relu"])
def test_a_low_rank_layer_is_the_layer_of_the_products(activation):
    check_reference(LowRankMLP(ratio=2, rank=3, activation=activation), 8, low_rank)


def test_costs_by_hand():
    assert GroupedConv(kernel=4, groups=2).decode_macs(8, 100) == 2 * 8 * 8 + 2 * 4 * 4 * 4
    assert GroupedConv(kernel=4, groups=2).state_numel(8, 100) == 3 * 8
    assert GroupedConv(kernel=4, groups=2, channels=8).decode_macs(8, 0) == 2 * 8 * 16 + 2 * 8 * 8 * 4
    assert LowRankMLP(ratio=4, rank=3).decode_macs(8, 0) == 2 * 3 * (8 + 32)


@pytest.mark.parametrize("length", [1, 31, 100])
def test_a_grouped_convolution_executes_what_it_declares(length):
    config = GroupedConv(kernel=5, groups=4)
    assert count_macs(built(config, 32), torch.randn(1, length, 32)) == config.macs(32, length)


@pytest.mark.parametrize(("config", "text"), [
    (GroupedConv(groups=3), "groups must divide width at body.mixer: got 3 and 64; use 2 or 4"),
    (GroupedConv(kernel=0), "kernel must be a whole number of at least 1 at body.mixer: got 0"),
    (LowRankMLP(rank=0), "rank must be a whole number of at least 1 at body.mixer: got 0; use MLP for full matrices"),
    (LowRankMLP(activation="gleu"), "unknown activation 'gleu'; did you mean 'gelu'?")])
def test_numbers_that_cannot_be_built_are_named(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body.mixer")
    assert text in str(caught.value)
