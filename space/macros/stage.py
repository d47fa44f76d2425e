"""Layers at another width and resolution.

Legend: B batch, T tokens, H rows, W columns, D width in, E width out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Dim, Param, as_dim, axis, param
from ..model import Layers, built_layers
from ..operator import Length, Source, tokens_of
from ..operators.spatial import padding
from .base import Macro, Numbers, Part, Visit, kept
from .looped import stream_parts
from .running import initial_state, step_part

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Resample", "Stage", "StageLayers", "after_stride"]


class Resample(nn.Module):
    """A strided convolution over a sequence or a grid; inputs that do not divide are padded at the end."""

    def __init__(self, width: int, out_width: int, stride: tuple[int, ...], kernel: tuple[int, ...]):
        super().__init__()
        self.stride, self.kernel = stride, kernel
        self.weight = nn.Parameter(torch.empty(out_width, width, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, ceil(T / stride), E], or [B, H, W, D] likewise."""
        if max(self.kernel) == 1:
            y: Tensor = F.linear(x_BTD, self.weight.flatten(1), self.bias)
            return y
        if x_BTD.ndim - 2 != len(self.stride):
            raise ValueError(f"a stride needs a number per dimension of the stream: got stride={self.stride} for "
                             f"{x_BTD.ndim - 2}; write 2 for a sequence, (2, 2) for a grid")
        x_BDT = x_BTD.movedim(-1, 1)
        pads = [p for size, s, k in zip(reversed(x_BDT.shape[2:]), reversed(self.stride), reversed(self.kernel), strict=True)
                for p in padding(size, s, k)]
        conv = F.conv1d if x_BDT.ndim == 3 else F.conv2d
        y_BET: Tensor = conv(F.pad(x_BDT, pads), self.weight, self.bias, self.stride)
        return y_BET.movedim(1, -1)


class StageLayers(nn.Module):
    """Resample, then the layers."""

    shares = True

    def __init__(self, layers: nn.Module, norm: nn.Module | None = None, resample: nn.Module | None = None):
        super().__init__()
        self.norm, self.resample, self.body = norm, resample, layers

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        x_BTD = self.resampled(x_BTD)
        return self.body(x_BTD) if shared is None else self.body(x_BTD, shared)       # type: ignore[no-any-return]

    def resampled(self, x_BTD: Tensor) -> Tensor:
        if self.norm is not None:
            x_BTD = self.norm(x_BTD)
        return x_BTD if self.resample is None else self.resample(x_BTD)               # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        return initial_state(self.body, batch, dtype, device)

    def step(self, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        """The next tokens of a stage that changes the width alone."""
        return step_part(self.body, self.resampled(x_BTD), state, True, shared)


@dataclass(frozen=True)
class Stage(Macro):
    """Layers at a width and a resolution of their own: one level of a pyramid.

    layers: blocks and macros. width: of the stage; None keeps it. stride: how many positions become one; 2 for a
    sequence, (2, 2) for a grid. kernel: of the strided convolution that does it, default the stride (patch merging, Swin
    Transformer, Liu et al., 2021); 3 overlaps (Pyramid Vision Transformer v2, Wang et al., 2021). norm: before it, or None.
    A stage that changes neither width nor resolution has no convolution. A stride above 1 looks ahead: not causal.
    """

    layers: Any
    width: Any = None
    stride: Any = 1
    kernel: Any = None
    norm: Any = None
    holds: ClassVar[tuple[str, ...]] = ("layers", "norm")
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    source: ClassVar[Source] = Source("Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021)

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return set(self.strides) == {1} == set(self.kernels) and super().causal

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return self.causal and super().streaming

    @property
    def strides(self) -> tuple[int, ...]:
        """One per dimension of the stream."""
        return tuple(self.stride) if isinstance(self.stride, (tuple, list)) else (self.stride,)

    @property
    def kernels(self) -> tuple[int, ...]:
        """The window of the strided convolution."""
        if self.kernel is None:
            return self.strides
        return (self.kernel,) * len(self.strides) if isinstance(self.kernel, int) else tuple(self.kernel)

    def resamples(self, width: int) -> bool:
        """Whether there is a convolution before the layers."""
        return max(self.strides) > 1 or (self.width or width) != width

    def check(self, width: int, where: str) -> None:
        for name, numbers in (("stride", self.strides), ("kernel", self.kernels)):
            if any(not isinstance(n, int) or n < 1 for n in numbers) or len(numbers) not in (1, 2):
                raise ValueError(f"{name} is a number of at least 1, or two of them for a grid, at {where}: got "
                                 f"{getattr(self, name)!r}; write 2 for a sequence, (2, 2) for a grid")
        if len(self.kernels) != len(self.strides) or any(k < s for k, s in zip(self.kernels, self.strides, strict=True)):
            raise ValueError(f"a kernel covers its stride at {where}: got kernel={self.kernel} and stride={self.stride}")
        if self.width is not None and (not isinstance(self.width, int) or self.width < 1):
            raise ValueError(f"width is a positive int, or None to keep it, at {where}: got {self.width!r}")

    def axes(self, width: int) -> dict[str, Param]:
        if not self.resamples(width):
            return {}
        out, into = axis("stage_width", self.width or width), axis("width", width)
        taps: list[Dim] = [as_dim(axis(f"tap{i}", k, "centre")) for i, k in enumerate(self.kernels)]
        return {"resample.weight": param(out, into, *taps), "resample.bias": param(out, init="zeros")}

    def parts(self, width: int, length: Length) -> list[Part]:
        has_norm = self.norm is not None and self.resamples(width)
        inner, shape = self.width or width, after_stride(length, self.strides)
        before = [Part("norm", self.norm, ("norm",), width, length)] if has_norm else []
        return before + stream_parts(self.layers, "layers", inner, shape, "body.layers")

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        inner, shape = self.width or width, after_stride(length, self.strides)
        for entry in kept(self.layers):
            inner, shape = entry.item.out(inner, shape)
        return inner, shape

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        weight = self.axes(width).get("resample.weight")
        return float(weight.numel * tokens_of(after_stride(length, self.strides))) if weight else 0.0

    def build(self, width: int) -> nn.Module:
        layers = Layers(built_layers([entry.item for entry in kept(self.layers)], self.width or width))
        if not self.resamples(width):
            return StageLayers(layers)
        norm = None if self.norm is None else self.norm.build(width)
        return StageLayers(layers, norm, Resample(width, self.width or width, self.strides, self.kernels))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        inner = self.width or width
        if self.resamples(width):
            if self.norm is not None:
                stream = draft.op(self.norm, f"{place}.norm", "norm", stream, width)
            draft.width = inner
            label = f"Resample(stride={self.strides},kernel={self.kernels})->{inner}"
            stream = draft.node(label, "stage", f"{place}.resample", self, stream)
        stream = draft.items([entry.item for entry in kept(self.layers)], stream, f"{place}.body.layers", inner)
        return stream

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        visit("norm", widths)
        own = numbers("width")
        inner = frozenset(w for w in own if w is not None) | (widths if None in own else frozenset())
        return visit("layers", inner)


def after_stride(length: Length, strides: tuple[int, ...]) -> Length:
    """Length of a sequence, or size of a grid, after a stride: rounded up."""
    if isinstance(length, int):
        return math.ceil(length / math.prod(strides))
    rows, columns = strides if len(strides) == 2 else (strides[0], strides[0])
    return math.ceil(length[0] / rows), math.ceil(length[1] / columns)
