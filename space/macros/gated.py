"""Layers that whole sequences pass by.

Legend: B batch, T tokens, R sequences that go through, D width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import RESIDUAL
from ..model import built_layers
from ..operator import Length, Source
from .base import Macro, Part, kept
from .looped import stream_parts
from .running import as_sequence

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["GatedDepth", "GatedLayers"]


class GatedLayers(nn.Module):
    """x + g (layer(x) - x) with a gate of each sequence: open or closed, in training in between.

    Outside of training a layer runs over the sequences whose gate is open, and not at all where there are none.
    """

    def __init__(self, layers: list[nn.Module], width: int, hidden: int, scope: str, temperature: float):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.scope, self.temperature = scope, temperature
        count = len(layers) if scope == "layer" else 1
        self.into = nn.Parameter(torch.empty(count, hidden, width))
        self.into_bias = nn.Parameter(torch.zeros(count, hidden))
        self.out = nn.Parameter(torch.zeros(len(layers), hidden))
        self.out_bias = nn.Parameter(torch.ones(len(layers)))

    def forward(self, x: Tensor) -> Tensor:
        whole_BL = self.scores(x, 0, 0, len(self.layers)) if self.scope == "input" else None
        for index, layer in enumerate(self.layers):
            score_B = self.scores(x, index, index, index + 1)[:, 0] if whole_BL is None else whole_BL[:, index]
            x = self.gated(layer, x, score_B)
        return x

    def scores(self, x: Tensor, predictor: int, first: int, last: int) -> Tensor:
        """The log odds of layers `first` to `last` being open, from the mean over the tokens."""
        mean_BD = x.flatten(1, -2).mean(1)
        hidden_BH = torch.relu(F.linear(mean_BD, self.into[predictor], self.into_bias[predictor]))
        return F.linear(hidden_BH, self.out[first:last], self.out_bias[first:last])

    def gated(self, layer: nn.Module, x: Tensor, score_B: Tensor) -> Tensor:
        """The stream after one layer."""
        if self.training:
            if self.temperature > 0:
                noise_B = torch.rand_like(score_B).clamp(1e-6, 1 - 1e-6).logit()
                gate_B = torch.sigmoid((score_B + noise_B) / self.temperature)
            else:
                soft_B = torch.sigmoid(score_B)
                gate_B = (score_B > 0).to(soft_B.dtype) + (soft_B - soft_B.detach())
            return x + gate_B.view(-1, *[1] * (x.ndim - 1)) * (as_sequence(layer, x, True) - x)
        rows_R = (score_B > 0).nonzero().squeeze(-1)
        if len(rows_R) == len(x):
            return as_sequence(layer, x, True)
        return x.index_copy(0, rows_R, as_sequence(layer, x[rows_R], True)) if len(rows_R) else x


@dataclass(frozen=True)
class GatedDepth(Macro):
    """I3D (Peng et al., 2023): each sequence decides which of these layers it goes through.

    layers: each has a gate of its own; gates of attention and of the feed-forward layer are those of
    `(Block(mixer=...), Block(channel=...))`. scope: "layer", a predictor before every layer reads the mean of the stream
    over the tokens there; "input", one predictor reads the mean before the first. hidden: of the predictor's two layers.
    temperature: of the Gumbel softmax over open and closed in training (written as a sigmoid with logistic noise from
    torch's generator, the same distribution); 0 takes the decision itself with the gradient of the probability.

    Gates start open. Their mean, for the loss, is `bp.mean_gate`. It looks at whole sequences: it is not causal and does not
    stream. Costs take every gate to be open; `bp.measured_macs` counts what ran.
    """

    layers: Any
    scope: Any = "layer"
    hidden: Any = 32
    temperature: Any = 1.0
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_depth.py -k GatedDepth"
    source: ClassVar[Source] = Source("I3D: Transformer architectures with input-dependent dynamic depth for speech "
                                      "recognition", 2023, systems=("S048",))

    def check(self, width: int, where: str) -> None:
        if self.scope not in ("layer", "input"):
            raise ValueError(f"scope is 'layer' or 'input' at {where}: got {self.scope!r}")
        if self.hidden < 1 or self.temperature < 0:
            raise ValueError(f"hidden is at least 1 and temperature not negative at {where}: got {self.hidden} and "
                             f"{self.temperature}")

    def axes(self, width: int) -> dict[str, Param]:
        layers = len(kept(self.layers))
        if not layers:
            return {}
        n, h, d = axis("gates", layers), axis("gate_hidden", self.hidden), axis("width", width)
        p = axis("predictors", layers if self.scope == "layer" else 1)
        return {"into": param(p, h, d, init="last"), "into_bias": param(p, h, init="zeros"), "out": param(n, h, init="zeros"),
                "out_bias": param(n, init=Init("constant", low=1.0))}

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        layers = len(kept(self.layers))
        return float(self.hidden * ((layers if self.scope == "layer" else min(1, layers)) * width + layers))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        return self.macs(width, length)

    def parts(self, width: int, length: Length) -> list[Part]:
        return stream_parts(self.layers, "layers", width, length)

    def build(self, width: int) -> nn.Module:
        layers = built_layers([entry.item for entry in kept(self.layers)], width)
        return GatedLayers(layers, width, self.hidden, self.scope, self.temperature)

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        start = stream = draft.node(self.label(), "gate", place, self, stream)
        for position, entry in enumerate(kept(self.layers)):
            total = draft.node("gated sum", "sum", "", None,
                               draft.op(entry.item, f"{place}.layers.{position}", "mixer", stream, width))
            draft.join(stream, total, RESIDUAL)
            if self.scope == "input":
                draft.join(start, total, "gate")
            stream = total
        return stream
