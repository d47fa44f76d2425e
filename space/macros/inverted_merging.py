"""Fewer tokens by an inverted bottleneck: widen, filter every channel at a stride, weigh the channels, project.

Legend: B batch, H and W rows and columns of tokens, D width in, E width out, F hidden channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.batchnorm import BatchNormalisation, batch_norm_axes
from ..operators.checks import require_whole
from ..operators.depthwise_conv2d import square_taps
from ..operators.spatial import as_grid, require_odd, shaped_like
from ..operators.squeeze_excite import ChannelWeights, squeeze_axes
from .ghost_transition import ThinnedGrid
from .merging import Merging

__all__ = ["BottleneckTokens", "InvertedMerging"]

ACTIVATIONS, SIDES = ("relu", "gelu"), ("in", "out")


class BottleneckTokens(nn.Module):
    """`norm(down(weigh(act(thin(act(up_norm(up(x))))))))`, `thin` a filter per channel at a stride, and a norm."""

    def __init__(self, width: int, hidden: int, out_width: int, kernel: int, stride: int, squeezed: int, activation: str):
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, hidden, bias=False)
        self.up_norm = BatchNormalisation(hidden)
        self.thin = ThinnedGrid(hidden, kernel, stride)
        self.weigh = ChannelWeights(hidden, squeezed, "relu", "sigmoid") if squeezed else None
        self.down = nn.Linear(hidden, out_width, bias=False)
        self.norm = BatchNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        h_BHWF = self.activated(self.up_norm(self.up(as_grid(x))))
        h_BHWF = self.activated(self.thin(h_BHWF))
        if self.weigh is not None:
            h_BHWF = self.weigh(h_BHWF)
        y_BHWE: Tensor = self.norm(self.down(h_BHWF))
        return shaped_like(x, y_BHWE)

    def activated(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.activation == "gelu" else F.relu(x)


@dataclass(frozen=True)
class InvertedMerging(Merging):
    """EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (Liu et al., 2023): its transition
    between stages, which SHViT, EfficientViM and, without the weights of channels, FcaFormer have as well.

    An item of a body. expand: hidden channels over the width that comes "in" or goes "out" (`of`). kernel: side of the
    filters, odd. squeeze: hidden channels over those that their weights are computed from, rounded to a multiple of 8;
    None for no weights. activation: "relu" or "gelu", between; the weights have a ReLU inside.
    """

    width: Any = None
    stride: Any = 2
    kernel: Any = 3
    expand: Any = 4
    of: Any = "in"
    squeeze: Any = 4
    activation: Any = "relu"
    source: ClassVar[Source] = Source("EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention", 2023)

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("expand", self.expand, where)
        if self.squeeze is not None:
            require_whole("squeeze", self.squeeze, where, instead="use 4, or None for no weights of channels")
        for name, value, known in (("activation", self.activation, ACTIVATIONS), ("of", self.of, SIDES)):
            if value not in known:
                raise ValueError(f"{unknown(name, value, known)} (at {where})")

    def hidden(self, width: int) -> int:
        """Channels between."""
        return int(self.expand * (width if self.of == "in" else self.width or width))

    def squeezed(self, width: int) -> int:
        """Numbers that the weights of channels are computed from, 0 for no weights."""
        return 0 if self.squeeze is None else max(8, round(self.hidden(width) / self.squeeze / 8) * 8)

    def axes(self, width: int) -> dict[str, Param]:
        d, e = axis("width", width), axis("stage_width", self.width or width)
        f = axis("expand", self.expand) * axis("channels", self.hidden(width) // self.expand)
        weights = squeeze_axes("weigh.", f, self.squeezed(width)) if self.squeeze is not None else {}
        return {"up.weight": param(f, d), **batch_norm_axes("up_norm", f), "thin.taps": square_taps(f, self.kernel),
                **batch_norm_axes("thin.norm", f), **weights, "down.weight": param(e, f), **batch_norm_axes("norm", e)}

    def build(self, width: int) -> nn.Module:
        return BottleneckTokens(width, self.hidden(width), self.width or width, self.kernel, self.stride,
                                self.squeezed(width), self.activation)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """The first matrix at every place, the rest at those that are left, the weights of channels once."""
        (out, after), hidden = self.out(width, length), self.hidden(width)
        weights = 2 * hidden * self.squeezed(width)
        return float(tokens_of(length) * width * hidden + tokens_of(after) * hidden * (self.kernel**2 + out) + weights)
