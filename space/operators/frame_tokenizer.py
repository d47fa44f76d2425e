"""Frames of a spectrogram to as many tokens, by convolutions along time.

Legend: B batch, T frames and tokens, N features of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .batchnorm import BatchNormalisation, batch_norm_axes
from .checks import require_whole
from .spiking import SpikingNorm, spiking_norm_axes

__all__ = ["FrameConvolution", "FrameConvolutions", "FrameTokenizer", "SpikingFrameConvolutions"]


class FrameConvolution(nn.Module):
    """A frame, the one before it and the one after it, times a matrix each; zeros outside the sequence."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, features, 3))

    def forward(self, x_BTN: Tensor) -> Tensor:
        return F.conv1d(x_BTN.transpose(1, 2), self.weight, padding=1).transpose(1, 2)


class FrameConvolutions(nn.Module):
    """`x = norm(relu(conv(x)))` layer by layer, then `x + position(x)`, a convolution as well."""

    def __init__(self, features: int, width: int, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(FrameConvolution(width if i else features, width) for i in range(layers))
        self.norms = nn.ModuleList(BatchNormalisation(width) for _ in range(layers))
        self.position = FrameConvolution(width, width)

    def forward(self, x_BTN: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BTN = norm(F.relu(conv(x_BTN)))
        return x_BTN + self.position(x_BTN)                                           # type: ignore[no-any-return]


class SpikingFrameConvolutions(nn.Module):
    """Convolutions with the spikes of a batch norm in between, then `x + position(spikes(x))`."""

    def __init__(self, features: int, width: int, layers: int):
        super().__init__()
        self.convs = nn.ModuleList(FrameConvolution(width if i else features, width) for i in range(layers))
        self.spikes = nn.ModuleList(SpikingNorm(width, "batch") for _ in range(layers))
        self.position = FrameConvolution(width, width)

    def forward(self, x_BTN: Tensor) -> Tensor:
        spikes_BTN = x_BTN
        for conv, spikes in zip(self.convs, self.spikes, strict=True):
            x_BTN = conv(spikes_BTN)
            spikes_BTN = spikes(x_BTN)
        return x_BTN + self.position(spikes_BTN)                                      # type: ignore[no-any-return]


@dataclass(frozen=True)
class FrameTokenizer(Operator):
    """The convolutional embedding of LMUFormer (Liu et al., 2024): features (B, frames, features) to (B, frames, width).

    features: numbers per frame, such as 128 mel bands. layers: convolutions of 3 frames without biases, 4 in the paper,
    and one more that adds positions. spiking: leaky integrate-and-fire neurons along the frames in the place of ReLU, as
    in the paper's second model.

    A token sees `layers + 1` frames ahead, by as much a stream of tokens is late; so it is not causal.
    """

    features: Any = 128
    layers: Any = 4
    spiking: Any = False
    kind: ClassVar[str] = "embedding"
    stack: ClassVar[int] = 1
    fixed: ClassVar[Mapping[str, str]] = {"features": "a part of the spectrum"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/operators/test_spiking.py -k frames"
    source: ClassVar[Source] = Source("LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units", 2024,
                                      options=("S280",))

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        """A neuron fires or does not."""
        return bool(self.spiking)

    def check(self, width: int, where: str) -> None:
        require_whole("features", self.features, where)
        require_whole("layers", self.layers, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, taps = axis("width", width), axis("taps", 3, "centre")
        before, found = axis("features", self.features), dict[str, Param]()
        for i in range(self.layers):
            found[f"convs.{i}.weight"] = param(d, before, taps)
            found |= spiking_norm_axes(f"spikes.{i}", d, "batch") if self.spiking else batch_norm_axes(f"norms.{i}", d)
            before = d
        return found | {"position.weight": param(d, d, taps)}

    def build(self, width: int) -> nn.Module:
        return (SpikingFrameConvolutions if self.spiking else FrameConvolutions)(self.features, width, self.layers)

    def macs(self, width: int, length: int) -> float:
        """Every tap at every token, those on the zeros outside included."""
        return float(length * 3 * width * (self.features + self.layers * width))

    def decode_macs(self, width: int, length: int) -> float:
        return 0.0
