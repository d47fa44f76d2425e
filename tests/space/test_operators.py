"""What operators answer to bad numbers, what they cost, and what their modules do at the edges."""

from __future__ import annotations

import copy
import math

import bodyplan as bp
import pytest
import torch
from bodyplan.testing import built, check_operator, count_macs
from torch import nn

torch.set_num_threads(1)


@pytest.mark.parametrize(("config", "text"), [
    (bp.GatedDeltaNet(heads=6), "heads must divide width at body[0].mixer: got 6 and 64; use 4 or 8"),
    (bp.GatedDeltaNet(heads=0), "heads must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.GatedDeltaNet(expand_v=1.5), "expand_v must be a whole number of at least 1 at body[0].mixer: got 1.5"),
    (bp.GatedDeltaNet(conv=-1), "conv must be a whole number of at least 0 at body[0].mixer: got -1"),
    (bp.Mamba2(head_dim=48), "head_dim must divide expand * width at body[0].mixer: got 48 and 128; use 32 or 64"),
    (bp.Mamba2(head_dim=32, groups=3), "groups must divide heads (expand * width / head_dim) at body[0].mixer"),
    (bp.Mamba2(state=0), "state must be a whole number of at least 1 at body[0].mixer: got 0"),
    (bp.Hyena(order=1), "order must be a whole number of at least 2 at body[0].mixer: got 1; use ShortConv"),
    (bp.Hyena(reach=0.5), "reach must be a whole number of at least 1 at body[0].mixer: got 0.5"),
    (bp.ShortConv(kernel=True), "kernel must be a whole number of at least 1 at body[0].mixer: got True"),
    (bp.SwiGLU(0), "ratio must be a positive number at body[0].mixer: got 0"),
    (bp.MLP(activation="gleu"), "unknown activation 'gleu'; did you mean 'gelu'?"),
    (bp.Attention(heads=5), "heads must divide width at body[0].mixer: got 5 and 64; use 2 or 4"),
    (bp.TokenEmbedding(vocab=0), "vocab must be a whole number of at least 1 at body[0].mixer: got 0; use 256"),
    (bp.PatchEmbedding(patch=5, image=28), "patch must divide image at body[0].mixer: got 5 and 28; use one of 1, 2"),
    (bp.LanguageHead(tied=False), "vocab must be a whole number of at least 1 at body[0].mixer: got None; write Lang"),
    (bp.ClassifierHead(classes=1), "classes must be a whole number of at least 2 at body[0].mixer: got 1"),
])
def test_a_number_that_cannot_be_built_is_named_with_its_place_and_a_way_out(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(64, "body[0].mixer")
    assert text in str(caught.value)


def test_hidden_sizes_are_rounded_up_to_eight():
    sizes = {ratio: bp.SwiGLU(ratio).axes(96)["up.weight"].shape[0] for ratio in (2, 8 / 3, 2.7, 0.01)}
    assert sizes == {2: 192, 8 / 3: 256, 2.7: 264, 0.01: 8}


def test_costs_by_hand():
    """Width 8, by counting the products of each formula on paper."""
    assert bp.SwiGLU(3).decode_macs(8, 0) == 3 * 8 * 24
    assert bp.ShortConv(kernel=4).decode_macs(8, 100) == 8 * 24 + 8 * 8 + 4 * 8
    attention = bp.Attention(heads=2, kv_heads=1, window=3)
    assert attention.decode_macs(8, 100) == 8 * (8 + 4 + 4 + 8) + 2 * 8 * 3
    assert attention.state_numel(8, 100) == 2 * 2 * 4
    delta = bp.GatedDeltaNet(heads=2, conv=None, gate=False)
    assert delta.decode_macs(8, 100) == 8 * (3 * 8 + 2 + 2) + 8 * 8 + 3 * 2 * 4 * 4
    mamba = bp.Mamba2(state=4, head_dim=8, conv=2)
    assert mamba.decode_macs(8, 100) == 8 * (16 + 16 + 8 + 2) + 16 * 8 + 2 * (16 + 8) + 2 * 2 * 4 * 8
    assert mamba.state_numel(8, 100) == 2 * 4 * 8 + 1 * (16 + 8)
    assert bp.Mamba2(state=4, head_dim=8).state_numel(8, 1) == bp.Mamba2(state=4, head_dim=8).state_numel(8, 10**6)
    assert bp.Hyena(order=2, conv=3).state_numel(8, 200) == 8 * (200 + 256) + 2 * 3 * 8


@pytest.mark.parametrize("config", [
    bp.GatedDeltaNet(heads=2, expand_v=2), bp.Mamba2(state=24, head_dim=16, groups=2), bp.ShortConv(),
    bp.Hyena(order=3, filter_dim=16), bp.SwiGLU(), bp.MLP()], ids=lambda config: type(config).__name__)
@pytest.mark.parametrize("length", [31, 100, 256])
def test_macs_are_what_torch_counts_where_nothing_is_masked(config, length):
    with torch.device("meta"):
        counted = count_macs(config.build(64), torch.empty(1, length, 64))
    assert config.macs(64, length) == pytest.approx(counted, rel=0.02)


@torch.no_grad()
def test_hyena_decodes_over_the_end_of_its_block_of_taps():
    module = built(bp.Hyena(filter_dim=8, reach=64), 8)
    x_BTD = torch.randn(1, 260, 8, generator=torch.Generator().manual_seed(0))
    _, state = module.step(x_BTD[:, :126], None)
    rest = []
    for t in range(126, 260):
        y, state = module.step(x_BTD[:, t:t + 1], state)
        rest.append(y)
    assert torch.allclose(torch.cat(rest, 1), module(x_BTD)[:, 126:], atol=1e-5)


@torch.no_grad()
def test_hyena_filters_start_with_about_unit_energy_whatever_their_reach():
    for reach in (32, 128, 1024):
        taps_LND = built(bp.Hyena(reach=reach), 64).filter_taps(4 * reach, None)
        energy = taps_LND[1:].square().sum(0).mean().item()
        assert 0.1 < energy < 2.0, (reach, energy)


@torch.no_grad()
def test_tokens_enter_at_unit_size_and_leave_with_unit_logits():
    table = built(bp.TokenEmbedding(vocab=500), 64)
    x_BTD = table(torch.arange(500)[None])
    assert 0.9 < x_BTD.square().mean().sqrt() < 1.1
    logits = bp.LanguageHead().build(64)(torch.randn(1, 200, 64), table.weight)
    assert 0.9 < logits.std() < 1.1


@torch.no_grad()
def test_patches_are_read_left_to_right_top_to_bottom():
    config = bp.PatchEmbedding(patch=2, channels=3, image=(4, 6))
    module = built(config, 8)
    pixels = torch.randn(1, 3, 4, 6)
    x_BTD = module(pixels)
    assert x_BTD.shape == (1, 6, 8)
    second_row_first_column = pixels[:, :, 2:4, 0:2].reshape(1, -1) @ module.projection.weight.T + module.position[1, 0]
    assert torch.allclose(x_BTD[:, 3], second_row_first_column, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [bp.GatedDeltaNet(heads=2), bp.Mamba2(state=16, head_dim=16), bp.Hyena(),
                                    bp.Attention(heads=2), bp.ShortConv()])
def test_long_and_repetitive_input_stays_finite(config):
    module = built(config, 32)
    for x_BTD in (torch.ones(1, 1000, 32), 1e3 * torch.randn(1, 500, 32), torch.zeros(1, 100, 32)):
        assert module(x_BTD).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("config", [bp.GatedDeltaNet(heads=2), bp.Mamba2(state=16, head_dim=16), bp.Hyena(),
                                    bp.Attention(heads=2), bp.ShortConv(), bp.SwiGLU()])
def test_bfloat16_follows_float32_on_the_same_weights(config):
    module, x_BTD = built(config, 32).bfloat16(), torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    wanted = copy.deepcopy(module).float()(x_BTD)
    y_BTD = module(x_BTD.bfloat16())
    assert y_BTD.dtype == torch.bfloat16
    assert (y_BTD.float() - wanted).norm() < 0.05 * wanted.norm()
    if hasattr(module, "step"):
        state = module.init_state(2, dtype=torch.bfloat16)
        _, state = module.step(x_BTD[:, :39].bfloat16(), state)
        y_B1D, _ = module.step(x_BTD[:, 39:].bfloat16(), state)
        assert (y_B1D.float() - wanted[:, 39:]).norm() < 0.05 * wanted.norm()


# -- a user's own module -----------------------------------------------------------------------------------------

class Gate(nn.Module):
    """Packed projection, a gain, and a parameter that does not grow with the width."""

    def __init__(self, width: int, rank: int = 3):
        super().__init__()
        self.packed = nn.Linear(width, 2 * width)
        self.low = nn.Linear(width, rank, bias=False)
        self.high = nn.Linear(rank, width, bias=False)
        self.gain = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x_BTD):
        a, b = self.packed(x_BTD).chunk(2, -1)
        return self.gain * (a * b.sigmoid() + self.high(self.low(x_BTD)))


class Leaky(nn.Module):
    """A running average with a decode state."""

    def __init__(self, width: int):
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(0.1, 0.9, width))

    def init_state(self, batch, dtype=torch.float32, device=None):
        return {"mean": torch.zeros(batch, len(self.rate), dtype=dtype, device=device)}

    def forward(self, x_BTD):
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD, state):
        mean = torch.zeros_like(x_BTD[:, 0]) if state is None else state["mean"]
        outputs = []
        for x_BD in x_BTD.unbind(1):
            mean = mean + self.rate * (x_BD - mean)
            outputs.append(mean)
        return torch.stack(outputs, 1), {"mean": mean}


