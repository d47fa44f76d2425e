"""Linear attention over hash codes: queries and keys become bits, which products of matrices compare.

Legend: B batch, T tokens, D width, H heads, P head_dim, M anchors, C bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .recurrence import check_heads

__all__ = ["EcoFormer", "HashAttention"]


class HashAttention(nn.Module):
    """`o_t = sum of (C + c_t . d_s) v_s` over the sum of the same weights, with codes c and d in {-1, 1}^C.

    C + c . d is twice the number of equal bits, so weights are not negative and all is linear in the codes. A code is the
    sign of `A (kappa(x) - mean)`, kappa being Gaussian in the distance to learned anchors, as wide as the mean distance of
    the sequence. Signs pass gradients as if they were a clamp to [-1, 1].
    """

    def __init__(self, width: int, heads: int, head_dim: int, bits: int, anchors: int):
        super().__init__()
        self.heads, self.bits = heads, bits
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.anchors = nn.Parameter(torch.empty(heads, anchors, head_dim))
        self.mean = nn.Parameter(torch.empty(heads, anchors))
        self.hash = nn.Parameter(torch.empty(heads, bits, anchors))

    def forward(self, x_BTD: Tensor) -> Tensor:
        v_BHTP = self.value(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v_BHTP = F.pad(v_BHTP.to(torch.promote_types(v_BHTP.dtype, torch.float32)), (0, 1), value=1.0)
        q_BHTC, k_BHTC = self.codes(self.query(x_BTD)), self.codes(self.key(x_BTD))
        all_BH1P = self.bits * v_BHTP.sum(2, keepdim=True)
        o_BHTP = all_BH1P + q_BHTC @ (k_BHTC.transpose(2, 3) @ v_BHTP)
        # A query with no bit in common with any key has weights of 0 alone.
        o_BHTP = o_BHTP[..., :-1] / o_BHTP[..., -1:].clamp_min(1.0)
        y_BTD: Tensor = self.out(o_BHTP.transpose(1, 2).flatten(2).to(x_BTD.dtype))
        return y_BTD

    def codes(self, x_BTE: Tensor) -> Tensor:
        """Codes of queries or keys, [B, H, T, C], in float32 at least."""
        x_BHTP = x_BTE.view(*x_BTE.shape[:2], self.heads, -1).transpose(1, 2)
        dtype = torch.promote_types(x_BHTP.dtype, torch.float32)
        x_BHTP, anchors_HMP = x_BHTP.to(dtype), self.anchors.to(dtype)
        cross_BHTM = x_BHTP @ anchors_HMP.transpose(1, 2)
        squares_BHTM = x_BHTP.square().sum(-1, keepdim=True) + anchors_HMP.square().sum(-1)[:, None]
        distance_BHTM = squares_BHTM - 2 * cross_BHTM
        kernel_BHTM = (-distance_BHTM / (2 * distance_BHTM.mean((2, 3), keepdim=True) + 1e-12)).exp()
        logit_BHTC = (kernel_BHTM - self.mean.to(dtype)[:, None]) @ self.hash.to(dtype).transpose(1, 2)
        soft_BHTC = logit_BHTC.clamp(-1.0, 1.0)
        codes_BHTC: Tensor = torch.where(logit_BHTC > 0, 1.0, -1.0).to(dtype) + (soft_BHTC - soft_BHTC.detach())
        return codes_BHTC


@dataclass(frozen=True)
class EcoFormer(Operator):
    """EcoFormer: Energy-Saving Attention with Linear Complexity (Liu et al., 2022).

    bits of a code, anchors of the kernel that is hashed. head_dim defaults to width / heads. Products with codes are
    additions: `additions` counts them, `macs` counts them as multiply-adds like all others.

    The authors fit anchors, mean and hash by a loss of their own on the similarity of attention and keep them fixed in
    between; here they are parameters, trained with the rest. Both ways only: the kernel's width is a mean over the sequence.
    """

    heads: Any = 4
    bits: Any = 16
    anchors: Any = 25
    head_dim: Any = None
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("EcoFormer: Energy-Saving Attention with Linear Complexity", 2022, systems=("S027",))

    def _head_dim(self, width: int) -> int:
        return int(self.head_dim or width // self.heads)

    def check(self, width: int, where: str) -> None:
        check_heads(self.heads, self.head_dim, width, where)
        require_whole("bits", self.bits, where, instead="use 16")
        require_whole("anchors", self.anchors, where, instead="use 25")

    def axes(self, width: int) -> dict[str, Param]:
        d, h, size = axis("width", width), axis("heads", self.heads), self._head_dim(width)
        k, m, c = axis("key_dim", size), axis("anchors", self.anchors), axis("bits", self.bits)
        values, normal = h * axis("value_dim", size), Init("normal", gain=1.0)
        return {"query.weight": param(h * k, d), "key.weight": param(h * k, d), "value.weight": param(values, d),
                "out.weight": param(d, values), "anchors": param(h, m, k, init=normal),
                "mean": param(h, m, init=Init("constant", low=0.6)), "hash": param(h, c, m, init=normal)}

    def build(self, width: int) -> nn.Module:
        return HashAttention(width, self.heads, self._head_dim(width), self.bits, self.anchors)

    def additions(self, width: int, length: int) -> float:
        """Multiply-adds of `macs` that add or subtract only, one factor being a bit: keys to values, queries to those."""
        return float(2 * length * self.heads * self.bits * (self._head_dim(width) + 1))

    def macs(self, width: int, length: int) -> float:
        """Projections, distances to anchors and codes of queries and keys, and the products with codes."""
        codes = 2 * self.heads * self.anchors * (self._head_dim(width) + self.bits)
        return float(length * (self.matrix_numel(width) + codes)) + self.additions(width, length)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length + 1)
