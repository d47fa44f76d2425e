"""Softmax attention in both directions that tells its keys and its weights, and counts tokens by their sizes.

Legend: B batch, N tokens, H query heads, G key/value heads, R queries per key (H / G), P head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..axes import Param
from ..operator import Operator
from .attention import Attention
from .attention_variants import BidirectionalAttention

__all__ = ["TellingAttention", "tells"]


class TellingAttention(BidirectionalAttention):
    """The same attention, and what a token reduction asks of it."""

    def telling(self, x_BND: Tensor, size_BN: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, keys averaged over heads [B, N, P], and the weights [B, H, N, N].

        size: a key that stands for s tokens counts s times: log s is added to its scores (proportional attention, Bolya et
        al., 2023).
        """
        q_BNHP, k_BNGP, v_BNGP = self.projected(x_BND, 0)
        q_BGRNP = torch.unflatten(q_BNHP, 2, (self.kv_heads, -1)).permute(0, 2, 3, 1, 4)
        score_BGRNN = self.head_dim**-0.5 * q_BGRNP @ k_BNGP.permute(0, 2, 3, 1)[:, :, None]
        if size_BN is not None:
            score_BGRNN = score_BGRNN + size_BN.log()[:, None, None, None]
        weight_BGRNN = torch.softmax(score_BGRNN, -1)
        y_BNHP = (weight_BGRNN @ v_BNGP.transpose(1, 2)[:, :, None]).permute(0, 3, 1, 2, 4)
        y_BNE = y_BNHP.flatten(2)
        if self.sub_norm is not None:
            y_BNE = self.sub_norm(y_BNE)
        return self.out(y_BNE), k_BNGP.mean(2), weight_BGRNN.flatten(1, 2)


@dataclass(frozen=True)
class _Telling(Operator):
    """An attention config that builds the module which tells; everything it declares is the attention's."""

    attention: Any

    def axes(self, width: int) -> dict[str, Param]:
        return self.attention.axes(width)                                             # type: ignore[no-any-return]

    def build(self, width: int) -> nn.Module:
        held = self.attention
        kv_heads, _, head_dim = held.sizes(width)
        return TellingAttention(width, held.heads, kv_heads, head_dim, None, held.rope_base, rotary=held.is_rotary,
                                qk_norm=bool(held.qk_norm), sub_norm=bool(held.sub_norm))


def tells(operator: Any) -> bool:
    """Whether it is attention whose keys and weights can be told: in both directions, over all tokens, of its own values."""
    return (type(operator) is Attention and bool(operator.bidirectional) and operator.window is None
            and not (operator.writes_scores or operator.reuse_kv or operator.value_residual))