def test_custom_module_keeps_the_contract_at_several_widths():
    check_operator(bp.Custom(Gate), 32, smaller=[(bp.Custom(Gate), 16), (bp.Custom(Gate), 24)])
    check_operator(bp.Custom(lambda width: Gate(width, rank=5)), 32)


def test_custom_packed_projection_gives_each_part_its_own_slice():
    big, small = bp.Custom(Gate).axes(32)["packed.weight"], bp.Custom(Gate).axes(16)["packed.weight"]
    from bodyplan.space.axes import flat_indices

    rows = flat_indices(big, small).view(32, 16)[:, 0] // 32
    assert rows.tolist() == [*range(16), *range(32, 48)]


def test_custom_fixed_dimensions_do_not_grow():
    declared = bp.Custom(Gate).axes(16)
    assert declared["low.weight"].shape == (3, 16) and declared["gain"].share == "own"


def test_custom_parameters_start_as_the_factory_starts_them():
    declared = bp.Custom(Gate).axes(64)
    assert (declared["gain"].init.kind, declared["gain"].init.low) == ("constant", 0.5)
    module = built(bp.Custom(Gate), 64)
    assert math.isclose(module.low.weight.std().item(), nn.Linear(64, 3).weight.std().item(), rel_tol=0.3)
    rate = built(bp.Custom(Leaky), 64).rate
    assert rate.min() >= 0.1 and rate.max() <= 0.9


