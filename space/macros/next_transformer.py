"""Attention on most channels, convolutions on what they become, both side by side: a block that widens the stream.

Legend: B batch, H and W rows and columns of tokens, D width in, A channels that attend, C channels of the convolutions,
E width out (A + C), F hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Axis, Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from ..operators.batchnorm import BatchNormalisation, batch_norm_axes
from ..operators.checks import require_divisor, require_whole
from ..operators.mlp import FeedForward, check_ratio, hidden_size
from ..operators.multi_head_conv import HeadConvolutions, MultiHeadConv
from ..operators.pooled_attention import AttendedMeans, PooledAttention
from ..operators.spatial import as_grid, shaped_like
from .merging import Merging

__all__ = ["AttentionBesideConvolution", "NextTransformer"]


class AttentionBesideConvolution(nn.Module):
    """`y + mlp(norm(y))` with `y = [a, p + conv(p)]`, `a = x + attention(norm(x))` and `p = norm(project(a))`."""

    def __init__(self, attended: int, convolved: int, hidden: int, head_dim: int, reduction: int, kernel: int):
        super().__init__()
        self.norm = BatchNormalisation(attended)
        self.attention = AttendedMeans(attended, attended // head_dim, head_dim, reduction)
        self.project = nn.Linear(attended, convolved, bias=False)
        self.project_norm = BatchNormalisation(convolved)
        self.conv = HeadConvolutions(convolved, head_dim, kernel)
        self.mlp_norm = BatchNormalisation(attended + convolved)
        self.mlp = FeedForward(attended + convolved, hidden, "relu")

    def forward(self, x: Tensor) -> Tensor:
        x_BHWA = as_grid(x)
        x_BHWA = x_BHWA + self.attention(self.norm(x_BHWA))
        p_BHWC = self.project_norm(self.project(x_BHWA))
        y_BHWE = torch.cat([x_BHWA, p_BHWC + self.conv(p_BHWC)], -1)
        return shaped_like(x, y_BHWE + self.mlp(self.mlp_norm(y_BHWE)))


@dataclass(frozen=True)
class NextTransformer(Merging):
    """The transformer block of Next-ViT (Li et al., 2022). It widens the stream: what comes in attends, and is carried on
    beside convolutions of what it has become.

    An item of a body, behind convolution blocks of the same stage. width: of the stream behind it; the difference to that
    before is the share of the convolutions (a quarter of it in the paper: 192 to 256). head_dim: of both. reduction, kernel:
    as of `PooledAttention` and `MultiHeadConv`. ratio: hidden size of the feed-forward layer over the width behind.
    """

    width: Any = None
    reduction: Any = 1
    head_dim: Any = 32
    ratio: Any = 2
    kernel: Any = 3
    stride: ClassVar[int] = 1                        # type: ignore[misc]
    fixed: ClassVar[Mapping[str, str]] = {"width": "it is the beginning of the stream behind",
                                          "stage_width": "it begins with the stream before"}
    source: ClassVar[Source] = Source("Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic "
                                      "Industrial Scenarios", 2022, options=("S264",))

    def check(self, width: int, where: str) -> None:
        require_whole("width", self.width, where, low=width + 1, instead="the block adds channels to the stream")
        check_ratio(self.ratio, where)
        require_whole("head_dim", self.head_dim, where)
        require_divisor("head_dim", self.head_dim, "what comes in", width, where)
        require_divisor("head_dim", self.head_dim, "what is added", self.width - width, where)
        self._attention(width).check(width, where)
        self._conv().check(self.width - width, where)

    def _attention(self, width: int) -> PooledAttention:
        return PooledAttention(width // self.head_dim, self.reduction, self.head_dim)

    def _conv(self) -> MultiHeadConv:
        return MultiHeadConv(self.head_dim, self.kernel)

    def axes(self, width: int) -> dict[str, Param]:
        a, c, out = axis("attended", width), axis("convolved", self.width - width), axis("stage_width", self.width)
        f = axis("hidden", hidden_size(self.ratio, self.width))
        return {**batch_norm_axes("norm", a), **within("attention", self._attention(width), a),
                "project.weight": param(c, a), **batch_norm_axes("project_norm", c), **within("conv", self._conv(), c),
                **batch_norm_axes("mlp_norm", out), "mlp.up.weight": param(f, out), "mlp.down.weight": param(out, f)}

    def build(self, width: int) -> nn.Module:
        return AttentionBesideConvolution(width, self.width - width, hidden_size(self.ratio, self.width), self.head_dim,
                                          self.reduction, self.kernel)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        added = self.width - width
        per_token = width * added + 2 * self.width * hidden_size(self.ratio, self.width)
        parts = self._attention(width).macs(width, length) + self._conv().macs(added, length)
        return float(parts + tokens_of(length) * per_token)


def within(prefix: str, part: Operator, channels: Axis) -> dict[str, Param]:
    """The parameters of an operator that works on these channels."""
    return {f"{prefix}.{name}": renamed(declared, "width", channels)
            for name, declared in part.axes(channels.size).items()}
