"""Every registered operator keeps the contract of `bodyplan.testing`, over its sizes and options."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
from bodyplan.space.axes import Param, axis, param
from bodyplan.space.operator import Operator, Source, operators
from bodyplan.testing import (
    check_causality,
    check_costs,
    check_declaration,
    check_operator,
    check_pointwise,
    check_state,
)

torch.set_num_threads(1)


class Doubled(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(2 * width, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(x_BTD).tanh())


# The largest member first; weights of the others are parts of it.
EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "Attention": [
        (bp.Attention(heads=4, kv_heads=2), 32), (bp.Attention(heads=4, kv_heads=2, window=5), 32),
        (bp.Attention(heads=2, head_dim=4, window=1), 16), (bp.Attention(heads=2, kv_heads=1, head_dim=6), 24)],
    "GatedDeltaNet": [
        (bp.GatedDeltaNet(heads=2, expand_v=2), 32), (bp.GatedDeltaNet(heads=1, head_dim=8), 16),
        (bp.GatedDeltaNet(heads=2, conv=3, allow_neg_eigval=True), 24),
        (bp.GatedDeltaNet(heads=2, conv=None, gate=False, decay=False), 24), (bp.GatedDeltaNet(heads=2, conv=1), 16)],
    "Mamba2": [
        (bp.Mamba2(state=16, head_dim=8, groups=2), 32), (bp.Mamba2(state=8, head_dim=8, expand=1, groups=2), 32),
        (bp.Mamba2(state=8, head_dim=8, conv=2), 16), (bp.Mamba2(state=16, head_dim=4, conv=None), 24)],
    "Hyena": [
        (bp.Hyena(order=3, filter_dim=16), 32), (bp.Hyena(order=2, filter_dim=8, bands=4, conv=2, reach=64), 24)],
    "ShortConv": [(bp.ShortConv(kernel=6), 32), (bp.ShortConv(kernel=3), 16), (bp.ShortConv(kernel=1), 32)],
    "SwiGLU": [(bp.SwiGLU(3), 32), (bp.SwiGLU(8 / 3), 32), (bp.SwiGLU(1), 16)],
    "MLP": [(bp.MLP(4), 32), (bp.MLP(2.5, activation="squared_relu"), 16), (bp.MLP(1, activation="silu"), 24)],
    "Identity": [(bp.Identity(), 32)],
    "RMSNorm": [(bp.RMSNorm(), 32), (bp.RMSNorm(), 16)],
    "TokenEmbedding": [(bp.TokenEmbedding(vocab=40), 32), (bp.TokenEmbedding(vocab=11), 16)],
    "PatchEmbedding": [(bp.PatchEmbedding(patch=4, channels=3, image=(16, 24)), 32),
                       (bp.PatchEmbedding(patch=2, channels=1, image=8), 16)],
    "LanguageHead": [(bp.LanguageHead(tied=False, vocab=11), 32), (bp.LanguageHead(tied=False, vocab=7), 16)],
    "ClassifierHead": [(bp.ClassifierHead(classes=10), 32), (bp.ClassifierHead(classes=3), 16)],
    "Custom": [(bp.Custom(Doubled), 32), (bp.Custom(Doubled), 16)],
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_operator_keeps_the_contract(name):
    (config, width), *smaller = EXAMPLES[name]
    check_operator(config, width, smaller=smaller)


def test_tied_head_keeps_the_contract():
    check_operator(bp.LanguageHead(), 32)


def test_every_operator_of_the_package_is_in_the_table():
    ours = {name for name in operators.names() if operators.get(name).__module__.startswith("bodyplan.")}
    assert ours == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_operator_names_its_source(name):
    source = operators.get(name).source
    assert source.paper and 1950 < source.year < 2100


# The contract itself must be able to fail: each of these operators breaks one promise.

class Mixing(torch.nn.Module):
    """Adds the mean over all tokens, later ones included."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = torch.nn.Linear(width, width, bias=False)

    def forward(self, x_BTD):
        return self.proj(x_BTD + x_BTD.mean(1, keepdim=True))


class Running(Mixing):
    """Adds the mean over the tokens so far, but has no step."""

    def forward(self, x_BTD):
        count_T1 = torch.arange(1.0, x_BTD.shape[1] + 1)[:, None]
        return self.proj(x_BTD + x_BTD.cumsum(1) / count_T1)


class _Broken(Operator):
    source = Source("(test)", 2026)
    module: type = Mixing

    def axes(self, width: int) -> dict[str, Param]:
        return {"proj.weight": param(axis("out", width), axis("width", width))}

    def build(self, width: int):
        return self.module(width)


class _Running(_Broken):
    module = Running


class _Misnamed(_Broken):
    def axes(self, width):
        return {"projection.weight": param(axis("out", width), axis("width", width))}


class _Cheap(_Broken):
    def macs(self, width, length):
        return 10.0


class _Forgetful(_Broken):
    """Declares no state, but its module keeps one."""

    def build(self, width):
        return bp.ShortConv().build(width)

    def axes(self, width):
        return bp.ShortConv().axes(width)


@pytest.mark.parametrize(("check", "config", "text"), [
    (check_causality, _Broken(), "do not depend on later tokens"),
    (check_pointwise, _Running(), "works on each token alone"),
    (check_declaration, _Misnamed(), "axes.. declares every parameter"),
    (check_costs, _Cheap(), "macs.. agrees with torch's counter"),
    (check_state, _Forgetful(), "state_numel is the true size")])
def test_a_broken_promise_is_named(check, config, text):
    with pytest.raises(AssertionError, match=text):
        check(config, 16)
