"""Attention whose queries, keys and values are pooled over a grid, or over the frames of a video.

A video is its frames one under the other: a grid of `frames` times as many rows.

Legend: B batch, F frames, H and W rows and columns of tokens, D width, N class tokens (none or one), K heads, P head_dim,
E inner (K * P), T tokens, S pooled tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Axis, Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .short_conv import tap_init
from .spatial import as_grid, grid_of, require_odd, shaped_like
from .windows import check_heads, head_size, projections

__all__ = ["PooledVolume", "PoolingAttention", "PoolingHeads", "check_pooling", "pooled_tokens", "pooling_axes",
           "pooling_heads", "pooling_macs"]

POOLS = ("conv", "max", "mean")


class PooledVolume(nn.Module):
    """`kernel` places along each dimension to one, at every `stride`-th row and column: a filter per channel, with a norm
    that the caller applies, or the maximum or the mean; zeros outside."""

    def __init__(self, channels: int, kernel: tuple[int, int], stride: int, pool: str):
        super().__init__()
        over_time, side = kernel
        self.kernel, self.stride, self.pool = (over_time, side, side), (1, stride, stride), pool
        self.padding = (over_time // 2, side // 2, side // 2)
        self.taps = nn.Parameter(torch.empty(channels, *self.kernel)) if pool == "conv" else None
        self.norm = LayerNormalisation(channels) if pool == "conv" else None

    def forward(self, x_BPFHW: Tensor) -> Tensor:
        if self.taps is not None:
            return F.conv3d(x_BPFHW, self.taps[:, None], None, self.stride, self.padding, groups=len(self.taps))
        if self.pool == "max":
            return F.max_pool3d(x_BPFHW, self.kernel, self.stride, self.padding)
        return self.averaged(x_BPFHW)

    def averaged(self, x_BPFHW: Tensor) -> Tensor:
        """Along rows and columns, then along frames: averages in two dimensions are there in half precision, too."""
        over_time, side, _ = self.kernel
        y_BRHW = F.avg_pool2d(x_BPFHW.flatten(1, 2), side, self.stride[1:], side // 2)
        y_BPFS = torch.unflatten(y_BRHW.flatten(2), 1, x_BPFHW.shape[1:3])
        y_BPFS = F.avg_pool2d(y_BPFS, (over_time, 1), 1, (over_time // 2, 0))
        return torch.unflatten(y_BPFS, -1, y_BRHW.shape[2:])


class PoolingHeads(nn.Module):
    """Multi-head attention between pooled projections; a class token goes by the pooling, through the norm alone."""

    def __init__(self, width: int, heads: int, head_dim: int, frames: int, class_token: bool, rows: int | None,
                 query_pool: nn.Module | None, key_pool: nn.Module | None, value_pool: nn.Module | None, stride: int):
        super().__init__()
        self.heads, self.frames, self.class_token, self.rows, self.stride = heads, frames, class_token, rows, stride
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.query_pool, self.key_pool, self.value_pool = query_pool, key_pool, value_pool
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.class_token:
            rows = self.frames * (self.rows or math.isqrt((x.shape[1] - 1) // self.frames))
            return self.attended(x[:, :1], torch.unflatten(x[:, 1:], 1, (rows, -1)))
        x_BHWD = as_grid(x)
        y_BSD = self.attended(x_BHWD[:, :0, 0], x_BHWD)
        return shaped_like(x, torch.unflatten(y_BSD, 1, (-1, -(-x_BHWD.shape[2] // self.stride))))

    def attended(self, first_BND: Tensor, x_BHWD: Tensor) -> Tensor:
        """From the class token and the grid to both, as a sequence."""
        q, k, v = (self.parts(project(first_BND), project(x_BHWD), pool) for project, pool in (
            (self.query, self.query_pool), (self.key, self.key_pool), (self.value, self.value_pool)))
        y_BSD: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y_BSD

    def parts(self, first_BNE: Tensor, x_BHWE: Tensor, pool: nn.Module | None) -> Tensor:
        """[B, K, N + S, P]."""
        first_BKNP = torch.unflatten(first_BNE, -1, (self.heads, -1)).transpose(1, 2)
        if pool is None:
            rest_BNKP = torch.unflatten(x_BHWE.flatten(1, 2), -1, (self.heads, -1))
            return torch.cat([first_BKNP, rest_BNKP.transpose(1, 2)], 2)
        x_BFHWKP = torch.unflatten(torch.unflatten(x_BHWE, 1, (self.frames, -1)), -1, (self.heads, -1))
        pooled_BPFHW = pool(x_BFHWKP.permute(0, 4, 5, 1, 2, 3).flatten(0, 1))
        pooled_BKSP = pooled_BPFHW.flatten(2).transpose(1, 2).unflatten(0, (-1, self.heads))
        all_BKSP = torch.cat([first_BKNP, pooled_BKSP], 2)
        return all_BKSP if pool.norm is None else pool.norm(all_BKSP)                 # type: ignore[operator, no-any-return]


@dataclass(frozen=True)
class PoolingAttention(Operator):
    """The pooling attention of MViT (Fan et al., 2021), inside a stage, where queries stay as they are: see `MultiscaleLayer`
    for those that are pooled.

    heads, head_dim: head_dim defaults to width / heads. kv_stride: of keys and values along rows and columns; 1 with a kernel
    of 1 is attention over all tokens. kernel: side of what is pooled, odd, along frames as well where there are several.
    pool: "conv", a filter per entry of a head, the same for all heads, and a layer norm, or "max" or "mean". Projections come
    before the pooling, as in the paper. frames: of a video, one under the other. class_token: whether the first token is one,
    the others being the grid row by row; rows: of one frame's grid then, None for a square. No biases.
    """

    heads: Any = 4
    kv_stride: Any = 2
    kernel: Any = 3
    pool: Any = "conv"
    head_dim: Any = None
    frames: Any = 1
    class_token: Any = False
    rows: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/operators/test_images.py -k pooling_attention"
    source: ClassVar[Source] = Source("Multiscale Vision Transformers", 2021, options=("S195",))

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        """Without a norm that shifts."""
        return self.pool != "conv" or (self.kernel == 1 and self.kv_stride == 1)  # type: ignore[no-any-return]

    def check(self, width: int, where: str) -> None:
        check_pooling(self, width, where)

    def axes(self, width: int) -> dict[str, Param]:
        return pooling_axes(self, width, stride=1)

    def build(self, width: int) -> nn.Module:
        return pooling_heads(self, width, stride=1)

    def macs(self, width: int, length: Length) -> float:
        """Projections of all tokens, filters at pooled places, and all pairs of queries and pooled keys."""
        return pooling_macs(self, width, length, stride=1)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)


def check_pooling(config: Any, width: int, where: str) -> None:
    """Raise ValueError unless these numbers can be built at this width."""
    check_heads(config, width, where)
    require_whole("kv_stride", config.kv_stride, where, instead="use 1 for a key of every token")
    require_whole("frames", config.frames, where, instead="use 1 for an image")
    require_odd("kernel", config.kernel, where)
    if config.pool not in POOLS:
        raise ValueError(f"{unknown('pool', config.pool, POOLS)} (at {where})")
    if config.rows is not None:
        require_whole("rows", config.rows, where, instead="use None for a square")


def _kernel(config: Any) -> tuple[int, int]:
    """(along frames, along rows and columns)."""
    return (config.kernel if config.frames > 1 else 1), config.kernel


def _pools(config: Any, stride: int) -> dict[str, int]:
    """The strides of the projections that are pooled, by their names: keys unless nothing would be; queries at a stride."""
    keys = config.kv_stride > 1 or config.kernel > 1
    return {**({"query_pool": stride} if stride > 1 else {}),
            **({"key_pool": config.kv_stride, "value_pool": config.kv_stride} if keys else {})}


def pooling_axes(config: Any, width: int, stride: int) -> dict[str, Param]:
    """The parameters, queries being pooled at `stride`."""
    size, (over_time, side) = head_size(config, width), _kernel(config)
    found = projections(width, config.heads, size)
    if config.pool == "conv":
        for name in _pools(config, stride):
            found |= _filter_axes(name, axis("head_dim", size), over_time, side)
    return found


def _filter_axes(name: str, head_dim: Axis, over_time: int, side: int) -> dict[str, Param]:
    taps = (axis("tap_frames", over_time, "centre"), axis("tap_rows", side, "centre"), axis("tap_columns", side, "centre"))
    norm = {f"{name}.norm.{key}": renamed(part, "width", head_dim) for key, part in LayerNorm().axes(head_dim.size).items()}
    return {f"{name}.taps": param(head_dim, *taps, init=tap_init(over_time * side * side)), **norm}


def pooling_heads(config: Any, width: int, stride: int) -> nn.Module:
    """The module, queries being pooled at `stride`."""
    size, found = head_size(config, width), _pools(config, stride)
    made = {name: PooledVolume(size, _kernel(config), found[name], config.pool) if name in found else None
            for name in ("query_pool", "key_pool", "value_pool")}
    return PoolingHeads(width, config.heads, size, config.frames, bool(config.class_token), config.rows, **made,
                        stride=stride)


def pooled_tokens(config: Any, length: Length, stride: int) -> int:
    """Places of the grid that are left at a stride, of all frames, without the class token."""
    rows, columns = grid_of(length)
    if config.class_token:
        patches = tokens_of(length) - 1
        rows = config.frames * (config.rows or max(math.isqrt(patches // config.frames), 1))
        columns = -(-patches // rows)
    return int(config.frames * -(-(rows // config.frames) // stride) * -(-columns // stride))


def pooling_macs(config: Any, width: int, length: Length, stride: int) -> float:
    """Projections of all tokens, filters at pooled places, outputs, and all pairs of queries and keys."""
    tokens, inner, first = tokens_of(length), config.heads * head_size(config, width), int(bool(config.class_token))
    queries, keys = pooled_tokens(config, length, stride), pooled_tokens(config, length, config.kv_stride)
    over_time, side = _kernel(config)
    places = {"query_pool": queries, "key_pool": keys, "value_pool": keys}
    filters = sum(places[name] for name in _pools(config, stride)) if config.pool == "conv" else 0
    return float(inner * (width * (3 * tokens + queries + first) + filters * over_time * side * side
                          + 2 * (queries + first) * (keys + first)))
