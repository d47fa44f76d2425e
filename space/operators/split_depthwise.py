"""The global block of EdgeNeXt: splits of channels filtered one after the other, then attention of channels.

Legend: B batch, H and W rows and columns of tokens, D width, T tokens (H * W), S splits, P channels of a split, N numbers
that describe a place, F hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .cross_covariance import CrossCovariance, CrossCovarianceAttention
from .depthwise_conv2d import filtered
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size
from .short_conv import tap_init
from .spatial import as_grid
from .windows import check_heads, head_size

__all__ = ["SDTA", "SplitTranspose", "fourier_places"]

WAVES = 32                            # numbers per direction that describe a place


def fourier_places(x_BHWD: Tensor, waves: int) -> Tensor:
    """Sine and cosine of a place at falling frequencies, rows then columns: [H, W, 2 waves]; a grid is one turn of 2 pi."""
    _, height, width, _ = x_BHWD.shape
    dtype, device = torch.promote_types(x_BHWD.dtype, torch.float32), x_BHWD.device
    turn_N = 10000.0 ** (-2 * torch.arange(waves, dtype=dtype, device=device).div(2).floor() / waves)
    described = []
    for size in (height, width):
        angle_SN = torch.arange(1, size + 1, dtype=dtype, device=device)[:, None] * (2 * math.pi / size) * turn_N
        described.append(torch.stack([angle_SN[:, 0::2].sin(), angle_SN[:, 1::2].cos()], -1).flatten(1))
    rows_HWN = described[0][:, None].expand(height, width, waves)
    return torch.cat([rows_HWN, described[1].expand(height, width, waves)], -1).to(x_BHWD.dtype)


class SplitTranspose(nn.Module):
    """Split s > 0 is filtered together with what split s - 1 gave; the last split passes as it is. Then attention of channels
    around a residual, and a feed-forward layer."""

    def __init__(self, width: int, splits: int, heads: int, head_dim: int, hidden: int, position: bool, scaled: bool):
        super().__init__()
        self.taps = nn.Parameter(torch.empty(splits - 1, math.ceil(width / splits), 3, 3))
        self.position = nn.Linear(2 * WAVES, width, bias=False) if position else None
        self.attention_norm = LayerNormalisation(width, eps=1e-6)
        self.attention = CrossCovariance(width, heads, head_dim)
        self.attention_scale = nn.Parameter(torch.empty(width)) if scaled else None
        self.norm = LayerNormalisation(width, eps=1e-6)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.scale = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = self.split(as_grid(x))
        if self.position is not None:
            x_BHWD = x_BHWD + self.position(fourier_places(x_BHWD, WAVES))
        x_BTD = x_BHWD.flatten(1, 2)
        y_BTD = self.attention(self.attention_norm(x_BTD))
        x_BTD = x_BTD + (y_BTD if self.attention_scale is None else y_BTD * self.attention_scale)
        y_BTD = self.down(F.gelu(self.up(self.norm(x_BTD))))
        y: Tensor = (y_BTD if self.scale is None else y_BTD * self.scale).view(x.shape)
        return y

    def split(self, x_BHWD: Tensor) -> Tensor:
        """Channel c belongs to split c modulo S; where S does not divide the width, zeros fill up the later splits."""
        splits, width = len(self.taps) + 1, x_BHWD.shape[-1]
        x_BHWPS = torch.unflatten(F.pad(x_BHWD, (0, -width % splits)), -1, (-1, splits))
        before, done = torch.zeros_like(x_BHWPS[..., 0]), []
        for part_BHWP, taps_P33 in zip(x_BHWPS.unbind(-1), self.taps, strict=False):
            before = filtered(part_BHWP + before, taps_P33)
            done.append(before)
        return torch.stack([*done, x_BHWPS[..., -1]], -1).flatten(-2)[..., :width]


@dataclass(frozen=True)
class SDTA(Operator):
    """EdgeNeXt (Maaz et al., 2022): the split depth-wise transpose attention encoder; `Block(mixer=SDTA(), norm=NoNorm())`
    is the paper's without its biases.

    heads, head_dim: as of `CrossCovarianceAttention`. splits: of the channels; the paper cuts them into consecutive ranges
    where here they alternate, so that narrower layers are parts of wider ones. ratio: hidden size over width. position:
    whether places are described before attention (in the paper once, in the second stage). layer_scale: where the two
    gains per channel start (1e-6 in the paper); None for none.
    """

    heads: Any = 8
    splits: Any = 2
    ratio: Any = 4
    position: Any = False
    layer_scale: Any = None
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "width": "which split a channel is in depends on its place", "splits": "each takes in the one before",
        "piece": "a channel of the stream", "waves": "a frequency"}
    source: ClassVar[Source] = Source("EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision "
                                      "Applications", 2022, options=("S102",))

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        check_ratio(self.ratio, where)
        require_whole("splits", self.splits, where, low=2)
        if self.splits > width:
            raise ValueError(f"splits must be at most the width at {where}: got {self.splits} and {width}; use 2")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale must be positive at {where}: got {self.layer_scale!r}; use 1e-6, or None "
                             "for no gain per channel")

    def _attention(self) -> CrossCovarianceAttention:
        return CrossCovarianceAttention(self.heads, self.head_dim)

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        taps = param(axis("splits", self.splits - 1), axis("piece", math.ceil(width / self.splits)),
                     axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre"), init=tap_init(9))
        position = {"position.weight": param(d, axis("waves", 2 * WAVES))} if self.position else {}
        scale = param(d, share="own", init=Init("constant", low=self.layer_scale or 1.0))
        scales = {} if self.layer_scale is None else {"attention_scale": scale, "scale": scale}
        norms = {f"{place}.{name}": part for place in ("attention_norm", "norm")
                 for name, part in LayerNorm().axes(width).items()}
        attention = {f"attention.{name}": part for name, part in self._attention().axes(width).items()}
        return {"taps": taps, **position, **norms, **attention, **scales, "up.weight": param(f, d),
                "down.weight": param(d, f)}

    def build(self, width: int) -> nn.Module:
        return SplitTranspose(width, self.splits, self.heads, head_size(self, width), hidden_size(self.ratio, width),
                              bool(self.position), self.layer_scale is not None)

    def macs(self, width: int, length: Length) -> float:
        """Filters, matrices and attention of all tokens; places are described once for all images."""
        filters = (self.splits - 1) * math.ceil(width / self.splits) * 9
        rest = 2 * width * hidden_size(self.ratio, width) + (2 * WAVES * width if self.position else 0)
        return float(tokens_of(length) * (filters + rest) + self._attention().macs(width, tokens_of(length)))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
