"""Attention beside a separable convolution, each on a part of its own.

Legend: B batch, T tokens, D width, H heads, P head_dim, E channels that are convolved, W taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...kernels.short_conv.naive import causal_conv
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .causal_attention import CausalAttention, attend
from .checks import require_whole
from .heads import projections_of, require_even
from .scored_attention import centred_conv
from .short_conv import tap_init
from .spatial import require_odd
from .windows import check_heads

__all__ = ["SplitAttention", "SplitPaths"]


class SplitPaths(CausalAttention):
    """`out([heads of attention, convolution of another projection])`: two paths, joined by the output projection."""

    def __init__(self, width: int, heads: int, head_dim: int, channels: int, kernel: int, rotary: bool, bidirectional: bool):
        super().__init__(width, heads, heads, head_dim, rotary=rotary)
        self.bidirectional = bidirectional
        self.local = nn.Linear(width, channels, bias=False)
        self.taps = nn.Parameter(torch.empty(channels, kernel))
        self.local_out = nn.Linear(channels, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        channels, kernel = self.taps.shape
        return {**super().init_state(batch, dtype, device),
                "past": torch.zeros(batch, kernel - 1, channels, dtype=dtype, device=device)}

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves, and filter them."""
        y_BTHP, after = self.by_head(x_BTD, state, shared)
        local_BTE = self.local(x_BTD)
        if self.bidirectional:
            local_BTE, past = centred_conv(local_BTE, self.taps), local_BTE[:, :0]
        else:
            local_BTE, past = causal_conv(local_BTE, self.taps, None if state is None else state["past"])
        return self.out(y_BTHP.flatten(2)) + self.local_out(local_BTE), {**after, "past": past}

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, None, self.bidirectional)


@dataclass(frozen=True)
class SplitAttention(Operator):
    """The convolution-attention block of Tiny-Sepformer (Luo et al., 2022): two paths in place of one attention, multi-head
    attention and a depthwise-separable convolution.

    share: of the width that attends, the rest is convolved; both paths read a projection of the whole stream. head_dim
    defaults to share * width / heads. kernel: taps of the filter, odd when it looks both ways. The paper shares one
    layer's weights through a stack: `Looped`. What turns a waveform into frames and masks of them into voices is not here.
    """

    heads: Any = 4
    share: Any = 0.5
    kernel: Any = 31
    head_dim: Any = None
    bidirectional: Any = True
    rotary: Any = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Tiny-Sepformer: A Tiny Time-Domain Transformer Network for Speech Separation", 2022,
                                      options=("S133",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}

    def sizes(self, width: int) -> tuple[int, int]:
        """(head_dim, channels that are convolved)."""
        attending = round(self.share * width)
        return int(self.head_dim or attending // self.heads), width - attending

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        if not 0 < self.share < 1 or not 0 < round(self.share * width) < width:
            raise ValueError(f"share must leave channels to both paths at {where}: got {self.share} of {width}; use 0.5")
        if self.head_dim is None and round(self.share * width) % self.heads:
            raise ValueError(f"heads must divide the channels that attend at {where}: got {self.heads} and "
                             f"{round(self.share * width)}; set head_dim")
        require_even(self.sizes(width)[0], where)
        (require_odd if self.bidirectional else require_whole)("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        (size, channels), d = self.sizes(width), axis("width", width)
        h, e = axis("heads", self.heads), axis("channels", channels)
        taps = axis("taps", self.kernel, "centre" if self.bidirectional else "trailing")
        return {**projections_of(d, h * axis("half", 2) * axis("pairs", size // 2), h * axis("head_dim", size)),
                "local.weight": param(e, d), "local_out.weight": param(d, e),
                "taps": param(e, taps, init=tap_init(self.kernel))}

    def build(self, width: int) -> nn.Module:
        size, channels = self.sizes(width)
        return SplitPaths(width, self.heads, size, channels, self.kernel, bool(self.rotary), bool(self.bidirectional))

    def macs(self, width: int, length: int) -> float:
        """Projections, the filter, and scores and values over the visible pairs."""
        size, channels = self.sizes(width)
        pairs = length * length if self.bidirectional else length * (length + 1) // 2
        return float(length * (self.matrix_numel(width) + channels * self.kernel) + 2 * self.heads * size * pairs)

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways and there is no next token."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        size, channels = self.sizes(width)
        return float(self.matrix_numel(width) + channels * self.kernel + 2 * self.heads * size * (length + 1))

    def state_numel(self, width: int, length: int) -> int:
        size, channels = self.sizes(width)
        return 0 if self.bidirectional else 2 * length * self.heads * size + (self.kernel - 1) * channels
