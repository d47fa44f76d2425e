"""The token-mixing MLP of MLP-Mixer.

Legend: B batch, T tokens, L most tokens, D width, F hidden.
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
from .checks import require_whole

__all__ = ["TokenMLP", "TokenMixing", "mixed_tokens"]


def mixed_tokens(x_BTD: Tensor, up_FL: Tensor, down_LF: Tensor) -> Tensor:
    """`down(gelu(up(x)))` over the tokens of every channel; zeros after the end. Raises ValueError for too many tokens."""
    length, most = x_BTD.shape[1], len(down_LF)
    if length > most:
        raise ValueError(f"a sequence has at most max_len tokens: got {length} and {most}; use a larger max_len")
    h_BFD = F.gelu(torch.einsum("btd,ft->bfd", x_BTD, up_FL[:, :length]))
    return torch.einsum("bfd,tf->btd", h_BFD, down_LF[:length])


class TokenMixing(nn.Module):
    """The same two layers for every channel."""

    def __init__(self, max_len: int, hidden: int):
        super().__init__()
        self.up = nn.Parameter(torch.empty(hidden, max_len))
        self.down = nn.Parameter(torch.empty(max_len, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return mixed_tokens(x_BTD, self.up, self.down)


@dataclass(frozen=True)
class TokenMLP(Operator):
    """MLP-Mixer: An all-MLP Architecture for Vision (Tolstikhin et al., 2021): `Block(mixer=TokenMLP(), channel=MLP(),
    norm=LayerNorm())` is its layer without biases.

    max_len: tokens of the longest sequence, or of all of a grid; more raise ValueError, fewer leave out the last weights.
    hidden: units of the hidden layer (half the width in the paper).
    """

    max_len: Any = 196
    hidden: Any = 256
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"places": "a place in the sequence"}
    source: ClassVar[Source] = Source("MLP-Mixer: An all-MLP Architecture for Vision", 2021)

    def check(self, width: int, where: str) -> None:
        require_whole("max_len", self.max_len, where)
        require_whole("hidden", self.hidden, where)

    def axes(self, width: int) -> dict[str, Param]:
        f, places = axis("hidden", self.hidden), axis("places", self.max_len)
        return {"up": param(f, places), "down": param(places, f)}

    def build(self, width: int) -> nn.Module:
        return TokenMixing(self.max_len, self.hidden)

    def macs(self, width: int, length: int) -> float:
        """Both layers over the places that are there."""
        return float(2 * length * self.hidden * width)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
