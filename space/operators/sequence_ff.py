"""A feed-forward network over the whole sequence at once, in place of attention.

Legend: B batch, T tokens, L most tokens, D width, H heads, P head_dim, F hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_divisor, require_whole

__all__ = ["HeadFeedForwards", "SequenceFF", "SequenceFeedForward"]


class SequenceFeedForward(nn.Module):
    """`relu(x W_1 + b_1) W_2 + b_2` of the sequence flattened to L * D numbers, zeros after its end."""

    def __init__(self, width: int, max_len: int, hidden: int):
        super().__init__()
        self.up = nn.Parameter(torch.empty(hidden, max_len, width))
        self.up_bias = nn.Parameter(torch.empty(hidden))
        self.down = nn.Parameter(torch.empty(max_len, width, hidden))
        self.down_bias = nn.Parameter(torch.empty(max_len, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        length = require_room(x_BTD, self.down)
        # Zeros after the end would multiply the weights left out here, and outputs there are dropped.
        h_BF = F.relu(torch.einsum("btd,ftd->bf", x_BTD, self.up[:, :length]) + self.up_bias)
        return torch.einsum("bf,tdf->btd", h_BF, self.down[:length]) + self.down_bias[:length]


class HeadFeedForwards(nn.Module):
    """The same for every head, with L * P outputs; the heads are put side by side and projected."""

    def __init__(self, width: int, max_len: int, hidden: int, heads: int):
        super().__init__()
        self.head_up = nn.Parameter(torch.empty(heads, hidden, max_len, width))
        self.head_up_bias = nn.Parameter(torch.empty(heads, hidden))
        self.head_down = nn.Parameter(torch.empty(max_len, heads, width // heads, hidden))
        self.head_down_bias = nn.Parameter(torch.empty(max_len, heads, width // heads))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        length = require_room(x_BTD, self.head_down)
        h_BHF = F.relu(torch.einsum("btd,hftd->bhf", x_BTD, self.head_up[:, :, :length]) + self.head_up_bias)
        y_BTHP = torch.einsum("bhf,thpf->bthp", h_BHF, self.head_down[:length]) + self.head_down_bias[:length]
        y_BTD: Tensor = self.out(y_BTHP.flatten(2))
        return y_BTD


def require_room(x_BTD: Tensor, places: Tensor) -> int:
    """The length of a sequence. Raises ValueError where there are weights for fewer places."""
    if x_BTD.shape[1] > len(places):
        raise ValueError(f"a sequence has at most max_len tokens: got {x_BTD.shape[1]} and {len(places)}; use a larger "
                         "max_len")
    return x_BTD.shape[1]


@dataclass(frozen=True)
class SequenceFF(Operator):
    """Rethinking Attention: Exploring Shallow Feed-Forward Neural Networks as an Alternative to Attention Layers in
    Transformers (Bozic et al., 2023).

    max_len: tokens of the longest sequence; a longer one raises ValueError. hidden: units of the one hidden layer. heads:
    None for one network in place of the layer; a number for one in place of each head, before the output projection.
    Residual and norm around it are the block's; the paper's replacement of a whole encoder layer is this mixer with
    Identity() as channel. The paper trains it to give the outputs of a trained attention layer.
    """

    max_len: Any = 128
    hidden: Any = 256
    heads: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"places": "a place in the sequence"}
    source: ClassVar[Source] = Source("Rethinking Attention: Exploring Shallow Feed-Forward Neural Networks as an "
                                      "Alternative to Attention Layers in Transformers", 2023, systems=("S216",))

    def check(self, width: int, where: str) -> None:
        require_whole("max_len", self.max_len, where)
        require_whole("hidden", self.hidden, where)
        if self.heads is not None:
            require_whole("heads", self.heads, where, instead="use None for one network in place of the layer")
            require_divisor("heads", self.heads, "width", width, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, f, places = axis("width", width), axis("hidden", self.hidden), axis("places", self.max_len)
        up, down = Init("normal", gain=(self.max_len * width) ** -0.5), Init("last")
        if self.heads is None:
            return {"up": param(f, places, d, init=up), "up_bias": param(f, init="zeros"),
                    "down": param(places, d, f, init=down), "down_bias": param(places, d, init="zeros")}
        h, p = axis("heads", self.heads), axis("head_dim", width // self.heads)
        return {"head_up": param(h, f, places, d, init=up), "head_up_bias": param(h, f, init="zeros"),
                "head_down": param(places, h, p, f, init=down), "head_down_bias": param(places, h, p, init="zeros"),
                "out.weight": param(d, h * p)}

    def build(self, width: int) -> nn.Module:
        if self.heads is None:
            return SequenceFeedForward(width, self.max_len, self.hidden)
        return HeadFeedForwards(width, self.max_len, self.hidden, self.heads)

    def macs(self, width: int, length: int) -> float:
        """Both layers over the places that are there, and the projection of heads."""
        units = 2 * self.hidden if self.heads is None else (self.heads + 1) * self.hidden + width
        return float(length * width * units)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
