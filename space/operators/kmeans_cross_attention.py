"""Cross-attention in which every token of the memory goes to one token of the stream.

Legend: B batch, T tokens of the stream (cluster centres), S tokens of the memory, D width, E inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["KMeansCrossAttention", "MemoryClusters"]


class MemoryClusters(nn.Module):
    """`y_t = sum of v_s over the tokens s of shared["memory"] whose largest product q_t . k_s is with t`.

    The assignment passes gradients as if it were a softmax over the stream. mean: divided by how many there are.
    """

    shares = True

    def __init__(self, width: int, inner: int, mean: bool):
        super().__init__()
        self.mean = mean
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, shared: dict[str, Any]) -> Tensor:
        if "memory" not in shared:
            raise ValueError("cross-attention reads what an encoder hands on: got no memory; "
                             "put it into EncoderDecoder(encoder, decoder=...)")
        q_BTE, k_BSE, v_BSE = self.query(x_BTD), self.key(shared["memory"]), self.value(shared["memory"])
        logits_BTS = q_BTE @ k_BSE.transpose(1, 2)
        soft_BTS = logits_BTS.softmax(1)
        hard_BTS = F.one_hot(logits_BTS.argmax(1), q_BTE.shape[1]).transpose(1, 2).to(soft_BTS.dtype)
        y_BTE = (hard_BTS + soft_BTS - soft_BTS.detach()) @ v_BSE
        if self.mean:
            y_BTE = y_BTE / hard_BTS.sum(2, keepdim=True).clamp_min(1)
        y_BTD: Tensor = self.out(y_BTE)
        return y_BTD


@dataclass(frozen=True)
class KMeansCrossAttention(Operator):
    """kMaX-DeepLab: k-means Mask Transformer (Yu et al., 2022): cross-attention as a step of k-means, the softmax over the
    memory replaced by an argmax over the stream.

    Stands in the decoder of an encoder-decoder, whose stream are the cluster centres; with the residual a block of it moves
    every centre by what is assigned to it. mean: by the mean of its tokens, else by their sum as in the paper, which
    normalises afterwards. inner: width of queries, keys and values, by default the stream's. The authors supervise the
    assignment by masks; here it also gets a gradient, as if it were soft. Costs take the memory to be as long as the stream.
    """

    inner: Any = None
    mean: Any = False
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    cross: ClassVar[bool] = True
    reads_shared: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    source: ClassVar[Source] = Source("kMaX-DeepLab: k-means Mask Transformer", 2022, options=("S368",))

    def check(self, width: int, where: str) -> None:
        if self.inner is not None:
            require_whole("inner", self.inner, where, instead="use None for the width of the stream")

    def axes(self, width: int) -> dict[str, Param]:
        d = axis("width", width)
        keys, values = (axis(name, self.inner or width) for name in ("key_dim", "value_dim"))
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                "out.weight": param(d, values)}

    def build(self, width: int) -> nn.Module:
        return MemoryClusters(width, self.inner or width, bool(self.mean))

    def macs(self, width: int, length: int) -> float:
        """Projections of the stream and of a memory as long, and all pairs."""
        return float(self.matrix_numel(width) * length + 2 * (self.inner or width) * length * length)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: centres compete for the memory."""
        return self.macs(width, length + 1)
