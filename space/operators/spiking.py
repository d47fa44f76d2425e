"""Neurons that integrate what they are given, leak, and fire: activations of 0 and 1 with a voltage as state.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..axes import Axis, Dim, Param
from .batchnorm import BatchNormalisation, batch_norm_axes
from .prepbn import ChannelAffine

__all__ = ["SPIKE_NORMS", "SpikingNorm", "leaky_integrate_fire", "spiking_norm_axes"]

SPIKE_NORMS = ("batch", "affine")
TAU, SLOPE = 2.0, 4.0


def leaky_integrate_fire(x_BTD: Tensor, voltage_BD: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Spikes of leaky integrate-and-fire neurons, one token a step, and the voltage after the last token.

    `v = v + (x - v) / 2`; a spike where v reaches the threshold, which puts v back to 0. A spike's gradient is that of
    `sigmoid(4 (v - threshold))`; none flows through putting back. The voltage is float32 at least. T is at least 1.
    """
    spikes = []
    for x_BD in x_BTD.to(voltage_BD.dtype).unbind(1):
        voltage_BD = voltage_BD + (x_BD - voltage_BD) / TAU
        fired_BD = (voltage_BD >= threshold).to(voltage_BD.dtype)
        soft_BD = torch.sigmoid(SLOPE * (voltage_BD - threshold))
        spikes.append(fired_BD + (soft_BD - soft_BD.detach()))       # the bracket is 0 and keeps spikes exact
        voltage_BD = voltage_BD * (1 - fired_BD)
    return torch.stack(spikes, dim=1).to(x_BTD.dtype), voltage_BD


class SpikingNorm(nn.Module):
    """Spikes of a batch norm of the input, or of a gain and a shift, which is what a trained batch norm is."""

    def __init__(self, width: int, norm: str, threshold: float = 1.0):
        super().__init__()
        self.threshold = threshold
        self.norm: Any = BatchNormalisation(width) if norm == "batch" else ChannelAffine(width)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        """The voltage before the first token."""
        wide = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, len(self.norm.weight), dtype=wide, device=device)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, voltage_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        if voltage_BD is None:
            voltage_BD = self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        return leaky_integrate_fire(self.norm(x_BTD), voltage_BD, self.threshold)


def spiking_norm_axes(place: str, channels: Axis | Dim, norm: str) -> dict[str, Param]:
    """The parameters of a `SpikingNorm` of these channels, called `place`."""
    found = batch_norm_axes(f"{place}.norm", channels)
    return {name: part for name, part in found.items() if norm == "batch" or not part.statistic}