class Unset(nn.Module):
    """A map whose matrix nobody filled."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))

    def forward(self, x_BTD):
        return x_BTD @ self.weight


def test_custom_module_that_leaves_a_parameter_unset_is_refused_whatever_the_memory_held():
    with pytest.raises(ValueError, match=r"parameters in its constructor at body: weight of Unset hold no finite"):
        bp.Custom(Unset).check(16, "body")
    assert not torch.are_deterministic_algorithms_enabled()


def test_custom_module_with_a_step_streams():
    config = bp.Custom(Leaky)
    assert config.streaming and not bp.Custom(Gate).streaming
    assert config.state_numel(16, 100) == 16
    check_operator(config, 16)


@pytest.mark.parametrize(("factory", "error", "text"), [
    (3, TypeError, "Custom takes a class or function of the width at body[1].channel: got 3"),
    (lambda width: width, TypeError, "a custom factory returns an nn.Module at body[1].channel"),
    (lambda width, heads: Gate(width), ValueError, "a custom module is built from the width at body[1].channel"),
    (lambda width: nn.Linear(width, 7), ValueError, "[1, 4, 16] to the same shape at body[1].channel: Linear"),
    (lambda width: nn.LSTM(width, width, batch_first=True), ValueError, "gave tuple; return one tensor"),
    (lambda width: nn.Linear(width + 1, width), ValueError, "same shape at body[1].channel: Linear"),
    (lambda width: nn.BatchNorm1d(4), ValueError, "keeps no buffers at body[1].channel: got running_mean"),
])
def test_custom_module_that_does_not_fit_is_refused_before_any_work(factory, error, text):
    with pytest.raises(error) as caught:
        bp.Custom(factory).check(16, "body[1].channel")
    assert text in str(caught.value)


def test_custom_operators_are_told_apart_by_what_their_lambdas_do():
    three, five = 3, 5
    a, b = bp.Custom(lambda width: Gate(width, three)), bp.Custom(lambda width: Gate(width, five))
    same = [bp.Custom(lambda width: Gate(width, 3)) for _ in range(2)]
    assert a.name != b.name and a != b
    assert same[0].name == same[1].name
    assert bp.Custom(Gate).name == "Gate" and bp.Custom(Gate) == bp.Custom(Gate)
    assert bp.Custom(Gate, name="mine").name == "mine"


def test_custom_module_whose_forward_needs_values_is_accepted():
    class Peeking(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.proj = nn.Linear(width, width)

        def forward(self, x_BTD):
            return self.proj(x_BTD) if float(x_BTD.sum()) >= 0 else self.proj(-x_BTD)

    bp.Custom(Peeking).check(16, "body[0].mixer")
