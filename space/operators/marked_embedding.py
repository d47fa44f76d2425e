"""Tokens with a mark of where something begins.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..operator import Source
from .embedding import TokenEmbedding, TokenTable

__all__ = ["MarkedEmbedding", "MarkedTable"]


class MarkedTable(TokenTable):
    """A row per token whose first entry is 1 for marked tokens and 0 for others, whatever the table holds there."""

    def __init__(self, vocab: int, width: int, marks: tuple[int, ...]):
        super().__init__(vocab, width)
        self.marks = marks

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = super().forward(ids_BT)
        is_marked_BT = torch.isin(ids_BT, torch.tensor(self.marks, device=ids_BT.device, dtype=ids_BT.dtype))
        return torch.cat([is_marked_BT.to(x_BTD.dtype).unsqueeze(-1), x_BTD[..., 1:]], -1)


@dataclass(frozen=True)
class MarkedEmbedding(TokenEmbedding):
    """Token embedding that says of every token whether it is one of `marks`: by its first entry, 1 or 0.

    For `WordChunks`, which begins a chunk there. marks: ids; the default are tab, line feed, carriage return and space among
    bytes. A tied head still reads the whole table.
    """

    marks: Any = (9, 10, 13, 32)
    fixed: ClassVar[Mapping[str, str]] = {**TokenEmbedding.fixed, "width": "the first entry is a mark"}
    source: ClassVar[Source] = Source("Hierarchical Autoregressive Transformers: Combining Byte- and Word-Level Processing "
                                      "for Robust, Adaptable Language Models", 2025)

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        if not isinstance(self.marks, tuple) or not self.marks or not set(self.marks) <= set(range(self.vocab)):
            raise ValueError(f"marks are ids below vocab, at least one, at {where}: got {self.marks!r} of {self.vocab}; use "
                             "(32,) for spaces among bytes")

    def build(self, width: int) -> nn.Module:
        return MarkedTable(self.vocab, width, tuple(self.marks))
