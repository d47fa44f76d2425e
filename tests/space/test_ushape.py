"""The skip of a U whose stream from before passes an attention gate: against its formula, and its limits."""

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter


def built(width, size, seed=0):
    shape = bp.UShape(inner=bp.Block(channel=bp.MLP(ratio=1)), stride=2 if len(size) == 1 else (2, 2), width=10, skip="gated")
    module, generator = shape.build(width).double(), torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return shape, module, torch.randn(2, *size, width, dtype=torch.float64, generator=generator, requires_grad=True)


def below(module, x):
    """What comes up from the lower resolution."""
    return module.up(module.inner(module.down(x)), x)


def place_by_place(module, x):
    """sigmoid(psi . relu(W_x x + W_g g + b) + b_psi) at every place, times x, beside g, projected."""
    w, g = dict(module.named_parameters()), below(module, x)
    rows = []
    for outer, under in zip(x.flatten(0, -2), g.flatten(0, -2), strict=True):
        hidden = (w["gate.skip.weight"] @ outer + w["gate.below.weight"] @ under + w["gate.below.bias"]).clamp(min=0)
        alpha = 1 / (1 + torch.exp(-(w["gate.score.weight"] @ hidden + w["gate.score.bias"])))
        width = len(outer)
        rows.append(w["merge.weight"][:, :width] @ (alpha * outer) + w["merge.weight"][:, width:] @ under)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("size", [(8,), (7,), (6, 4), (5, 7)], ids=str)
def test_a_gated_skip_is_its_formula_at_every_place(size):
    _, module, x = built(6, size)
    wanted = torch.autograd.grad(place_by_place(module, x).square().sum(), [x, *module.parameters()])
    ours = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    torch.testing.assert_close(module(x), place_by_place(module, x))
    torch.testing.assert_close(ours, wanted)


def test_an_open_gate_concatenates_and_a_closed_one_hands_on_what_comes_up():
    _, module, x = built(6, (7,))
    with torch.no_grad():
        module.gate.score.weight.zero_()
        module.gate.score.bias.fill_(50.0)
        both = module.merge(torch.cat([x, below(module, x)], -1))
        torch.testing.assert_close(module(x), both)
        module.gate.score.bias.fill_(-50.0)
        torch.testing.assert_close(module(x), module.merge(torch.cat([torch.zeros_like(x), below(module, x)], -1)))


@pytest.mark.parametrize("size", [(8,), (7,), (5, 7)], ids=str)
def test_a_gated_skip_costs_what_it_declares(size):
    shape, module, x = built(6, size)
    length = size[0] if len(size) == 1 else size
    inner = bp.Block(channel=bp.MLP(ratio=1)).build(10).double()
    inside = macs_flop_counter(inner, module.down(x[:1]))
    assert shape.macs(6, length) + inside == macs_flop_counter(module, x[:1])
    assert sum(part.numel for part in shape.axes(6).values()) + sum(p.numel() for p in inner.parameters()) == sum(
        p.numel() for p in module.parameters())


def test_an_unknown_skip_is_refused():
    with pytest.raises(ValueError, match="skip is one of sum, concat, gated at here: got 'product'"):
        bp.UShape(inner=(), skip="product").check(8, "here")
