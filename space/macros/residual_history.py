"""Residual topologies in which a unit reads a combination of what earlier units gave, or the network's output is one.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..graph import RESIDUAL, SKIP
from ..operator import Length, Source, tokens_of
from ..operators.checks import is_whole
from .residual import Residual, residual_label
from .units import UnitLayers

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DeepCrossAttention", "DeepCrossLayers", "EnsembleLayers", "PathEnsemble"]


class DeepCrossLayers(UnitLayers):
    """What unit k reads is the sum over what is there so far, g_0 the input, of `(bias + relu(weight . g)) * g`.

    Of more than `keep + 2` of them those between the first and the last `keep` count as one, their sum.
    """

    def __init__(self, layers: list[nn.Module], width: int, units: int, keep: int):
        super().__init__(layers)
        self.keep = keep
        rows = sum(min(k + 1, keep + 2) for k in range(units + 1))
        self.weight = nn.Parameter(torch.zeros(units + 1, width))
        self.bias = nn.Parameter(torch.ones(rows, width))

    def read(self, k: int, held: list[Tensor]) -> Tensor:
        start = sum(min(n + 1, self.keep + 2) for n in range(k))
        total_BTD = torch.zeros_like(held[0])
        for j, g_BTD in enumerate(held):
            gate_BT1 = torch.relu(g_BTD @ self.weight[k].unsqueeze(-1))
            total_BTD = total_BTD + (self.bias[start + j] + gate_BT1) * g_BTD
        return total_BTD

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        if len(held) < self.keep + 2:
            return [*held, y_BTD]
        return [held[0], held[1] + held[2], *held[3:], y_BTD]

    def finish(self, held: list[Tensor]) -> Tensor:
        return self.read(len(self.weight) - 1, held)


@dataclass(frozen=True)
class DeepCrossAttention(Residual):
    """DeepCrossAttention's generalised residual network (Heddes et al., 2025), in place of the residual sum.

    Every sublayer, and the network's output, reads a combination of the input and all outputs so far, weighed per channel
    and by a ReLU of each of them (GRN-v3). keep_last: the input and so many of the last outputs count on their own, those
    between as their sum, so that nothing is lost and it starts, like the whole history (None), as the plain stream. One
    combination feeds queries, keys and values alike.
    """

    keep_last: Any = None
    proof: ClassVar[str] = "tests/space/test_residuals.py -k deep_cross_attention"
    source: ClassVar[Source] = Source("DeepCrossAttention: Supercharging Transformer Residual Connections", 2025,
                                      options=("S087",))

    def check(self, where: str) -> None:
        if self.keep_last is not None and not is_whole(self.keep_last):
            raise ValueError(f"keep_last is 1 or more at {where}: got {self.keep_last!r}; use None to keep every output")

    def kept(self, units: int) -> int:
        """Last outputs that count on their own."""
        return units if self.keep_last is None else int(self.keep_last)

    def rows(self, units: int) -> int:
        """Combined tensors over all units and the output."""
        return sum(min(k + 1, self.kept(units) + 2) for k in range(units + 1))

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        if not units:
            return {}
        d, rows = axis("width", width), axis("terms", self.rows(units))
        return {"weight": param(axis("units", units + 1), d, init="zeros"), "bias": param(rows, d, init="ones")}

    def macs(self, width: int, length: Length, units: int) -> float:
        return float(self.rows(units) * width * tokens_of(length)) if units else 0.0

    def join(self, layers: list[nn.Module], width: int, units: int) -> nn.Module | None:
        return DeepCrossLayers(layers, width, units, self.kept(units)) if units else None

    def sketch_units(self, draft: Draft, stream: int, place: str, units: list[Any]) -> int:
        """Every unit reads a node that all earlier ones lead to."""
        label, history = residual_label(self), [stream]
        for unit in [*units, None]:
            mixed = draft.node(label, "mix", place, None, history[-1])
            for earlier in history[:-1]:
                draft.join(earlier, mixed, SKIP)
            if unit is not None:
                history.append(unit(mixed))
        return mixed


class EnsembleLayers(UnitLayers):
    """The plain stream, and beside it a weighted sum of the input and of every unit's change, which leaves in the end."""

    def __init__(self, layers: list[nn.Module], width: int, units: int, per_channel: bool):
        super().__init__(layers)
        self.scale = nn.Parameter(torch.ones(units + 1, width)) if per_channel else None
        self.path_scale: Any = None if per_channel else nn.Parameter(torch.ones(units + 1))

    def scaled(self, path: int, y_BTD: Tensor) -> Tensor:
        if self.scale is not None:
            return self.scale[path] * y_BTD
        return self.path_scale[path] * y_BTD                                         # type: ignore[no-any-return]

    def begin(self, x_BTD: Tensor) -> list[Tensor]:
        return [x_BTD, self.scaled(0, x_BTD)]

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        return [held[0] + y_BTD, held[1] + self.scaled(k + 1, y_BTD)]

    def finish(self, held: list[Tensor]) -> Tensor:
        return held[1]


@dataclass(frozen=True)
class PathEnsemble(Residual):
    """EnsembleScale of Revisiting Vision Transformer from the View of Path Ensemble (Chang et al., 2023).

    A residual network is the sum of its input and of every sublayer's change, paths of growing length. Later sublayers read
    the plain stream; what leaves is the sum with a learned scale per path, 1 at first. A path whose scale is 0 is pruned
    from the ensemble and still serves the paths after it. per_channel: False for one number per path.
    """

    per_channel: Any = True
    proof: ClassVar[str] = "tests/space/test_residuals.py -k ensemble"
    source: ClassVar[Source] = Source("Revisiting Vision Transformer from the View of Path Ensemble", 2023, systems=("S303",))

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        paths = axis("units", units + 1)
        if not units:
            return {}
        return ({"scale": param(paths, axis("width", width), init="ones")} if self.per_channel else
                {"path_scale": param(paths, init="ones")})

    def join(self, layers: list[nn.Module], width: int, units: int) -> nn.Module | None:
        return EnsembleLayers(layers, width, units, bool(self.per_channel)) if units else None

    def sketch_units(self, draft: Draft, stream: int, place: str, units: list[Any]) -> int:
        """The plain stream; every change leads to the last node as well."""
        ends = [stream]
        for unit in units:
            y = unit(stream)
            total = draft.node("sum", "sum", "", None, y)
            draft.join(stream, total, RESIDUAL)
            stream = total
            ends.append(y)
        last = draft.node(residual_label(self), "sum", place, None, ends[-1])
        for end in ends[:-1]:
            draft.join(end, last, SKIP)
        return last
