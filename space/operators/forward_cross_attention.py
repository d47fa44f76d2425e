"""Attention on a grid to its own tokens and to a few that earlier layers made.

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
from .checks import require_whole
from .depthwise_conv2d import square_taps
from .heads import projections_of
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid, grid_of, require_odd
from .windows import check_heads, head_size

__all__ = ["CrossTokenAttention", "ForwardCrossAttention"]


class CrossTokenAttention(nn.Module):
    """Queries from the grid, keys and values from the grid and from the cross tokens of all layers before, each layer's
    times a learned scale and with a learned bias per head, all cross tokens normalised.

    Cross tokens of a layer are a depthwise filter, every `stride` places, over its input plus its output; the layer after
    it computes them, so that a last layer has no filter that nobody reads.
    """

    shares = True

    def __init__(self, width: int, heads: int, head_dim: int, kernel: int, stride: int, before: int):
        super().__init__()
        self.heads, self.head_dim, self.stride, self.before = heads, head_dim, stride, before
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.taps = nn.Parameter(torch.empty(width, kernel, kernel)) if before else None
        self.scale = nn.Parameter(torch.empty(before)) if before else None
        self.bias = nn.Parameter(torch.empty(before, heads)) if before else None
        self.norm = LayerNormalisation(width) if before else None

    def forward(self, x: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        x_BHWD = as_grid(x)
        x_BTD, bias = x_BHWD.flatten(1, 2), None
        all_BSD, crosses = x_BTD, self.crosses(shared)
        if self.scale is not None and self.bias is not None and self.norm is not None:
            scaled = [scale * tokens for scale, tokens in zip(self.scale.unbind(), crosses, strict=True)]
            all_BSD = torch.cat([x_BTD, self.norm(torch.cat(scaled, 1))], 1)
            bias = self.biases(self.bias, x_BTD.shape[1], [tokens.shape[1] for tokens in crosses])
        q, k, v = (project(tokens).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for project, tokens in (
            (self.query, x_BTD), (self.key, all_BSD), (self.value, all_BSD)))
        y_BTD: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        if shared is not None:
            shared["layers"] = [*crosses, x_BHWD + y_BTD.view(x_BHWD.shape)]
        return y_BTD.view(x.shape)

    def biases(self, bias_NK: Tensor, tokens: int, counts: list[int]) -> Tensor:
        """0 for the grid's own tokens, and that of its layer for each cross token: [K, 1, T + all S]."""
        own_K = bias_NK.new_zeros(tokens, self.heads)
        cross = [bias_K.expand(count, -1) for bias_K, count in zip(bias_NK.unbind(), counts, strict=True)]
        return torch.cat([own_K, *cross]).t()[:, None]

    def crosses(self, shared: dict[str, Any] | None = None) -> list[Tensor]:
        """Cross tokens of the layers before, each [B, S, D]: those of the last are made here.

        Raises ValueError where there are not as many as it was built for.
        """
        layers = [] if shared is None else shared.get("layers", [])
        if len(layers) != self.before:
            raise ValueError(f"cross tokens come from {self.before} layers before: got {len(layers)}; put these layers into "
                             "Stack(..., residual=LayerMemory())")
        if self.taps is None:
            return []
        return [*layers[:-1], self.merged(layers[-1], self.taps)]

    def merged(self, x_BHWD: Tensor, taps_DRC: Tensor) -> Tensor:
        x_BDHW, (channels, kernel, _) = x_BHWD.permute(0, 3, 1, 2), taps_DRC.shape
        return F.conv2d(x_BDHW, taps_DRC[:, None], stride=self.stride, padding=kernel // 2, groups=channels).flatten(2).mT


@dataclass(frozen=True)
class ForwardCrossAttention(Operator):
    """Fcaformer: Forward Cross Attention in Hybrid Vision Transformer (Zhang et al., 2023): the attention of its blocks.

    For grids of any size; as published, on a grid of one size, it is `FcaAttention`, with networks in `presets.fcaformer`.

    Layers of one stack, `Stack(..., residual=LayerMemory())`, on one grid. kernel, stride: of the filter that merges tokens
    into cross tokens; 7 and 4 in the authors' code. before: how many such layers there are before; the stack fills it in.
    Scales and biases are per layer here, where the authors have them per cross token of a fixed grid; the local filter that
    enhances the tokens is a block of its own, `Block(mixer=DepthwiseConv2d(kernel=3))`. Costs take the layers before it to
    be on the same grid.
    """

    heads: Any = 4
    kernel: Any = 7
    stride: Any = 4
    head_dim: Any = None
    before: Any = 0
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Fcaformer: Forward Cross Attention in Hybrid Vision Transformer", 2023,
                                      options=("S332",))

    @property
    def reads_shared(self) -> bool:
        return bool(self.before)

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        return not self.before

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return {"sources": "an entry is a layer"}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_odd("kernel", self.kernel, where)
        require_whole("stride", self.stride, where)
        require_whole("before", self.before, where, low=0)

    def axes(self, width: int) -> dict[str, Param]:
        d, k, size = axis("width", width), axis("heads", self.heads), head_size(self, width)
        declared = projections_of(d, k * axis("key_dim", size), k * axis("head_dim", size))
        if self.before:
            n = axis("sources", self.before)
            declared |= {"taps": square_taps(d, self.kernel), "scale": param(n, init="ones"),
                         "bias": param(n, k, init="zeros"),
                         **{f"norm.{name}": part for name, part in LayerNorm().axes(width).items()}}
        return declared

    def build(self, width: int) -> nn.Module:
        return CrossTokenAttention(width, self.heads, head_size(self, width), self.kernel, self.stride, self.before)

    def _cross(self, length: Length) -> int:
        rows, columns = grid_of(length)
        return int(-(-rows // self.stride) * -(-columns // self.stride))

    def macs(self, width: int, length: Length) -> float:
        """Projections of all tokens, scores and values of all pairs, and the filter over the layer before."""
        tokens, cross, inner = tokens_of(length), self.before * self._cross(length), self.heads * head_size(self, width)
        projections_of = 2 * width * inner * tokens + 2 * width * inner * (tokens + cross)
        merging = self._cross(length) * width * self.kernel**2 if self.before else 0
        return float(projections_of + 2 * inner * tokens * (tokens + cross) + merging)

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
