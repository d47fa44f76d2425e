"""Every registered operator keeps the contract of `bodyplan.testing`, over its sizes, axes and options."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from dataclasses import dataclass, fields, replace

import bodyplan as bp
import bodyplan.space.operators
import pytest
import torch
from bodyplan.space.axes import Param, axis, param
from bodyplan.space.operator import Operator, Source, operators
from bodyplan.space.reach import patterns_of
from bodyplan.testing import (
    check_batch,
    check_causality,
    check_complexity,
    check_costs,
    check_declaration,
    check_elasticity,
    check_long,
    check_operator,
    check_order,
    check_patterns,
    check_pointwise,
    check_precision,
    check_prefill,
    check_state,
    check_training,
    check_trains,
    check_zero,
    is_linear,
    pattern_of,
)
from operator_examples import EXAMPLES, REFERENCES, UNVARIED, UNVARIED_OPTIONS, sampled_names

torch.set_num_threads(1)

for _module in pkgutil.iter_modules(bodyplan.space.operators.__path__):
    importlib.import_module(f"bodyplan.space.operators.{_module.name}")


@pytest.mark.parametrize("name", sampled_names())
def test_operator_keeps_the_contract(name):
    (config, width), *smaller = EXAMPLES[name]
    check_operator(config, width, smaller=smaller, reference=REFERENCES.get(name))


def test_the_default_suite_samples_the_contract():
    marks = [getattr(name, "marks", ()) for name in sampled_names()]
    assert 0 < sum(not mark for mark in marks) < len(marks) / 2


def test_tied_head_keeps_the_contract():
    check_operator(bp.LanguageHead(), 32)


def test_every_operator_of_the_package_is_in_the_table():
    ours = {name for name in operators.names()
            if operators.get(name).__module__.startswith("bodyplan.") and operators.get(name).kind != "macro"}
    missing = sorted(ours - set(EXAMPLES))
    assert not missing, f"give {', '.join(missing)} examples in tests/operator_examples/: (config, width), largest first"
    assert set(EXAMPLES) == ours


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_vary_every_axis_of_an_operator(name):
    sizes = defaultdict(set)
    for config, width in EXAMPLES[name]:
        for declared in config.axes(width).values():
            for each in (a for dim in declared.dims for a in dim.axes()):
                sizes[each.name].add(each.size)
    alike = {axis for axis, found in sizes.items() if len(found) == 1} - set(UNVARIED.get(name, ()))
    assert not alike, (f"the examples of {name} in tests/operator_examples/ give {', '.join(sorted(alike))} one size; "
                       "add an example with another, or say in UNVARIED why there is none")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_vary_every_option_of_an_operator(name):
    values = {f.name: {repr(getattr(config, f.name)) for config, _ in EXAMPLES[name]} for f in fields(EXAMPLES[name][0][0])}
    alike = {option for option, found in values.items() if len(found) == 1} - set(UNVARIED_OPTIONS.get(name, ()))
    assert not alike, (f"the examples of {name} in tests/operator_examples/ give {', '.join(sorted(alike))} one value; "
                       "add an example with another, or say in UNVARIED_OPTIONS why there is none")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_operator_names_its_source(name):
    source = operators.get(name).source
    assert source.paper and 1950 < source.year < 2100


@pytest.mark.parametrize("name", sampled_names())
def test_the_examples_show_every_attention_pattern_of_an_operator(name):
    seen = {pattern_of(config, width) for config, width in EXAMPLES[name] if config.kind == "mixer"} - {None}
    assert not seen or seen == set(patterns_of(operators.get(name))), (
        f"the examples of {name} in tests/operator_examples/ are seen to be {sorted(seen)}, and it declares "
        f"{patterns_of(operators.get(name))}; add an example, or correct `patterns`")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_operator_of_linear_time_keeps_linear_memory_at_16384_tokens(name):
    linear = [(config, width) for config, width in EXAMPLES[name] if is_linear(config, width)]
    if not linear:
        pytest.skip(f"{name} mixes no tokens, or takes more than linear time in every example")
    for config, width in linear[-2:]:
        check_long(config, width)


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


class Shifted(Mixing):
    """Rolls the channels."""

    def forward(self, x_BTD):
        return self.proj(x_BTD).roll(1, -1) + 1


class Counting(Mixing):
    """Keeps a tensor beside its parameters."""

    def __init__(self, width: int):
        super().__init__(width)
        self.seen = torch.zeros(width)


class Remembering(Mixing):
    """Scales by how often it ran: two modules on the same weights drift apart."""

    calls = 0

    def forward(self, x_BTD):
        self.calls += 1
        return self.proj(x_BTD) * (1 if self.proj.weight.is_leaf else 1.01)


class Batched(Mixing):
    """Takes off the mean over the batch."""

    def forward(self, x_BTD):
        return self.proj(x_BTD - x_BTD.mean(0, keepdim=True))


class Cancelling(Mixing):
    """Adds a large number and takes it off again."""

    def forward(self, x_BTD):
        return self.proj((x_BTD + 1000) - 1000)


class Overflowing(Mixing):
    """Squares large numbers, which half precision cannot hold."""

    def forward(self, x_BTD):
        return self.proj((300 * x_BTD) ** 2 / 9e4)


class Widening(Mixing):
    """Gives fp32 whatever it is given."""

    def forward(self, x_BTD):
        return self.proj(x_BTD).float()


class Quadratic(Mixing):
    """Keeps all pairs of tokens."""

    def forward(self, x_BTD):
        return self.proj(x_BTD) + (x_BTD[..., :1] * x_BTD[..., :1].mT).mean(-1, keepdim=True)


class Exploding(Mixing):
    """Grows with the number of tokens so far."""

    def forward(self, x_BTD):
        return self.proj(x_BTD) * torch.exp(torch.ones_like(x_BTD).cumsum(1) / 100)


class Absent(torch.nn.Module):
    """A running sum that starts anew with every call."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = torch.nn.Linear(width, width, bias=False)

    def init_state(self, batch, dtype=torch.float32, device=None):
        return {"total": torch.zeros(batch, self.proj.in_features, dtype=dtype, device=device)}

    def forward(self, x_BTD):
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD, state):
        y_BTD = self.proj(x_BTD).cumsum(1)
        return y_BTD, {"total": y_BTD[:, -1]}


