"""Residual topologies in which a unit reads a combination of what earlier units gave, or the network's output is one.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..grammar import leaves
from ..graph import RESIDUAL, SKIP
from ..operator import Length, Source, tokens_of
from ..operators.checks import is_whole
from ..operators.identity import Identity
from ..plan import Block
from .residual import Residual, attention_of, is_softmax, residual_label
from .running import as_sequence, step_part
from .units import UnitLayers, change, step_change

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["DeepCrossAttention", "DeepCrossLayers", "EnsembleLayers", "PathEnsemble",
           "SeparateCrossLayers"]


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
        return combined(held, self.weight[k], self.bias[start:start + len(held)])

    def write(self, k: int, held: list[Tensor], y_BTD: Tensor) -> list[Tensor]:
        if len(held) < self.keep + 2:
            return [*held, y_BTD]
        return [held[0], held[1] + held[2], *held[3:], y_BTD]

    def finish(self, held: list[Tensor]) -> Tensor:
        return self.read(len(self.weight) - 1, held)


class SeparateCrossLayers(DeepCrossLayers):
    """The same over blocks of an attention and a channel mixer, whose keys and values read combinations of their own."""

    def __init__(self, layers: list[nn.Module], width: int, units: int, keep: int):
        super().__init__(layers, width, units, keep)
        rows = sum(min(2 * k + 1, keep + 2) for k in range(len(layers)))
        self.key_weight = nn.Parameter(torch.zeros(len(layers), width))
        self.key_bias = nn.Parameter(torch.ones(rows, width))
        self.value_weight = nn.Parameter(torch.zeros(len(layers), width))
        self.value_bias = nn.Parameter(torch.ones(rows, width))

    def streams(self, number: int, layer: Any, held: list[Tensor]) -> Tensor:
        """What queries, keys and values of a layer read, normalised and side by side."""
        start = sum(min(2 * n + 1, self.keep + 2) for n in range(number))
        rows = slice(start, start + len(held))
        read = (self.read(2 * number, held), combined(held, self.key_weight[number], self.key_bias[rows]),
                combined(held, self.value_weight[number], self.value_bias[rows]))
        return torch.cat([layer.mixer.norm(x_BTD) for x_BTD in read], -1)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        held = self.begin(x_BTD)
        for number, layer in enumerate(self.layers):
            y_BTD = as_sequence(layer.mixer.op, self.streams(number, layer, held), False, shared)  # type: ignore[union-attr, arg-type]
            held = self.write(2 * number, held, y_BTD)
            y_BTD = change(layer.channel, self.read(2 * number + 1, held), shared)  # type: ignore[arg-type]
            held = self.write(2 * number + 1, held, y_BTD)
        return self.finish(held)

    def step(self, x_BTD: Tensor, state: list[Any], shared: dict[str, Any] | None = None) -> tuple[Tensor, list[Any]]:
        """The next tokens, with a state per unit."""
        held, after = self.begin(x_BTD), []
        for number, layer in enumerate(self.layers):
            own, last = state[2 * number:2 * number + 2]
            y_BTD, own = step_part(layer.mixer.op, self.streams(number, layer, held), own, False, shared)  # type: ignore[union-attr]
            held = self.write(2 * number, held, y_BTD)
            y_BTD, last = step_change(layer.channel, self.read(2 * number + 1, held), last, shared)  # type: ignore[arg-type]
            held = self.write(2 * number + 1, held, y_BTD)
            after += [own, last]
        return self.finish(held), after


def combined(held: list[Tensor], weight_D: Tensor, bias_ND: Tensor) -> Tensor:
    """The sum of `(bias + relu(weight . g)) * g`."""
    total_BTD = torch.zeros_like(held[0])
    for j, g_BTD in enumerate(held):
        gate_BT1 = torch.relu(g_BTD @ weight_D.unsqueeze(-1))
        total_BTD = total_BTD + (bias_ND[j] + gate_BT1) * g_BTD
    return total_BTD


@dataclass(frozen=True)
class DeepCrossAttention(Residual):
    """DeepCrossAttention (Heddes et al., 2025): a generalised residual network (GRN) in place of the residual sum.

    Every sublayer, and the network's output, reads a combination of the input and all outputs so far, weighed per channel
    and by a ReLU of each of them (GRN-v3). separate: queries, keys and values read a combination each, for blocks of softmax
    attention and a channel mixer. keep_last: the input and so many of the last outputs count on their own, those between as
    their sum. Nothing is lost that way, and it starts, like the whole history (None), as the plain stream.

    What counts as an output isn't settled: here every sublayer gives one, attention as well, and the channel mixer reads a
    combination of its own. The ReLU reads outputs as they are, without a norm.
    """

    keep_last: Any = None
    separate: Any = False
    proof: ClassVar[str] = "tests/space/test_residuals.py -k deep_cross_attention"
    source: ClassVar[Source] = Source("DeepCrossAttention: Supercharging Transformer Residual Connections", 2025,
                                      systems=("S087",))

    def check(self, where: str) -> None:
        if self.keep_last is not None and not is_whole(self.keep_last):
            raise ValueError(f"keep_last is 1 or more at {where}: got {self.keep_last!r}; use None to keep every output")
        if not isinstance(self.separate, bool):
            raise ValueError(f"separate is True or False at {where}: got {self.separate!r}")

    def check_layers(self, items: list[Any], where: str) -> None:
        if not any(leaf is True for leaf in leaves(self.separate)):
            return
        for item in items:
            if not isinstance(item, Block) or not item.is_plain or not all(map(is_softmax, leaves(item.mixer))) or any(
                    isinstance(channel, Identity) for channel in leaves(item.channel)):
                raise ValueError(f"separate combinations are for plain blocks of Attention and a channel mixer at {where}: "
                                 f"got {item!r}; use DeepCrossAttention() for other layers")

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        own = [attention_of(item) is not None for item in items]
        return [replace(item, mixer=self.rewrite(item.mixer)) if has else item for item, has in zip(items, own, strict=True)]

    def rewrite(self, operator: Any) -> Any:
        return replace(operator, separate=True) if self.separate is True and is_softmax(operator) else operator

    def kept(self, units: int) -> int:
        """Last outputs that count on their own."""
        return units if self.keep_last is None else int(self.keep_last)

    def rows(self, units: int) -> int:
        """Combined tensors over all units and the output."""
        return sum(min(k + 1, self.kept(units) + 2) for k in range(units + 1))

    def own_rows(self, units: int) -> int:
        """Combined tensors of the keys, or of the values, of all layers."""
        return sum(min(k + 1, self.kept(units) + 2) for k in range(0, units, 2)) if self.separate else 0

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        if not units:
            return {}
        d, rows = axis("width", width), axis("terms", self.rows(units))
        found = {"weight": param(axis("units", units + 1), d, init="zeros"), "bias": param(rows, d, init="ones")}
        if self.separate:
            for name in ("key", "value"):
                found[f"{name}_weight"] = param(axis("layers", layers), d, init="zeros")
                found[f"{name}_bias"] = param(axis("own_terms", self.own_rows(units)), d, init="ones")
        return found

    def macs(self, width: int, length: Length, units: int) -> float:
        return float((self.rows(units) + 2 * self.own_rows(units)) * width * tokens_of(length)) if units else 0.0

    def join(self, layers: list[nn.Module], width: int, units: int) -> nn.Module | None:
        kind = SeparateCrossLayers if self.separate else DeepCrossLayers
        return kind(layers, width, units, self.kept(units)) if units else None

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
