"""A gated feed-forward memory: stacked dilated filters in place of a recurrence.

Legend: B batch, T tokens, D width, C inner channels, L layers of filters, W taps.
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
from .checks import require_whole
from .gated_attention_unit import ConvProjection, conv_projection_axes
from .layernorm import LayerNorm, LayerNormalisation
from .short_conv import tap_init
from .spatial import require_odd

__all__ = ["DilatedFSMN", "GatedMemory"]


class GatedMemory(nn.Module):
    """`out(norm(v * (u + memory(project(relu(expand(u))))) + h))`: h the normalised bottleneck, u and v projections of it.

    memory: layer l filters every channel with steps of 2 ** l, over all outputs before it (densely connected), then
    normalises the channel over time and bends it with a learned slope.
    """

    def __init__(self, width: int, channels: int, order: int, layers: int, kernel: int):
        super().__init__()
        self.order, self.layers = order, layers
        self.input = nn.Linear(width, channels)
        self.input_slope = nn.Parameter(torch.empty(1))
        self.input_norm = LayerNormalisation(channels)
        self.to_u = ConvProjection(channels, channels, kernel)
        self.to_v = ConvProjection(channels, channels, kernel)
        self.expand = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels, bias=False)
        self.taps = nn.Parameter(torch.empty(layers * (layers + 1) // 2, channels, 2 * order - 1))
        self.gain = nn.Parameter(torch.empty(layers, channels))
        self.shift = nn.Parameter(torch.empty(layers, channels))
        self.slope = nn.Parameter(torch.empty(layers, channels))
        self.out_norm = LayerNormalisation(channels)
        self.out = nn.Linear(channels, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTC = self.input(x_BTD)
        h_BTC = self.input_norm(torch.where(h_BTC > 0, h_BTC, self.input_slope * h_BTC))
        u_BTC = self.to_u(h_BTC)
        u_BTC = u_BTC + self.memory(self.project(F.relu(self.expand(u_BTC))))
        y_BTD: Tensor = self.out(self.out_norm(self.to_v(h_BTC) * u_BTC + h_BTC))
        return y_BTD

    def memory(self, x_BTC: Tensor) -> Tensor:
        """Filter l has one row of taps per earlier output, newest first."""
        held, first = [x_BTC], 0
        for layer in range(self.layers):
            taps_LCW = self.taps[first:first + layer + 1]
            first += layer + 1
            filtered = [self.filtered(part, taps, 2**layer) for part, taps in zip(held[::-1], taps_LCW.unbind(), strict=True)]
            y_BTC = torch.stack(filtered).sum(0)
            mean = y_BTC.mean(1, keepdim=True)
            y_BTC = (y_BTC - mean) * torch.rsqrt((y_BTC - mean).square().mean(1, keepdim=True) + 1e-5)
            y_BTC = y_BTC * self.gain[layer] + self.shift[layer]
            held.append(torch.where(y_BTC > 0, y_BTC, self.slope[layer] * y_BTC))
        return held[-1]

    def filtered(self, x_BTC: Tensor, taps_CW: Tensor, step: int) -> Tensor:
        """Both ways, `step` tokens from tap to tap; zeros outside the sequence."""
        y_BC1T = F.conv2d(x_BTC.transpose(1, 2)[:, :, None], taps_CW[:, None, None], padding=(0, step * (self.order - 1)),
                          dilation=(1, step), groups=taps_CW.shape[0])
        return y_BC1T[:, :, 0].transpose(1, 2)


@dataclass(frozen=True)
class DilatedFSMN(Operator):
    """The RNN-free recurrent module of MossFormer2 (Zhao et al., 2023); beside `GatedAttentionUnit` it makes that network's
    layers. What turns a waveform into frames, and masks of them into voices, is not here.

    channels: of the bottleneck. order: a filter reaches order - 1 steps each way. layers: filters with steps 1, 2, 4, ...
    kernel: taps of the filters in the gates' projections, odd. In a layer's dense connections a channel reads itself in all
    outputs before. The residual around it is the block's. It looks both ways.
    """

    channels: Any = 256
    order: Any = 20
    layers: Any = 2
    kernel: Any = 17
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"layers": "a layer has its step", "layer_pairs": "a layer and an output before it"}
    source: ClassVar[Source] = Source("MossFormer2: Combining Transformer and RNN-Free Recurrent Network for Enhanced "
                                      "Time-Domain Monaural Speech Separation", 2023, options=("S259",))

    def check(self, width: int, where: str) -> None:
        for name in ("channels", "order", "layers"):
            require_whole(name, getattr(self, name), where)
        require_odd("kernel", self.kernel, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, c, n = axis("width", width), axis("channels", self.channels), axis("layers", self.layers)
        inner, m = Dim(((c,),)), axis("expanded", self.channels)
        gates = {f"{name}.{key}": part for name in ("to_u", "to_v")
                 for key, part in conv_projection_axes(inner, inner, self.kernel).items()}
        norms = {f"{name}.{key}": renamed(part, "width", space) for name, space in (("input_norm", c), ("out_norm", c))
                 for key, part in LayerNorm().axes(self.channels).items()}
        pairs = axis("layer_pairs", self.layers * (self.layers + 1) // 2)
        leak = Init("constant", low=0.25)
        return {"input.weight": param(c, d), "input.bias": param(c, init="zeros"),
                "input_slope": param(axis("one", 1), share="own", init=leak), **norms, **gates,
                "expand.weight": param(m, c), "expand.bias": param(m, init="zeros"), "project.weight": param(c, m),
                "taps": param(pairs, c, axis("memory_taps", 2 * self.order - 1, "centre"), init=tap_init(2 * self.order - 1)),
                "gain": param(n, c, init="ones"), "shift": param(n, c, init="zeros"), "slope": param(n, c, init=leak),
                "out.weight": param(d, c), "out.bias": param(d, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return GatedMemory(width, self.channels, self.order, self.layers, self.kernel)

    def macs(self, width: int, length: int) -> float:
        """Projections, and every tap at every token, taps on the zeros outside included."""
        c = self.channels
        filters = c * (2 * self.kernel + (2 * self.order - 1) * self.layers * (self.layers + 1) // 2)
        return float(length * (2 * width * c + 4 * c * c + filters))

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