class Stale(Absent):
    """A running sum whose state is behind: right outputs after one call, wrong ones from then on."""

    def step(self, x_BTD, state):
        before = 0 if state is None else state["total"][:, None]
        y_BTD = self.proj(x_BTD).cumsum(1) + before
        return y_BTD, {"total": y_BTD[:, -1] if state is None else state["total"]}


class Silent(Mixing):
    """Says nothing, whatever it learns."""

    def forward(self, x_BTD):
        return 0 * self.proj(x_BTD)


class _Broken(Operator):
    source = Source("(test)", 2026)
    module: type = Mixing

    def axes(self, width: int) -> dict[str, Param]:
        return {"proj.weight": param(axis("out", width), axis("width", width))}

    def build(self, width: int):
        return self.module(width)


class _Running(_Broken):
    module = Running


class _Shifted(_Broken):
    module = Shifted
    keeps_zero = True


class _Counting(_Broken):
    module = Counting


class _Remembering(_Broken):
    module = Remembering


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


class _Measured(_Broken):
    """Declares a statistic that its module trains."""

    def axes(self, width):
        return {"proj.weight": replace(super().axes(width)["proj.weight"], statistic=True)}


def broken(module: type, **says):
    """An operator of a module class, with class attributes."""
    return type(f"_{module.__name__}", (_Broken,), {"module": module, **says})()


@pytest.mark.parametrize(("check", "config", "text"), [
    (check_patterns, broken(Mixing, causal=False, patterns=("causal self",)), "patterns names what an operator does"),
    (check_patterns, broken(Running, causal=False, patterns=("causal self",)), "looks at no later token is causal"),
    (check_patterns, broken(Mixing, kind="channel", patterns=("causal self",)), "only mixers have attention patterns"),
    (check_complexity, broken(Mixing, complexity="T^2"), "complexity is the growth of macs.*'T.2'.*'T'"),
    (check_complexity, broken(Mixing, complexity="T", macs=lambda self, width, length: 3 * width * length ** 2.0),
     "complexity is the growth of macs.*'T'.*'T.2'"),
    (check_complexity, broken(Mixing, state_growth="constant", state_numel=lambda self, width, length: length),
     "state_growth is the growth of state_numel"),
    (check_state, type("_Hoarding", (bp.Attention,), {"state_growth": "constant"})(heads=2), "a constant state has one size"),
    (check_batch, broken(Batched), "a sequence in a batch gives what it gives alone.*differs by"),
    (check_batch, broken(Mixing, causal=True), "a sequence in a batch gives what it gives alone: .* for 9 tokens"),
    (check_precision, broken(Cancelling), "outputs in torch.float16 are those in fp32.*accumulate in fp32"),
    (check_precision, broken(Overflowing), "outputs in torch.float16 are finite"),
    (check_precision, broken(Widening), "outputs have the type of the weights"),
    (check_long, broken(Quadratic), "an operator of linear time takes linear memory"),
    (check_long, broken(Exploding), "outputs for 16384 tokens are finite"),
    (check_prefill, broken(Absent), "outputs of two prefills are those of one"),
    (check_prefill, broken(Stale), "the state after two prefills is that after one"),
    (check_causality, _Broken(), "do not depend on later tokens"),
    (check_pointwise, _Running(), "works on each token alone"),
    (check_declaration, _Misnamed(), "axes.. declares every parameter"),
    (check_declaration, _Counting(), "computes constants in forward.*seen"),
    (check_declaration, _Measured(), "exactly the statistics take no gradient"),
    (check_costs, _Cheap(), "macs.. agrees with torch's counter"),
    (check_state, _Forgetful(), "state_numel is the true size"),
    (check_zero, _Shifted(), "keeps_zero gives zeros for zeros"),
    (check_order, _Broken(), r"axis 'out' of .* may be permuted: outputs moved by .*; declare .* or say fixed"),
    (check_order, type("_Rolled", (_Shifted,), {"axes": lambda self, width: {
        "proj.weight": param(axis("width", width), axis("width", width))}})(), "residual width of .* may be permuted"),
])
def test_a_broken_promise_is_named(check, config, text):
    with pytest.raises(AssertionError, match=text):
        check(config, 16)


@pytest.mark.parametrize(("check", "text"), [(check_elasticity, "bit for bit"),
                                             (check_training, "those of a module trained alone")])
def test_weights_that_act_differently_when_they_are_taken_are_named(check, text):
    with pytest.raises(AssertionError, match=text):
        check([(_Remembering(), 16), (_Remembering(), 8)])


def test_an_operator_that_does_not_learn_is_named():
    task = bp.tasks.selective_copying(tokens=2, length=9, vocab=4, batch=32, held_out_batches=2)
    check_trains(bp.Attention(heads=2), task, beats=10.0, steps=60)
    with pytest.raises(AssertionError, match="learn selective_copying to below 10 % of error in 60 steps: .* reaches .* and"):
        check_trains(dataclass(frozen=True)(type(broken(Silent)))(), task, beats=10.0, steps=60)
