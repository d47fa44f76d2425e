"""Gated attention over chunks and over the whole sequence at once, in linear time.

Legend: B batch, T tokens, D width, Q query_dim, E expanded channels of v and of u, C chunks, N tokens of a chunk, W taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Dim, Init, Param, axis, param, renamed
from ..operator import Operator, Source
from .causal_attention import rotate, rotation
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size
from .scored_attention import centred_conv
from .short_conv import tap_init
from .spatial import require_odd

__all__ = ["ConvProjection", "GatedAttentionUnit", "JointAttention", "conv_projection_axes"]


class ConvProjection(nn.Module):
    """`h + conv(h)` with `h = silu(linear(norm(x)))`: a projection whose outputs also see their neighbours."""

    def __init__(self, width: int, out: int, kernel: int):
        super().__init__()
        self.norm = LayerNormalisation(width)
        self.linear = nn.Linear(width, out)
        self.taps = nn.Parameter(torch.empty(out, kernel))

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTE = F.silu(self.linear(self.norm(x_BTD)))
        return h_BTE + centred_conv(h_BTE, self.taps)


def conv_projection_axes(source: Dim, out: Dim, kernel: int) -> dict[str, Param]:
    """Parameters of a `ConvProjection` from `source` to `out`."""
    norm = {f"norm.{name}": renamed(part, "width", source) for name, part in LayerNorm().axes(source.size).items()}
    return {**norm, "linear.weight": param(out, source), "linear.bias": param(out, init="zeros"),
            "taps": param(out, axis("taps", kernel, "centre"), init=tap_init(kernel))}


class JointAttention(nn.Module):
    """`out((a_u v) * sigmoid(a_v u))`, where a_v and a_u are v and u after one attention without softmax.

    The attention is the sum of two: inside chunks relu(q.k / N) squared, and over the whole sequence q (k^T v) / T. Their
    queries and keys are one projection, scaled and shifted in four ways, and turned by position in the first `turned` pairs.
    """

    def __init__(self, width: int, hidden: int, query_dim: int, chunk: int, kernel: int, shift: bool, turned: int):
        super().__init__()
        self.width, self.hidden, self.chunk, self.shift, self.turned = width, hidden, chunk, shift, turned
        self.to_hidden = ConvProjection(width, 2 * hidden, kernel)
        self.to_query = ConvProjection(width, query_dim, kernel)
        self.scale = nn.Parameter(torch.empty(4, query_dim))
        self.offset = nn.Parameter(torch.empty(4, query_dim))
        self.to_out = ConvProjection(hidden, width, kernel)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.shift:
            half = self.width // 2
            x_BTD = torch.cat([F.pad(x_BTD[..., :half], (0, 0, 1, 0))[:, :-1], x_BTD[..., half:]], -1)
        v_BTE, u_BTE = self.to_hidden(x_BTD).chunk(2, -1)
        query_BT4Q = self.to_query(x_BTD)[..., None, :] * self.scale + self.offset
        both = torch.cat([v_BTE, u_BTE], -1)
        a_v, a_u = self.attend(self.turn(query_BT4Q), both).chunk(2, -1)
        y_BTD: Tensor = self.to_out(a_u * v_BTE * torch.sigmoid(a_v * u_BTE))
        return y_BTD

    def turn(self, x_BT4Q: Tensor) -> Tensor:
        """Rotate the first pairs of every query and key."""
        cos, sin = rotation(0, x_BT4Q.shape[1], self.turned, 10000.0, x_BT4Q)
        return torch.cat([rotate(x_BT4Q[..., :2 * self.turned], cos, sin), x_BT4Q[..., 2 * self.turned:]], -1)

    def attend(self, query_BT4Q: Tensor, x_BTE: Tensor) -> Tensor:
        """Both attentions; zeros fill up the last chunk and add nothing."""
        length = x_BTE.shape[1]
        missing = -length % self.chunk
        q_near, q_far, k_near, k_far = F.pad(query_BT4Q, (0, 0, 0, 0, 0, missing)).unbind(2)
        padded = F.pad(x_BTE, (0, 0, 0, missing))
        far_BTE = torch.matmul(q_far, torch.matmul(k_far[:, :length].mT, x_BTE) / length)
        q_BCNQ, k_BCNQ, x_BCNE = (torch.unflatten(part, 1, (-1, self.chunk)) for part in (q_near, k_near, padded))
        weight_BCNN = F.relu(torch.matmul(q_BCNQ, k_BCNQ.mT) / self.chunk).square()
        return (torch.matmul(weight_BCNN, x_BCNE).flatten(1, 2) + far_BTE)[:, :length]


@dataclass(frozen=True)
class GatedAttentionUnit(Operator):
    """The gated single-head unit of MossFormer (Zhao and Ma, 2023), from FLASH (Hua et al., 2022).

    chunk: tokens that attend to each other in full. query_dim: size of its one head. ratio: channels of v and u over width,
    rounded up to a multiple of 8. kernel: taps of the filter in every projection, odd. shift: half the channels come from
    the token before. rotary: how many pairs of queries and keys turn, at most query_dim / 2. Time and memory are linear in
    the length; it looks both ways, as separation does, so there is no decoding. The residual around it is the
    block's. What turns a waveform into frames, and masks of them into voices, is not here.
    """

    chunk: Any = 256
    query_dim: Any = 128
    ratio: Any = 2
    kernel: Any = 17
    shift: Any = True
    rotary: Any = 16
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source(
        "MossFormer: Pushing the Performance Limit of Monaural Speech Separation using Gated Single-Head Transformer with "
        "Convolution-Augmented Joint Self-Attentions", 2023, options=("S038",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        moved = {"width": "the first half is that of the token before"} if self.shift else {}
        return {"uses": "near and far queries, then keys", "gates": "v, then u", "query_dim": "the first pairs turn", **moved}

    def check(self, width: int, where: str) -> None:
        for name in ("chunk", "query_dim"):
            require_whole(name, getattr(self, name), where)
        check_ratio(self.ratio, where)
        require_odd("kernel", self.kernel, where)
        require_whole("rotary", self.rotary, where, low=0)
        if 2 * self.rotary > self.query_dim:
            raise ValueError(f"rotary pairs must fit into query_dim at {where}: got {self.rotary} and {self.query_dim}; "
                             f"use at most {self.query_dim // 2}")

    def axes(self, width: int) -> dict[str, Param]:
        d, e = Dim(((axis("width", width),),)), axis("expanded", hidden_size(self.ratio, width))
        q, uses = axis("query_dim", self.query_dim), axis("uses", 4)
        parts = {"to_hidden": (d, axis("gates", 2) * e), "to_query": (d, Dim(((q,),))), "to_out": (Dim(((e,),)), d)}
        declared = {f"{name}.{key}": part for name, (source, out) in parts.items()
                    for key, part in conv_projection_axes(source, out, self.kernel).items()}
        return {**declared, "scale": param(uses, q, init=Init("normal", gain=0.02)), "offset": param(uses, q, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return JointAttention(width, hidden_size(self.ratio, width), self.query_dim, self.chunk, self.kernel,
                              bool(self.shift), self.rotary)

    def macs(self, width: int, length: int) -> float:
        """Projections with their filters, filled-up chunks in full, and the sums over the whole sequence."""
        hidden, padded = hidden_size(self.ratio, width), -(-length // self.chunk) * self.chunk
        projections = 2 * hidden * width + width * self.query_dim + hidden * width
        filters = self.kernel * (2 * hidden + self.query_dim + width)
        near = padded * self.chunk * (self.query_dim + 2 * hidden)
        return float(length * (projections + filters) + near + 2 * hidden * self.query_dim * (length + padded))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
