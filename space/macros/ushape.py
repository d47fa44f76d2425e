"""Down, inner layers, up again, with the outer stream carried across.

Legend: B batch, T tokens, H rows, W columns, D width outside, E width inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Dim, Param, as_dim, axis, param
from ..graph import SKIP
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from .base import Macro, Numbers, Part, Visit, kept
from .looped import stream_parts
from .separable import RepeatedTokens, SeparableDown, separable_axes
from .stage import Resample, after_stride

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["UShape", "UShapeLayers"]

SKIPS, RESAMPLES = ("sum", "concat", "gated"), ("full", "separable")


class Upsample(nn.Module):
    """A transposed convolution with kernel = stride; what exceeds the wanted size is cut off."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, ...]):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width, out_width, *stride))
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x_BTE: Tensor, like_BTD: Tensor) -> Tensor:
        x_BET = x_BTE.movedim(-1, 1)
        conv = F.conv_transpose1d if x_BET.ndim == 3 else F.conv_transpose2d
        y_BTD = conv(x_BET, self.weight, self.bias, self.stride).movedim(1, -1)
        for d in range(1, y_BTD.ndim - 1):
            y_BTD = y_BTD.narrow(d, 0, like_BTD.shape[d])
        return y_BTD


class AttentionGate(nn.Module):
    """`sigmoid(score(relu(skip(x) + below(y)))) x`: a number per place says how much of x, the outer stream, goes across."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.skip = nn.Linear(width, hidden, bias=False)
        self.below = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        gate_BT1 = torch.sigmoid(self.score(F.relu(self.skip(x_BTD) + self.below(y_BTD))))
        return gate_BT1 * x_BTD


class UShapeLayers(nn.Module):
    """Before, down, inner, up, merge with what came before, after."""

    shares = True

    def __init__(self, before: nn.Module, down: nn.Module, inner: nn.Module, up: nn.Module, after: nn.Module,
                 merge: nn.Module | None = None, gate: nn.Module | None = None, carry: nn.ModuleDict | None = None):
        super().__init__()
        self.before, self.down, self.inner, self.up, self.after = before, down, inner, up, after
        self.merge, self.gate, self.carry = merge, gate, carry

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        more = () if shared is None else (shared,)
        inside = more
        if self.carry is not None:
            inside = (carried(self.carry, shared),)
        x_BTD = self.before(x_BTD, *more)
        y_BTD: Tensor = self.up(self.inner(self.down(x_BTD), *inside), x_BTD)
        if self.gate is not None:
            x_BTD = self.gate(x_BTD, y_BTD)
        x_BTD = x_BTD + y_BTD if self.merge is None else self.merge(torch.cat([x_BTD, y_BTD], dim=-1))
        return self.after(x_BTD, *more)                                              # type: ignore[no-any-return]


def carried(maps: nn.ModuleDict, shared: dict[str, Any] | None) -> dict[str, Any]:
    """What is handed on, at the inner width where there is a map. Raises ValueError where something is not handed on."""
    found = {} if shared is None else dict(shared)
    for name, mapped in maps.items():
        if name not in found:
            raise ValueError(f"a U carries inside what layers around it hand on: got no {name}; put it into "
                             "Prompted(layers), EncoderDecoder(encoder, decoder) or Conditioned(layers), or leave carry out")
        found[name] = mapped(found[name])
    return found


@dataclass(frozen=True)
class UShape(Macro):
    """Layers around layers at a lower resolution: U-Net (Ronneberger et al., 2015); nested for more levels.

    before, after: layers at the outer resolution. inner: layers, which may hold another `UShape`. stride: 2 for a
    sequence, (2, 2) for a grid. width: of the inner layers; None keeps it. skip: how the stream from before meets the
    one from below, "sum", "concat" with a projection, or "gated": an attention gate that reads both weighs every place of the
    former before they are concatenated (Attention U-Net, Oktay et al., 2018; the gate is computed at the outer resolution,
    its hidden layer is half as wide). resample: "full" convolutions of kernel = stride down and up, or
    "separable" ones of `kernel` taps down and repeated tokens up, as in Squeezeformer (Kim et al., 2022). carry: names of
    what layers around hand on, a "memory" or a "condition", which inner layers read at their width: a linear map of each,
    without a bias. Costs take a condition to be one vector and all else to be as long as the outer stream. Looks ahead: not
    causal.
    """

    inner: Any
    before: Any = ()
    after: Any = ()
    stride: Any = 2
    width: Any = None
    skip: Any = "sum"
    resample: Any = "full"
    kernel: Any = 5
    carry: Any = ()
    holds: ClassVar[tuple[str, ...]] = ("inner", "before", "after")
    streams: ClassVar[tuple[str, ...]] = ("inner", "before", "after")
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015)

    @property
    def strides(self) -> tuple[int, ...]:
        """One per dimension of the stream."""
        return tuple(self.stride) if isinstance(self.stride, (tuple, list)) else (self.stride,)

    def check(self, width: int, where: str) -> None:
        if self.skip not in SKIPS:
            raise ValueError(f"skip is one of {', '.join(SKIPS)} at {where}: got {self.skip!r}")
        if self.resample not in RESAMPLES:
            raise ValueError(f"resample is one of {', '.join(RESAMPLES)} at {where}: got {self.resample!r}")
        if any(not isinstance(n, int) or n < 2 for n in self.strides):
            raise ValueError(f"stride is 2 or more, or two such numbers for a grid, at {where}: got {self.stride!r}")
        if self.width is not None and (not isinstance(self.width, int) or self.width < 1):
            raise ValueError(f"width is a positive int, or None to keep it, at {where}: got {self.width!r}")
        if self.resample == "separable":
            require_whole("kernel", self.kernel, where, low=max(self.strides), instead="a kernel covers its stride")
        names = self.carry if isinstance(self.carry, (tuple, list)) else (None,)
        if any(not isinstance(name, str) or not name.isidentifier() for name in names) or len(set(names)) < len(names):
            raise ValueError(f"carry is a tuple of names, each once, at {where}: got {self.carry!r}; use "
                             "('memory', 'condition')")

    def axes(self, width: int) -> dict[str, Param]:
        out, into = axis("width", width), axis("inner_width", self.width or width)
        taps: list[Dim] = [as_dim(axis(f"tap{i}", k, "centre")) for i, k in enumerate(self.strides)]
        found = {"down.weight": param(into, out, *taps), "down.bias": param(into, init="zeros"),
                 "up.weight": param(into, out, *taps), "up.bias": param(out, init="zeros")}
        if self.resample == "separable":
            found = separable_axes(out, into, len(self.strides), self.kernel)
        if self.skip != "sum":
            found["merge.weight"] = param(out, axis("sides", 2) * axis("width", width))
        if self.skip == "gated":
            hidden, one = axis("gate_width", self.gate_width(width)), axis("one", 1)
            found |= {"gate.skip.weight": param(hidden, out), "gate.below.weight": param(hidden, out),
                      "gate.below.bias": param(hidden, init="zeros"), "gate.score.weight": param(one, hidden),
                      "gate.score.bias": param(one, init="zeros")}
        return found | {f"carry.{name}.weight": param(into, out) for name in self.carry}

    def gate_width(self, width: int) -> int:
        """Hidden units of the gate."""
        return max(width // 2, 1)

    def parts(self, width: int, length: Length) -> list[Part]:
        inner, shape = self.width or width, after_stride(length, self.strides)
        found = stream_parts(self.before, "before", width, length, "before.layers")
        found += stream_parts(self.inner, "inner", inner, shape, "inner.layers")
        return found + stream_parts(self.after, "after", width, length, "after.layers")

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        axes, below = self.axes(width), tokens_of(after_stride(length, self.strides))
        outer = ("merge.weight", "gate.skip.weight", "gate.below.weight", "gate.score.weight")
        merge = sum(axes[name].numel for name in outer if name in axes) * tokens_of(length)
        merge += sum(axes[f"carry.{name}.weight"].numel * (1 if name == "condition" else tokens_of(length))
                     for name in self.carry)
        if self.resample == "separable":
            down = (axes["down.taps"].numel + axes["down.mix.weight"].numel) * below
            return float(down + axes["up.mix.weight"].numel * tokens_of(length) + merge)
        return float((axes["down.weight"].numel + axes["up.weight"].numel) * below + merge)

    def build(self, width: int) -> nn.Module:
        inner = self.width or width

        def layers(held: Any, at_width: int) -> nn.Module:
            return Layers(built_layers([entry.item for entry in kept(held)], at_width))

        merge = nn.Linear(2 * width, width, bias=False) if self.skip != "sum" else None
        gate = AttentionGate(width, self.gate_width(width)) if self.skip == "gated" else None
        down: nn.Module = Resample(width, inner, self.strides, self.strides)
        up: nn.Module = Upsample(inner, width, self.strides)
        if self.resample == "separable":
            down = SeparableDown(width, inner, self.strides, self.kernel)
            up = RepeatedTokens(inner, width, self.strides)
        carry = nn.ModuleDict({name: nn.Linear(width, inner, bias=False) for name in self.carry}) if self.carry else None
        return UShapeLayers(layers(self.before, width), down, layers(self.inner, inner), up, layers(self.after, width), merge,
                            gate, carry)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        inner = self.width or width
        stream = draft.items([entry.item for entry in kept(self.before)], stream, f"{place}.before.layers", width)
        draft.width = inner
        below = draft.node(f"Down{self.strides}->{inner}", "stage", f"{place}.down", self, stream)
        below = draft.items([entry.item for entry in kept(self.inner)], below, f"{place}.inner.layers", inner)
        draft.width = width
        above = draft.node(f"Up{self.strides}->{width}", "stage", f"{place}.up", self, below)
        merged = draft.node(f"merge({self.skip})", "merge", f"{place}.merge", self, above)
        draft.join(stream, merged, SKIP)
        return draft.items([entry.item for entry in kept(self.after)], merged, f"{place}.after.layers", width)

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        own = numbers("width")
        visit("before", widths)
        visit("inner", frozenset(w for w in own if w is not None) | (widths if None in own else frozenset()))
        visit("after", widths)
        return widths
