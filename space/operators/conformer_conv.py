"""The convolution module of the Conformer.

Legend: B batch, T tokens, D width, W taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.short_conv.naive import causal_conv
from ...registry import unknown
from ..axes import Param, axis, param, renamed
from ..operator import Operator, Source
from .batchnorm import BatchNormalisation, ChannelShift, batch_norm_axes
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .short_conv import tap_init
from .spatial import require_odd

__all__ = ["ConformerConv", "ConformerConvolution"]

NORMS = ("batch", "layer")


class ConformerConvolution(nn.Module):
    """`out(silu(norm(conv(a * sigmoid(b)))))`: one projection gives a and b, conv has one filter per channel."""

    def __init__(self, width: int, kernel: int, norm: str, bidirectional: bool, folded: bool = False):
        super().__init__()
        self.bidirectional = bidirectional
        self.input = nn.Linear(width, 2 * width, bias=False)
        self.taps = nn.Parameter(torch.empty(width, kernel))
        batch: Any = ChannelShift(width) if folded else BatchNormalisation(width)
        self.norm = batch if norm == "batch" else LayerNormalisation(width)
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        width, kernel = self.taps.shape
        return {"past": torch.zeros(batch, kernel - 1, width, dtype=dtype, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Causal only: the next tokens, with the last W - 1 inputs of the convolution as state."""
        gated_BTD = F.glu(self.input(x_BTD), dim=-1)
        if self.bidirectional:
            y_BTD, past = self.centred(gated_BTD), gated_BTD[:, :0]
        else:
            y_BTD, past = causal_conv(gated_BTD, self.taps, None if state is None else state["past"])
        return self.out(F.silu(self.norm(y_BTD))), {"past": past}

    def centred(self, x_BTD: Tensor) -> Tensor:
        """As many taps before the token as after it; zeros outside the sequence."""
        width, kernel = self.taps.shape
        y_BD1T = F.conv2d(x_BTD.transpose(1, 2)[:, :, None], self.taps[:, None, None], padding=(0, kernel // 2),
                          groups=width)
        return y_BD1T[:, :, 0].transpose(1, 2)


@dataclass(frozen=True)
class ConformerConv(Operator):
    """The convolution module of Conformer: Convolution-augmented Transformer for Speech Recognition (Gulati et al., 2020).

    kernel: taps of the depthwise filter; odd when it looks both ways. norm: "batch" as in the paper, or "layer"; folded:
    whether a batch norm is in the taps, all but its shift.
    bidirectional: False for a causal filter with a decode state, which needs norm="layer", since batch norm's
    statistics see later tokens.
    """

    kernel: Any = 31
    norm: Any = "batch"
    bidirectional: Any = True
    folded: Any = False
    source: ClassVar[Source] = Source("Conformer: Convolution-augmented Transformer for Speech Recognition", 2020,
                                      options=("S127",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def check(self, width: int, where: str) -> None:
        (require_odd if self.bidirectional else require_whole)("kernel", self.kernel, where)
        if self.norm not in NORMS:
            raise ValueError(f"{unknown('norm', self.norm, NORMS)} (at {where})")
        if self.norm == "batch" and not self.bidirectional:
            raise ValueError(f"a causal convolution needs a norm of each token at {where}: got norm='batch', whose "
                             "statistics see later tokens; use norm='layer'")
        if self.folded and self.norm != "batch":
            raise ValueError(f"a batch norm is folded at {where}: got norm={self.norm!r} with folded=True; leave one out")

    def axes(self, width: int) -> dict[str, Param]:
        d, channels = axis("width", width), axis("channels", width)
        taps = axis("taps", self.kernel, "centre" if self.bidirectional else "trailing")
        layer = {f"norm.{name}": renamed(part, "width", channels) for name, part in LayerNorm().axes(width).items()}
        return {"input.weight": param(channels + channels, d), "out.weight": param(d, channels),
                "taps": param(channels, taps, init=tap_init(self.kernel)),
                **(batch_norm_axes("norm", channels, self.folded) if self.norm == "batch" else layer)}

    def folds(self, width: int) -> dict[str, str]:
        """The weights before every batch norm."""
        return {"norm": "taps"} if self.norm == "batch" else {}

    def build(self, width: int) -> nn.Module:
        return ConformerConvolution(width, self.kernel, self.norm, bool(self.bidirectional), bool(self.folded))

    def macs(self, width: int, length: int) -> float:
        """Both projections, and every tap at every token, taps on the zeros outside included."""
        return float(length * (self.matrix_numel(width) + self.kernel * width))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where it looks both ways and there is no next token."""
        return self.macs(width, length + 1 if self.bidirectional else 1)

    def state_numel(self, width: int, length: int) -> int:
        return 0 if self.bidirectional else int((self.kernel - 1) * width)
