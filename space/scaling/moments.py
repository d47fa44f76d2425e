"""Variance of the signal through a network at its start, from formulas: a check of trainability that needs no data.

Transformers Get Stable (Kedia et al., 2024) gives the moments of every part for inputs that are normal. With a norm before an
operator its input has mean square 1; an embedding enters with what its starting values say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ..operators.add import Add
from ..operators.attention import Attention
from ..operators.mlp import MLP
from ..operators.swiglu import SwiGLU
from ..plan import Block

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["Moment", "activation_square", "signal_propagation"]


class Moment(NamedTuple):
    """The mean square of the stream after one sublayer, and of what the sublayer gave. where: its name in the module."""

    where: str
    stream: float
    branch: float


def activation_square(activation: str, spread: float = 1.0) -> float:
    """The mean of activation(z)^2 for z normal with standard deviation `spread`, by quadrature to nine digits."""
    step, limit = 0.01, 12.0
    total = weight = 0.0
    for i in range(int(2 * limit / step) + 1):
        z = -limit + i * step
        density = math.exp(-z * z / 2)
        total += density * _activation(activation, spread * z) ** 2
        weight += density
    return total / weight


def _activation(name: str, z: float) -> float:
    if name == "gelu":
        return z * 0.5 * (1 + math.erf(z / math.sqrt(2)))
    if name == "silu":
        return z / (1 + math.exp(-z)) if z > -700 else 0.0
    if name == "abs":
        return abs(z)
    if name == "sine":
        return math.sin(math.sqrt(2) * z)
    relu = max(z, 0.0)
    return relu * relu if name == "squared_relu" else relu


def signal_propagation(architecture: Architecture, factors: dict[str, float] | None = None,
                       correlation: float = 1.0) -> list[Moment]:
    """The mean square of the stream after every sublayer of a body of blocks, at the start.

    factors: on the usual starting values by name of parameter, such as `deepscale(architecture).init`. correlation: of the
    tokens that attention averages; what it gives has that share of the variance of a value.

    Raises:
        ValueError: a body that is not of blocks, or an operator whose moments are not known.
    """
    given, plan = dict(factors or {}), architecture.plan
    stream, found = _embedded(architecture, given), []
    items, prefix = plan.layers, "layers"
    if len(items) == 1 and hasattr(items[0], "residual"):
        items, prefix = tuple(part.item for part in items[0].parts(plan.width, 1)), "layers.0.layers"
    for index, block in enumerate(items):
        if not isinstance(block, Block):
            raise ValueError(f"moments follow from blocks at {prefix}[{index}]: got {type(block).__name__}")
        for role, operator in block.sublayers():
            name = f"{prefix}.{index}.{role}"
            normed = block.placement in ("pre", "peri")
            square = (1.0 if normed else stream) * block.input_scale ** 2
            branch = _operator(operator, f"{name}.op", square, given, correlation)
            branch = 1.0 if block.placement in ("peri", "out") else branch
            stream = _joined(block, stream, branch, name)
            found.append(Moment(name, stream, branch))
    return found


def _joined(block: Block, stream: float, branch: float, where: str) -> float:
    if not isinstance(block.join, Add):
        raise ValueError(f"moments follow from a sum at {where}: got {block.join!r}; use Add(skip, branch)")
    return 1.0 if block.placement == "post" else block.join.skip ** 2 * stream + block.join.branch ** 2 * branch


def _embedded(architecture: Architecture, factors: dict[str, float]) -> float:
    """Rows of an embedding enter at unit size."""
    return factors.get("embed.weight", 1.0) ** 2


def _operator(operator: Any, name: str, square: float, factors: dict[str, float], correlation: float) -> float:
    def gain(key: str) -> float:
        return factors.get(f"{name}.{key}.weight", 1.0) ** 2

    if isinstance(operator, Attention):
        return correlation * square * gain("value") * gain("out")
    if isinstance(operator, MLP):
        return gain("down") * activation_square(operator.activation, math.sqrt(square * gain("up")))
    if isinstance(operator, SwiGLU):
        gate = activation_square("silu", math.sqrt(square * gain("gate")))
        return gain("down") * gate * square * gain("up")
    raise ValueError(f"moments are known of Attention, MLP and SwiGLU at {name}: got {operator!r}")
