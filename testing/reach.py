"""Which inputs reach which outputs, and whether that is the attention pattern an operator declares.

Legend: B batch, T tokens, S sequences of which each has another token replaced, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..space.operator import Operator
from ..space.reach import complexity_of, growth_in, patterns_of, state_growth_of
from .modules import built, example_inputs, hold, run

__all__ = ["check_complexity", "check_patterns", "pattern_of", "reach_by_change", "reach_by_gradient"]

TOKENS = 24
SEEDS = (2, 3, 4)               # whoever chooses by content may not see one change


@torch.no_grad()
def reach_by_change(config: Operator, width: int, length: int = TOKENS, source: int | str = 0) -> Tensor:
    """Whether output t changes when token s of the sequence changes, or of the memory for source="memory": [t, s].

    Each token is replaced alone, in a sequence of its own, in float64 and evaluation mode; changes below 1e-9 of the
    largest output are rounding.
    """
    module = built(config, width, dtype=torch.float64).eval()
    found = torch.zeros(length, length, dtype=torch.bool)
    inputs = _copies(_sequence(config, width, length), length)
    y_STD = run(module, inputs).flatten(1, -2)
    token = torch.arange(length)
    for seed in SEEDS:
        other = _read(_sequence(config, width, length, seed), source).flatten(1, -2)[0]
        changed = _read(inputs, source).clone()
        changed.flatten(1, -2)[token, token] = other
        moved_ST = (run(module, _with(inputs, source, changed)).flatten(1, -2) - y_STD).abs().amax(-1)
        rounding = 1e-9 * y_STD.abs().max()
        found |= rounding < moved_ST.T
    return found


def reach_by_gradient(config: Operator, width: int, length: int = TOKENS, source: int | str = 0) -> Tensor:
    """How much token s, of the sequence or the memory, moves output t to first order: its largest gradient, [t, s]."""
    module = built(config, width, dtype=torch.float64).eval()
    inputs = _sequence(config, width, length)
    x_1TD = _read(inputs, source).requires_grad_()
    y_TD = run(module, inputs).flatten(1, -2)[0]
    weight = torch.randn(y_TD.shape, generator=torch.Generator().manual_seed(6), dtype=y_TD.dtype)
    rows = []
    for t in range(length):
        (grad,) = torch.autograd.grad((y_TD[t] * weight[t]).sum(), x_1TD, retain_graph=True, allow_unused=True,
                                      materialize_grads=True) if y_TD.requires_grad else (torch.zeros_like(x_1TD),)
        rows.append(grad.flatten(1, -2)[0].abs().amax(-1))
    return torch.stack(rows)


def pattern_of(config: Operator, width: int) -> str | None:
    """The attention pattern a mixer is seen to have: "causal self" and so on; None where outputs see their own token
    alone, which is every pattern at once. On a grid, which has no past, whoever is not causal is noncausal."""
    source = "memory" if config.cross else 0
    found = reach_by_change(config, width, source=source)
    if bool(found.triu(1).any()) or (config.spatial and not config.causal and bool(found.tril(-1).any())):
        return "noncausal cross" if config.cross else "noncausal self"
    if not bool(found.tril(-1).any()):
        return None
    return "causal cross" if config.cross else "causal self"


def check_patterns(config: Operator, width: int) -> None:
    """A mixer's attention pattern, as seen when tokens change, is one it declares, and the one `causal` says."""
    if config.kind != "mixer":
        hold(not patterns_of(config), f"only mixers have attention patterns: {config} is a {config.kind} and declares "
                                      f"{patterns_of(config)}")
        return
    found = pattern_of(config, width)
    hold(found is None or found in patterns_of(config), f"patterns names what an operator does: {config} at width {width} "
                                                        f"is seen to be {found} and declares {patterns_of(config)}")
    hold(found is None or config.cross or config.causal == found.startswith("causal"),
         f"an operator that looks at no later token is causal: {config} at width {width} is seen to be {found} and "
         f"declares causal = {config.causal}")


def check_complexity(config: Operator, width: int) -> None:
    """The declared complexity grows with T as the formula `macs` does, and the declared growth of the state as
    `state_numel` does."""
    if config.kind not in ("mixer", "channel") or getattr(config, "counts_by_running", False):
        return                              # what is counted by running a module has no formula to grow
    declared, formula = complexity_of(config, width), complexity_of(_Undeclared(config), width)   # type: ignore[arg-type]
    hold(growth_in(declared) == growth_in(formula), f"complexity is the growth of macs(): {config} at width {width} "
                                                    f"declares {declared!r} and its formula grows like {formula!r}")
    kept, formula = state_growth_of(config, width), state_growth_of(_Undeclared(config), width)   # type: ignore[arg-type]
    hold(kept == formula, f"state_growth is the growth of state_numel(): {config} at width {width} declares {kept!r} and "
                          f"its formula says {formula!r}")


class _Undeclared:
    """A config that says nothing about its growth, so that its formulas speak."""

    complexity = state_growth = None

    def __init__(self, config: Operator):
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _sequence(config: Operator, width: int, length: int, seed: int = 1) -> tuple[Any, ...]:
    """One sequence, or for spatial operators one grid of as many tokens."""
    size = (4, length // 4) if config.spatial else length
    return example_inputs(config, width, batch=1, length=size, seed=seed, dtype=torch.float64)


def _read(inputs: tuple[Any, ...], source: int | str) -> Tensor:
    found: Tensor = inputs[source] if isinstance(source, int) else inputs[1][source]
    return found


def _with(inputs: tuple[Any, ...], source: int | str, changed: Tensor) -> tuple[Any, ...]:
    if isinstance(source, int):
        return (changed, *inputs[1:])
    return (inputs[0], {**inputs[1], source: changed}, *inputs[2:])


def _copies(part: Any, count: int) -> Any:
    """The one sequence as often as asked."""
    if isinstance(part, Tensor):
        return part.expand(count, *part.shape[1:])
    if isinstance(part, dict):
        return {name: _copies(value, count) for name, value in part.items()}
    return tuple(_copies(each, count) for each in part)
