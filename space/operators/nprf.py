"""Kernelised attention with relative positions: a Toeplitz matrix of weights, applied by Fourier transforms.

Legend: B batch, T new tokens, S visible tokens, D width, H heads, P head_dim, V value entries and one, F random features,
R distances with a bias of their own, L offsets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.long_conv.fft import fft_long_conv
from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .recurrence import check_heads

__all__ = ["NPRF", "ToeplitzAttention", "normal_numbers", "uniform_numbers"]


def uniform_numbers(place: Tensor, salt: int, dtype: torch.dtype) -> Tensor:
    """Numbers that pass for independent uniform ones between 0 and 1, each a function of a whole number."""
    bits = (place + salt) & 0xFFFFFFFF
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        bits = ((bits ^ (bits >> 16)) * multiplier) & 0xFFFFFFFF
    return ((bits ^ (bits >> 16)).to(dtype) + 0.5) / 2**32


def normal_numbers(heads: int, features: int, head_dim: int, device: Any, dtype: torch.dtype) -> Tensor:
    """Numbers that pass for independent standard normal ones, [H, F, P], each a function of its three indices alone.

    Every index is hashed into two uniform numbers, which the Box-Muller transform turns into a normal one. So a smaller
    module draws a part of what a larger draws, and nothing is stored.
    """
    h, f, p = (torch.arange(size, device=device, dtype=torch.int64) for size in (heads, features, head_dim))
    seed_HFP = (h[:, None, None] * 1009 + f[:, None]) * 4099 + p
    uniform = [uniform_numbers(seed_HFP, salt, dtype) for salt in (0x9E3779B9, 0x7F4A7C15)]
    return (-2 * uniform[0].clamp_min(1e-9).log()).sqrt() * (2 * math.pi * uniform[1]).cos()


class ToeplitzAttention(nn.Module):
    """`o_t = sum of e^{b_{t-s}} f(q_t) . f(k_s) v_s` over the same sum without v, with queries and keys of length 1 and
    positive random features `f(x) = exp(w x - |x|^2 / 2) / sqrt(F)`, whose products estimate `exp(q . k)`.

    Every distance back, and both ways every distance ahead, has a bias of its own; from R on all share the last. Whole
    sequences go through transforms, a feature at a time; new tokens after others read the kept keys and values directly.
    """

    def __init__(self, width: int, heads: int, head_dim: int, features: int, reach: int, bidirectional: bool = False):
        super().__init__()
        self.heads, self.head_dim, self.features, self.reach = heads, head_dim, features, reach
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.bias = nn.Parameter(torch.empty(heads, reach))
        self.ahead = nn.Parameter(torch.empty(heads, reach)) if bidirectional else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"key": torch.zeros(batch, 0, self.heads, self.features, dtype=dtype, device=device),
                "value": torch.zeros(batch, 0, self.heads, self.head_dim + 1, dtype=dtype, device=device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        weight_HFP = normal_numbers(self.heads, self.features, self.head_dim, x_BTD.device,
                                    torch.promote_types(x_BTD.dtype, torch.float32))
        q_BTHF = self.random_features(self.query(x_BTD), weight_HFP)
        k_BSHF = self.random_features(self.key(x_BTD), weight_HFP)
        v_BSHV = F.pad(self.value(x_BTD).unflatten(-1, (self.heads, -1)).to(k_BSHF.dtype), (0, 1), value=1.0)
        if state is not None:
            k_BSHF, v_BSHV = torch.cat([state["key"], k_BSHF], dim=1), torch.cat([state["value"], v_BSHV], dim=1)
        mix = self.transformed if state is None else self.direct
        o_BTHV = mix(q_BTHF, k_BSHF, v_BSHV)
        y_BTE = (o_BTHV[..., :-1] / o_BTHV[..., -1:]).flatten(2)
        return self.out(y_BTE.to(x_BTD.dtype)), {"key": k_BSHF, "value": v_BSHV}

    def random_features(self, x_BTE: Tensor, weight_HFP: Tensor) -> Tensor:
        """Features of queries or keys, normalised to length 1."""
        x_BTHP = F.normalize(x_BTE.view(*x_BTE.shape[:2], self.heads, -1).to(weight_HFP.dtype), dim=-1)
        logit_BTHF = torch.einsum("bthp,hfp->bthf", x_BTHP, weight_HFP)
        found_BTHF: Tensor = (logit_BTHF - x_BTHP.square().sum(-1, keepdim=True) / 2).exp() * self.features**-0.5
        return found_BTHF

    def offset_weights(self, first: int, last: int) -> Tensor:
        """exp(b) of the offsets first to last, a query's place less a key's, [L, H]."""
        offset_L = torch.arange(first, last + 1, device=self.bias.device)
        bias_HL = self.bias[:, offset_L.clamp(0, self.reach - 1)]
        if self.ahead is not None:
            bias_HL = torch.where(offset_L < 0, self.ahead[:, (-1 - offset_L).clamp(0, self.reach - 1)], bias_HL)
        return bias_HL.to(torch.promote_types(self.bias.dtype, torch.float32)).exp().t()

    def transformed(self, q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor) -> Tensor:
        """Numerators, and the denominator as the last entry, of a whole sequence."""
        length, columns = q_BTHF.shape[1], v_BTHV.shape[-1]
        ahead = 0 if self.ahead is None else length - 1
        filter_LHV = self.offset_weights(-ahead, length - 1)[..., None].expand(-1, -1, columns)
        o_BTHV = torch.zeros_like(v_BTHV)
        for q_BTH, k_BTH in zip(q_BTHF.unbind(-1), k_BTHF.unbind(-1), strict=True):
            x_BTE = F.pad((k_BTH[..., None] * v_BTHV).flatten(2), (0, 0, 0, ahead))
            read_BTE = fft_long_conv(x_BTE, filter_LHV.flatten(1))[:, ahead:]
            o_BTHV = o_BTHV + q_BTH[..., None] * read_BTE.view(o_BTHV.shape)
        return o_BTHV

    def direct(self, q_BTHF: Tensor, k_BSHF: Tensor, v_BSHV: Tensor) -> Tensor:
        """The same for the newest tokens, pair by pair."""
        new, seen = q_BTHF.shape[1], k_BSHF.shape[1]
        offset_TS = torch.arange(seen - new, seen, device=q_BTHF.device)[:, None] - torch.arange(seen, device=q_BTHF.device)
        weight_TSH = self.offset_weights(0, seen - 1)[offset_TS.clamp_min(0)] * (offset_TS >= 0)[..., None]
        scores_BHTS = torch.einsum("bthf,bshf->bhts", q_BTHF, k_BSHF) * weight_TSH.permute(2, 0, 1)
        return torch.einsum("bhts,bshv->bthv", scores_BHTS, v_BSHV)


@dataclass(frozen=True)
class NPRF(Operator):
    """Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding (Luo et al., 2021).

    features: random features of a head. reach: distances with a bias of their own; farther tokens share the last.
    bidirectional: tokens see each other both ways. head_dim defaults to width / heads.

    The random directions are independent normal ones, computed in every pass, and never change. An arbitrary function of
    the distance has no finite state: decoding keeps the features of all keys, and costs O(length) per token.
    """

    heads: Any = 4
    head_dim: Any = None
    features: Any = 64
    reach: Any = 512
    bidirectional: Any = False
    causal_to_the_bit: ClassVar[bool] = False      # a transform rounds by the whole sequence
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {
        "heads": "a head has its own random directions", "head_dim": "an entry is a coordinate of random directions",
        "distances": "a distance is a number of tokens"}
    source: ClassVar[Source] = Source("Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding",
                                      2021, systems=("S289",))

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
        for name, instead in (("features", "use 64"), ("reach", "use the length of a sequence")):
            require_whole(name, getattr(self, name), where, instead=instead)

    def axes(self, width: int) -> dict[str, Param]:
        d, h = axis("width", width), axis("heads", self.heads)
        ahead = {"ahead": param(h, axis("distances", self.reach), init="zeros")} if self.bidirectional else {}
        keys, values = h * axis("head_dim", self._head_dim(width)), h * axis("value_dim", self._head_dim(width))
        return {"query.weight": param(keys, d), "key.weight": param(keys, d), "value.weight": param(values, d),
                "out.weight": param(d, values), "bias": param(h, axis("distances", self.reach), init="zeros"), **ahead}

    def build(self, width: int) -> nn.Module:
        return ToeplitzAttention(width, self.heads, self._head_dim(width), self.features, self.reach,
                                 bool(self.bidirectional))

    def _token_macs(self, width: int) -> int:
        """Projections, and the features of a query and a key."""
        return int(self.matrix_numel(width) + 2 * self.heads * self.features * self._head_dim(width))

    def macs(self, width: int, length: int) -> float:
        """Projections, features, and three transforms per feature and column of 2.5 n log2 n operations (n = 2 length, or
        nearly 4 length both ways), two operations to a multiply-add."""
        size = 2 * (2 * length - 1 if self.bidirectional else length)
        columns = self.features * self.heads * (self._head_dim(width) + 1)
        return float(self._token_macs(width) * length + 3 * columns * 1.25 * size * math.log2(size))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token with every key and value; a whole pass where tokens look both ways."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        return float(self._token_macs(width) + self.heads * (self.features + self._head_dim(width) + 1) * (length + 1))

    def state_numel(self, width: int, length: int) -> int:
        return 0 if self.bidirectional else int(length * self.heads * (self.features + self._head_dim(width) + 1))
