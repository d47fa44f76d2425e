"""A recurrent network with fixed sparse weights between two trained projections.

Legend: B batch, T tokens, D width, N neurons, S sensory neurons, O output neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_positive, require_whole

__all__ = ["FixedGraph", "FixedGraphNetwork"]


class FixedGraphNetwork(nn.Module):
    """h <- relu(W h + E x) from zero, `steps` times for each token alone; the first neurons are given E x, the last are
    read. W = scale * graph where an entry of it exceeds the threshold, and zero elsewhere."""

    def __init__(self, width: int, neurons: int, sensory: int, outputs: int, steps: int, threshold: float, scale: float):
        super().__init__()
        self.steps, self.threshold, self.scale = steps, threshold, scale
        self.sense = nn.Linear(width, sensory, bias=False)
        self.graph = nn.Parameter(torch.empty(neurons, neurons), requires_grad=False)
        self.read = nn.Linear(outputs, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        sensed_BTS = self.sense(x_BTD)
        drive_BTN = F.pad(sensed_BTS, (0, len(self.graph) - sensed_BTS.shape[-1]))
        weight_NN = self.scale * self.graph * (self.graph.abs() > self.threshold)
        h_BTN = F.relu(drive_BTN)                   # the first step: there is nothing to pass on yet
        for _ in range(self.steps - 1):
            h_BTN = F.relu(F.linear(h_BTN, weight_NN) + drive_BTN)
        y_BTD: Tensor = self.read(h_BTN[..., -self.read.weight.shape[1]:])
        return y_BTD


@dataclass(frozen=True)
class FixedGraph(Operator):
    """Biological Processing Units (Yu et al., 2025): a fixed recurrent network of which only the way in and the way out
    are trained; here with a random graph, the control to a connectome.

    neurons: how many. sensory: the first ones, which are given the input in every step. outputs: the last ones, which are
    read. steps: of the network per token. density: the share of pairs that are connected; 0.0072 are the 65,000 weights
    of the 3,000 neurons of a Drosophila larva. The connections are those of normal entries that lie furthest from zero.
    scale: of the weights; None for what lets a neuron of a random graph keep the power of its inputs.

    A connectome is put in the place of `graph` [to, from], a statistic that training leaves alone, under density=1 and
    scale=1, which take weights as they are. Products are dense: zeros are multiplied and counted.
    """

    neurons: Any = 3000
    sensory: Any = 400
    outputs: Any = 400
    steps: Any = 4
    density: Any = 0.0072
    scale: Any = None
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"neurons": "the first are sensory, the last are read",
                                          "senders": "the first are sensory, the last are read",
                                          "sensory": "the first neurons", "outputs": "the last neurons"}
    source: ClassVar[Source] = Source("Biological Processing Units: Leveraging an Insect Connectome to Pioneer Biofidelic "
                                      "Neural Architectures", 2025, options=("S169",))

    def check(self, width: int, where: str) -> None:
        for name in ("neurons", "sensory", "outputs", "steps"):
            require_whole(name, getattr(self, name), where)
        if max(self.sensory, self.outputs) > self.neurons:
            raise ValueError(f"sensory and outputs must not exceed neurons at {where}: got {self.sensory} and {self.outputs} "
                             f"of {self.neurons}; use at most {self.neurons}")
        if isinstance(self.density, bool) or not isinstance(self.density, (int, float)) or not 0 < self.density <= 1:
            raise ValueError(f"density must be a share above 0 at {where}: got {self.density!r}; use 1 for every pair")
        if self.scale is not None:
            require_positive("scale", self.scale, where, instead="use None for that of a random graph")

    def _threshold_and_scale(self) -> tuple[float, float]:
        """Where normal entries are cut, -1 for nowhere, and what gives the rest of a row a sum of squares of 1."""
        threshold, power = -1.0, 1.0
        if self.density < 1:
            normal = NormalDist()
            threshold = normal.inv_cdf(1 - self.density / 2)
            power = self.density + 2 * threshold * normal.pdf(threshold)
        return threshold, self.scale or (self.neurons * power) ** -0.5

    def axes(self, width: int) -> dict[str, Param]:
        d, sensory, outputs = axis("width", width), axis("sensory", self.sensory), axis("outputs", self.outputs)
        graph = param(axis("neurons", self.neurons), axis("senders", self.neurons), init=Init("normal"), statistic=True)
        return {"sense.weight": param(sensory, d), "graph": graph, "read.weight": param(d, outputs)}

    def build(self, width: int) -> nn.Module:
        return FixedGraphNetwork(width, self.neurons, self.sensory, self.outputs, self.steps, *self._threshold_and_scale())

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        return tokens_of(length) * self.decode_macs(width, 0)

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """Both projections, and the whole graph in all steps but the first."""
        return float(width * (self.sensory + self.outputs) + (self.steps - 1) * self.neurons**2)
