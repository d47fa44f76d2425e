"""A transformer layer with which tokens get fewer and wider.

Legend: B batch, H and W rows and columns of tokens, frames one under the other, D width in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.layernorm import LayerNorm, LayerNormalisation
from ..operators.mlp import check_ratio, hidden_size
from ..operators.pooling_attention import check_pooling, pooled_tokens, pooling_axes, pooling_heads, pooling_macs
from ..operators.spatial import as_grid, padding, shaped_like
from .merging import Merging

__all__ = ["MultiscaleLayer", "PooledResidual", "ScaleLayer"]


class PooledResidual(nn.Module):
    """The maximum of `stride + 1` rows and columns of a frame at every `stride`-th; a class token stays."""

    def __init__(self, stride: int, frames: int, class_token: bool, rows: int | None):
        super().__init__()
        self.stride, self.frames, self.class_token, self.rows = stride, frames, class_token, rows

    def forward(self, x: Tensor) -> Tensor:
        if self.class_token:
            rows = self.frames * (self.rows or math.isqrt((x.shape[1] - 1) // self.frames))
            return torch.cat([x[:, :1], self.pooled(torch.unflatten(x[:, 1:], 1, (rows, -1))).flatten(1, 2)], 1)
        return shaped_like(x, self.pooled(as_grid(x)))

    def pooled(self, x_BHWD: Tensor) -> Tensor:
        x_BDHW = torch.unflatten(x_BHWD, 1, (self.frames, -1)).flatten(0, 1).permute(0, 3, 1, 2)
        pads = [p for size in reversed(x_BDHW.shape[2:]) for p in padding(size, self.stride, self.stride + 1)]
        y_BDHW = F.max_pool2d(F.pad(x_BDHW, pads, value=-math.inf), self.stride + 1, self.stride)
        return torch.unflatten(y_BDHW.permute(0, 2, 3, 1), 0, (-1, self.frames)).flatten(1, 2)


class ScaleLayer(nn.Module):
    """`y + down(gelu(up(z)))` with `z = norm(y)` and `y = pooled(x) + attention(norm(x))`; where the width changes
    `project(z) + widen(gelu(up(z)))`."""

    def __init__(self, width: int, out_width: int, hidden: int, attention: nn.Module, residual: nn.Module | None):
        super().__init__()
        self.norm, self.mlp_norm = LayerNormalisation(width), LayerNormalisation(width)
        self.attention, self.residual = attention, residual
        self.up = nn.Linear(width, hidden, bias=False)
        is_wider = out_width != width
        self.down = None if is_wider else nn.Linear(hidden, width, bias=False)
        self.widen = nn.Linear(hidden, out_width, bias=False) if is_wider else None
        self.project = nn.Linear(width, out_width, bias=False) if is_wider else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.norm(x))
        y = y + (x if self.residual is None else self.residual(x))
        z = self.mlp_norm(y)
        h = F.gelu(self.up(z))
        if self.project is None or self.widen is None:
            return y + self.down(h)                                                   # type: ignore[misc, no-any-return]
        return self.project(z) + self.widen(h)                                        # type: ignore[no-any-return]


@dataclass(frozen=True)
class MultiscaleLayer(Merging):
    """A layer of MViT (Fan et al., 2021): pooling attention and a feed-forward layer, which change resolution and width.

    An item of a body. stride: of the queries along rows and columns, 2 in the first layer of a stage in the paper, 1
    elsewhere; the residual is the maximum of stride + 1 places. width: behind the layer, twice as many in the last layer of a
    stage in the paper, by the feed-forward layer; None to keep it. ratio: hidden size over the width before. heads, head_dim,
    kv_stride, kernel, pool, frames, class_token, rows: as of `PoolingAttention`.
    """

    heads: Any = 1
    width: Any = None
    stride: Any = 1
    kv_stride: Any = 2
    kernel: Any = 3
    pool: Any = "conv"
    ratio: Any = 4
    head_dim: Any = None
    frames: Any = 1
    class_token: Any = False
    rows: Any = None
    proof: ClassVar[str] = "tests/space/operators/test_images.py -k multiscale"
    source: ClassVar[Source] = Source("Multiscale Vision Transformers", 2021, options=("S195",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        check_ratio(self.ratio, where)
        check_pooling(self, width, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, out = axis("width", width), axis("stage_width", self.width or width)
        f = axis("hidden", hidden_size(self.ratio, width))
        found = {f"attention.{name}": part for name, part in pooling_axes(self, width, self.stride).items()}
        for norm in ("norm", "mlp_norm"):
            found |= {f"{norm}.{name}": part for name, part in LayerNorm().axes(width).items()}
        found |= {"up.weight": param(f, d)}
        if out.size == width:
            return found | {"down.weight": param(d, f)}
        return found | {"widen.weight": param(out, f), "project.weight": param(out, d)}

    def build(self, width: int) -> nn.Module:
        residual = PooledResidual(self.stride, self.frames, bool(self.class_token), self.rows) if self.stride > 1 else None
        return ScaleLayer(width, self.width or width, hidden_size(self.ratio, width), pooling_heads(self, width, self.stride),
                          residual)

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        if self.class_token:
            return self.width or width, 1 + pooled_tokens(self, length, self.stride)
        out, after = super().out(width, length)
        if isinstance(length, tuple):
            after = self.frames * -(-(length[0] // self.frames) // self.stride), -(-length[1] // self.stride)
        return out, after

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        out, after = self.out(width, length)
        per_token = hidden_size(self.ratio, width) * (width + out) + (width * out if out != width else 0)
        return float(pooling_macs(self, width, length, self.stride) + tokens_of(after) * per_token)
