"""A feed-forward layer with adapters beside it, weighed by a gate.

Legend: B batch, T tokens, D width, F hidden, A adapters, R bottleneck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .mlp import ACTIVATIONS, FeedForward, check_ratio, hidden_size

__all__ = ["AdaptedFeedForward", "AdapterMLP"]


class AdaptedFeedForward(nn.Module):
    """`feed_forward(x) + sum over adapters of softmax(gate x)_a up_a relu(down_a x)`."""

    def __init__(self, width: int, hidden: int, activation: str, adapters: int, bottleneck: int):
        super().__init__()
        self.feed_forward = FeedForward(width, hidden, activation)
        self.gate = nn.Linear(width, adapters, bias=False)
        self.adapter_down = nn.Linear(width, adapters * bottleneck, bias=False)
        self.adapter_up = nn.Linear(adapters * bottleneck, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        weight_BTA = F.softmax(self.gate(x_BTD), -1)
        h_BTAR = torch.unflatten(F.relu(self.adapter_down(x_BTD)), -1, (weight_BTA.shape[-1], -1))
        # All adapters in one product: each one's rows are weighed before it.
        mixed_BTD: Tensor = self.adapter_up((h_BTAR * weight_BTA[..., None]).flatten(-2))
        y_BTD: Tensor = self.feed_forward(x_BTD) + mixed_BTD
        return y_BTD


@dataclass(frozen=True)
class AdapterMLP(Operator):
    """Mixture-of-Domain-Adapters (Diao et al., 2023): domain adapters in parallel to a feed-forward layer, weighed by a
    mixture gate for every token.

    ratio, activation: of the feed-forward layer, as of `MLP`. adapters: how many. bottleneck: hidden size of each. The
    gate is taken to be a softmax over the adapters of one linear map. Adapters start at zero and leave the layer as it
    is; the paper freezes it, trains adapters on a domain's text, then all but it on the task: which parameters are
    trained is the training's to say.
    """

    ratio: Any = 4
    activation: Any = "gelu"
    adapters: Any = 2
    bottleneck: Any = 16
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained "
                                      "Language Models Memories", 2023, options=("S295",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{unknown('activation', self.activation, ACTIVATIONS)} (at {where})")
        require_whole("adapters", self.adapters, where, instead="use MLP for none")
        require_whole("bottleneck", self.bottleneck, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, f, a = axis("width", width), axis("hidden", hidden_size(self.ratio, width)), axis("adapters", self.adapters)
        inner = a * axis("bottleneck", self.bottleneck)
        return {"feed_forward.up.weight": param(f, d), "feed_forward.down.weight": param(d, f), "gate.weight": param(a, d),
                "adapter_down.weight": param(inner, d), "adapter_up.weight": param(d, inner, init="zeros")}

    def build(self, width: int) -> nn.Module:
        return AdaptedFeedForward(width, hidden_size(self.ratio, width), self.activation, self.adapters, self.bottleneck)

    def matrix_numel(self, width: int) -> int:
        """Adapters start at zero and are matrices all the same."""
        return super().matrix_numel(width) + width * int(self.adapters * self.bottleneck)
