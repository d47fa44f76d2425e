"""Attention from tokens to parameters in place of a feed-forward layer.

Legend: B batch, T tokens, D width, O outputs, N parameter tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_positive
from .mlp import check_ratio, hidden_size

__all__ = ["ParameterAttention", "Pattention"]


class ParameterAttention(nn.Module):
    """`gelu(scale * a / |a|) V` with a = x K^T: rows of `key.weight` and columns of `value.weight` are parameter tokens.

    scale: None for the root of the number of parameter tokens, which gives the scores a root mean square of 1.
    """

    def __init__(self, width: int, tokens: int, out: int, scale: float | None = None):
        super().__init__()
        self.scale = tokens**0.5 if scale is None else scale
        self.key = nn.Linear(width, tokens, bias=False)
        self.value = nn.Linear(tokens, out, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        # An eps that half precision can hold: a token of zeros has scores of zeros.
        score_BTN = F.normalize(self.key(x_BTD), dim=-1, eps=1e-6)
        y_BTO: Tensor = self.value(F.gelu(self.scale * score_BTN))
        return y_BTO


@dataclass(frozen=True)
class Pattention(Operator):
    """TokenFormer's feed-forward layer (Wang et al., 2024): attention to learned keys and values, with gelu of
    normalised scores in place of softmax, as the paper writes it.

    ratio: parameter tokens over width, rounded up to a multiple of 8. scale: of the scores; None for the root of the number
    of parameter tokens. A layer grows by appending parameter tokens: with keys of zeros they change nothing as long as
    `scale` stays the number it was. `PattentionMixer` is attention with projections of this kind.
    """

    ratio: Any = 4
    scale: Any = None
    kind: ClassVar[str] = "channel"
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters", 2024,
                                      systems=("S406",))

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        if self.scale is not None:
            require_positive("scale", self.scale, where, instead="use None for the root of the number of tokens")

    def axes(self, width: int) -> dict[str, Param]:
        d, n = axis("width", width), axis("tokens", hidden_size(self.ratio, width))
        return {"key.weight": param(n, d), "value.weight": param(d, n)}

    def build(self, width: int) -> nn.Module:
        return ParameterAttention(width, hidden_size(self.ratio, width), width, self.scale)
