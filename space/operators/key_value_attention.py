"""Softmax attention without queries: keys meet keys.

Legend: B batch, T new tokens, S visible tokens, D width, H heads, P head_dim, C frequencies.
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
from .attention import attend
from .checks import require_whole
from .recurrence import check_heads

__all__ = ["KeyValueAttention", "KeyValueMixer"]


class KeyValueMixer(nn.Module):
    """`softmax(K K^T / sqrt(P) + bias) V`, the bias of a pair of places a weighted sum of products of sinusoids of both.

    With frequency w of C: sin(w t) sin(w s), sin(w t) cos(w s), cos(w t) sin(w s), cos(w t) cos(w s).
    """

    def __init__(self, width: int, heads: int, head_dim: int, frequencies: int = 0, bidirectional: bool = False):
        super().__init__()
        self.heads, self.head_dim, self.bidirectional = heads, head_dim, bidirectional
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.places = nn.Parameter(torch.empty(heads, frequencies, 2, 2)) if frequencies else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, 0, self.heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        q_BTHP = k_BSHP = self.key(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        v_BSHP = self.value(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        if state is not None:
            k_BSHP, v_BSHP = torch.cat([state["key"], k_BSHP], dim=1), torch.cat([state["value"], v_BSHP], dim=1)
        if self.places is None:
            y_BTHP = attend(q_BTHP, k_BSHP, v_BSHP, None, self.bidirectional)
        else:
            bias_HTS = self.bias(q_BTHP.shape[1], k_BSHP.shape[1], self.places).to(x_BTD.dtype)
            q, k, v = q_BTHP.transpose(1, 2), k_BSHP.transpose(1, 2), v_BSHP.transpose(1, 2)
            y_BTHP = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HTS[None]).transpose(1, 2)
        return self.out(y_BTHP.flatten(2)), {"key": k_BSHP, "value": v_BSHP}

    def bias(self, new: int, seen: int, places: Tensor) -> Tensor:
        """What pairs of places add to their scores, [H, T, S]; minus infinity for what is still to come."""
        dtype, count = torch.promote_types(places.dtype, torch.float32), places.shape[1]
        place_S = torch.arange(seen, device=places.device, dtype=dtype)
        rate_C = 10000.0 ** (-torch.arange(count, device=places.device, dtype=dtype) / count)
        angle_SC = place_S[:, None] * rate_C
        waves_SC2 = torch.stack([angle_SC.sin(), angle_SC.cos()], dim=-1)
        weighed_HTC2 = torch.einsum("tci,hcij->htcj", waves_SC2[seen - new:], places.to(dtype))
        bias_HTS = weighed_HTC2.flatten(2) @ waves_SC2.flatten(1).t()
        if self.bidirectional:
            return bias_HTS
        return bias_HTS.masked_fill(place_S > place_S[seen - new:, None], -torch.inf)


@dataclass(frozen=True)
class KeyValueAttention(Operator):
    """Key-Value Transformer (Borji, 2023): keys serve as queries too, so that scores of two tokens are symmetric.

    frequencies: None, or sinusoids that make the scores asymmetric: the paper adds a two-dimensional positional encoding to
    the attention matrix without fixing its form; here it is a learned sum, per head, of products of a sinusoid of the row
    and one of the column. bidirectional: tokens see each other both ways. head_dim defaults to width / heads.
    """

    heads: Any = 4
    head_dim: Any = None
    frequencies: Any = None
    bidirectional: Any = False
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"frequencies": "an entry is a frequency", "row_waves": "a sine and a cosine",
                                          "column_waves": "a sine and a cosine"}
    source: ClassVar[Source] = Source("Key-Value Transformer", 2023, systems=("S221",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        require_whole("frequencies", self.frequencies or 0, where, low=0, instead="use 16, or None for symmetric scores")

    def axes(self, width: int) -> dict[str, Param]:
        d, h = axis("width", width), axis("heads", self.heads)
        inner = h * axis("head_dim", self._head_dim(width))
        declared = {"key.weight": param(inner, d), "value.weight": param(inner, d), "out.weight": param(d, inner)}
        if self.frequencies:
            declared["places"] = param(h, axis("frequencies", self.frequencies, "spread"), axis("row_waves", 2),
                                       axis("column_waves", 2), init="zeros")
        return declared

    def build(self, width: int) -> nn.Module:
        return KeyValueMixer(width, self.heads, self._head_dim(width), self.frequencies or 0, bool(self.bidirectional))

    def _bias_macs(self, new: int, seen: int) -> int:
        """The bias of every pair of a new and a seen place, visible or not."""
        waves = self.heads * (self.frequencies or 0)
        return int(new * waves * (4 + 2 * seen))

    def macs(self, width: int, length: int) -> float:
        """Projections, the visible pairs, and the bias of all pairs."""
        pairs = length * length if self.bidirectional else length * (length + 1) // 2
        return float(self.matrix_numel(width) * length + 2 * self.heads * self._head_dim(width) * pairs
                     + self._bias_macs(length, length))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        return float(self.matrix_numel(width) + 2 * self.heads * self._head_dim(width) * (length + 1)
                     + self._bias_macs(1, length + 1))

    def state_numel(self, width: int, length: int) -> int:
        return 0 if self.bidirectional else int(2 * length * self.heads * self._head_dim(width))
