"""Attention of a stage to the grid and to tokens merged by the layers before, and what enhances and merges them.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S cross tokens of one layer, K heads,
P head_dim, N layers before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .batchnorm import BatchNormalisation, batch_norm_axes
from .checks import require_whole
from .depthwise_conv2d import filtered, square_taps
from .heads import projections_of
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid, require_odd
from .windows import check_heads, head_size

__all__ = ["FcaAttention", "MergedTokenAttention", "MergingEnhancement", "TokenEnhancement"]

PAPER = "Fcaformer: Forward Cross Attention in Hybrid Vision Transformer"


class MergedTokenAttention(nn.Module):
    """Queries from the grid, keys and values from the grid and from the cross tokens in `shared["layers"]`, each of which has
    a scale and a bias per head of its own; pairs on the grid have a bias per distance along rows and columns."""

    shares = True

    def __init__(self, width: int, heads: int, head_dim: int, side: int, tokens: int, before: int):
        super().__init__()
        self.heads, self.side, self.before = heads, side, before
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.distance = nn.Parameter(torch.empty(heads, side, side))
        self.scale = nn.Parameter(torch.empty(before, tokens)) if before else None
        self.bias = nn.Parameter(torch.empty(before, tokens, heads)) if before else None
        self.norm = LayerNormalisation(width) if before else None

    def forward(self, x: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        x_BHWD = as_grid(x)
        _, rows, columns, _ = x_BHWD.shape
        x_BTD, bias_KTS = x_BHWD.flatten(1, 2), self.distances(rows, columns, x.device)
        all_BSD = x_BTD
        if self.scale is not None and self.bias is not None and self.norm is not None:
            crosses_BSD = torch.cat(self.crosses(shared), 1)
            all_BSD = torch.cat([x_BTD, self.norm(self.scale.flatten()[:, None] * crosses_BSD)], 1)
            cross_KTS = self.bias.flatten(0, 1).t()[:, None].expand(-1, rows * columns, -1)
            bias_KTS = torch.cat([bias_KTS, cross_KTS], 2)
        q, k, v = (project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project, tokens in (
            (self.query, x_BTD), (self.key, all_BSD), (self.value, all_BSD)))
        y_BTE = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_KTS.to(q.dtype)).transpose(1, 2).flatten(2)
        y_BTD: Tensor = self.out(y_BTE)
        return y_BTD.view(x.shape)

    def distances(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """The bias of every pair on the grid, [K, T, T]; distances beyond the table count as its last."""
        row_T, column_T = (index.flatten() for index in torch.meshgrid(
            torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"))
        down, across = ((place[:, None] - place).abs().clamp(max=self.side - 1) for place in (row_T, column_T))
        return self.distance[:, down, across]

    def crosses(self, shared: dict[str, Any] | None = None) -> list[Tensor]:
        """Cross tokens of the layers before, each [B, S, D].

        Raises ValueError where there are not those it was built for.
        """
        found: list[Tensor] = [] if shared is None else shared.get("layers", [])
        tokens = 0 if self.scale is None else self.scale.shape[1]
        if len(found) != self.before or any(part.shape[1] != tokens for part in found):
            raise ValueError(f"cross tokens come from {self.before} layers before, {tokens} of each: got "
                             f"{[part.shape[1] for part in found]}; put TokenEnhancement(tells=True) behind each of these "
                             "layers, into Stack(..., residual=LayerMemory()), on a grid of the given side")
        return found


class MergingEnhancement(nn.Module):
    """`norm(filter(x))`; with `tells` a wider filter, every `stride` places, gives cross tokens to the layers behind."""

    shares = True

    def __init__(self, width: int, kernel: int, merge: int, stride: int, tells: bool):
        super().__init__()
        self.stride = stride
        self.taps = nn.Parameter(torch.empty(width, kernel, kernel))
        self.norm = BatchNormalisation(width)
        self.merging = nn.Parameter(torch.empty(width, merge, merge)) if tells else None

    def forward(self, x: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        x_BHWD = as_grid(x)
        if shared is not None and self.merging is not None:
            tokens_BSD = filtered(x_BHWD, self.merging, self.stride).flatten(1, 2)
            shared["layers"] = [*shared.get("layers", []), tokens_BSD]
        y: Tensor = self.norm(filtered(x_BHWD, self.taps))
        return y.reshape(x.shape)


@dataclass(frozen=True)
class FcaAttention(Operator):
    """Fcaformer: Forward Cross Attention in Hybrid Vision Transformer (Zhang et al., 2023): the attention of its blocks.

    side: of the grid in tokens, which sets how many cross tokens there are and how many distances have a bias. stride: of
    the merging filters, as of the `TokenEnhancement` behind each layer. before: how many such layers there are before in the
    stack, `Stack(..., residual=LayerMemory())`, which fills it in. Costs take the grid to be of that side. A grid of any
    size, with a scale and a bias per layer, is what `ForwardCrossAttention` takes. Networks: `presets.fcaformer`.
    """

    heads: Any = 4
    side: Any = 14
    stride: Any = 4
    head_dim: Any = None
    before: Any = 0
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source(PAPER, 2023, options=("S332",))

    @property
    def reads_shared(self) -> bool:
        return bool(self.before)

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        return not self.before

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return {"sources": "an entry is a layer", "cross_tokens": "an entry is a place", "rows": "an entry is a distance",
                "columns": "an entry is a distance"}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        for name, low in (("side", 1), ("stride", 1), ("before", 0)):
            require_whole(name, getattr(self, name), where, low=low)

    def tokens(self) -> int:
        """Cross tokens of one layer."""
        return int((-(-self.side // self.stride)) ** 2)

    def axes(self, width: int) -> dict[str, Param]:
        d, k, size = axis("width", width), axis("heads", self.heads), head_size(self, width)
        declared = projections_of(d, k * axis("key_dim", size), k * axis("head_dim", size))
        declared["distance"] = param(k, axis("rows", self.side), axis("columns", self.side), init="zeros")
        if self.before:
            n, s = axis("sources", self.before), axis("cross_tokens", self.tokens())
            declared |= {"scale": param(n, s, init="ones"), "bias": param(n, s, k, init="zeros"),
                         **{f"norm.{name}": part for name, part in LayerNorm().axes(width).items()}}
        return declared

    def build(self, width: int) -> nn.Module:
        return MergedTokenAttention(width, self.heads, head_size(self, width), self.side, self.tokens(), self.before)

    def macs(self, width: int, length: Length) -> float:
        """Projections of all tokens, and scores and values of all pairs."""
        tokens, cross, inner = tokens_of(length), self.before * self.tokens(), self.heads * head_size(self, width)
        return float(2 * width * inner * (2 * tokens + cross) + 2 * inner * tokens * (tokens + cross))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)


@dataclass(frozen=True)
class TokenEnhancement(Operator):
    """The token merge and enhancement of FcaFormer (Zhang et al., 2023), behind the attention of every block.

    kernel: side of the filter that enhances, odd, with a batch norm. It takes the place of the stream:
    `Block(mixer=TokenEnhancement(), norm=NoNorm(), join=Add(skip=0.0))`. merge, stride: of the filter that merges tokens for
    the layers behind, odd. tells: False for the last layer of a stage, whose tokens nobody reads.
    """

    kernel: Any = 3
    merge: Any = 7
    stride: Any = 4
    tells: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source(PAPER, 2023, options=("S332",))

    def check(self, width: int, where: str) -> None:
        require_odd("kernel", self.kernel, where)
        require_odd("merge", self.merge, where)
        require_whole("stride", self.stride, where)

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        merging = {"merging": square_taps(d, self.merge)} if self.tells else {}
        return {"taps": square_taps(d, self.kernel), **batch_norm_axes("norm", d), **merging}

    def build(self, width: int) -> nn.Module:
        return MergingEnhancement(width, self.kernel, self.merge, self.stride, bool(self.tells))

    def macs(self, width: int, length: Length) -> float:
        """Both filters, the wider one where it is centred."""
        sizes = length if isinstance(length, tuple) else (length, 1)
        merged = -(-sizes[0] // self.stride) * -(-sizes[1] // self.stride) * self.merge**2 if self.tells else 0
        return float(width * (tokens_of(length) * self.kernel**2 + merged))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
