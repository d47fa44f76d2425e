"""RWKV: a softmax over the past that fades by channel, between shifted tokens and a gate.

Legend: B batch, T tokens, H and W rows and columns of a grid, D width, C channels, S numbers of a running softmax (3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.wkv.chunked import added, chunked_wkv, chunked_wkv_past, nothing, read, wkv_step, written
from ..axes import Init, Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_whole
from .spatial import as_grid

__all__ = ["RWKV", "BidirectionalWeightedKeyValues", "VisionRWKV", "WeightedKeyValues"]

MIX = Init("uniform", low=0.0, high=1.0)
DECAY = Init("uniform", low=-5.0, high=3.0)
BONUS = Init("constant", low=-1.2)


class WeightedKeyValues(nn.Module):
    """`out(sigmoid(r) * wkv(k, v))`; r, k and v are projections of the token mixed with the one before it.

    The past fades by exp(-exp(decay)) per channel and token; with a `rank` the exponent has a term tanh(x A) B of the
    mixed token as well.
    """

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.width = width
        self.mix = nn.Parameter(torch.empty(4 if rank else 3, width))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.decay = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(width))
        self.decay_down = nn.Linear(width, rank, bias=False) if rank else None
        self.decay_up = nn.Linear(rank, width, bias=False) if rank else None
        self.out = nn.Linear(width, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        last = torch.zeros(batch, 1, self.width, dtype=dtype, device=device)
        return {"last": last, "past": nothing(batch, self.width, last.to(torch.promote_types(dtype, torch.float32))).clone()}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        last_B1D = torch.zeros_like(x_BTD[:, :1]) if state is None else state["last"].to(x_BTD.dtype)
        before_BTD = torch.cat([last_B1D, x_BTD[:, :-1]], dim=1)
        mixed = [torch.lerp(before_BTD, x_BTD, mix_D) for mix_D in self.mix]
        r_BTC, k_BTC, v_BTC = self.receptance(mixed[0]), self.key(mixed[1]), self.value(mixed[2])
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        exponent = self.decay.to(dtype).view(1, 1, -1)
        if self.decay_down is not None and self.decay_up is not None:
            exponent = exponent + self.decay_up(torch.tanh(self.decay_down(mixed[3]))).to(dtype)
        fade, bonus_C = -torch.exp(exponent), self.bonus.to(dtype)
        if state is not None and x_BTD.shape[1] == 1:
            y_BTC, past = wkv_step(k_BTC, v_BTC, log_decay_BTD=fade, bonus_D=bonus_C, state_BSD=state["past"])
        else:
            y_BTC, past = chunked_wkv(k_BTC, v_BTC, log_decay_BTD=fade, bonus_D=bonus_C,
                                      state_BSD=None if state is None else state["past"])
        return self.out(torch.sigmoid(r_BTC) * y_BTC), {"last": x_BTD[:, -1:].clone(), "past": past}


class BidirectionalWeightedKeyValues(nn.Module):
    """`out(sigmoid(r) * wkv(k, v))` over all places of a grid, row after row, in both directions.

    r, k and v are projections of the token mixed with a neighbour: channels 0, 4, 8, ... take it from the left, then from
    the right, above and below. The weight of a place fades with its distance over the number of places.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Parameter(torch.empty(3, width))
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.decay = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(width))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        near_BHWD = self.neighbours(x_BHWD)
        r, k, v = (torch.lerp(near_BHWD, x_BHWD, mix_D).flatten(1, 2) for mix_D in self.mix)
        r_BTC, k_BTC, v_BTC = self.receptance(r), self.key(k), self.value(v)
        dtype = torch.promote_types(x.dtype, torch.float32)
        fade_11C = -self.decay.to(dtype).view(1, 1, -1) / k_BTC.shape[1]
        before_BTSC, _ = chunked_wkv_past(k_BTC, v_BTC, log_decay_BTD=fade_11C)
        after_BTSC, _ = chunked_wkv_past(k_BTC.flip(1), v_BTC.flip(1), log_decay_BTD=fade_11C)
        own_BTSC = written(k_BTC.to(dtype) + self.bonus.to(dtype), v_BTC.to(dtype))
        y_BTC = read(added(added(before_BTSC, after_BTSC.flip(1)), own_BTSC)).to(x.dtype)
        return self.out(torch.sigmoid(r_BTC) * y_BTC).view(x.shape)                  # type: ignore[no-any-return]

    def neighbours(self, x_BHWD: Tensor) -> Tensor:
        """Every channel from one of the four neighbours; zeros outside the grid."""
        padded = F.pad(x_BHWD, (0, 0, 1, 1, 1, 1))
        left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
        above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
        way_D = torch.arange(x_BHWD.shape[-1], device=x_BHWD.device) % 4
        sideways = torch.where(way_D == 0, left, right)
        return torch.where(way_D < 2, sideways, torch.where(way_D == 2, above, below))


def shared_axes(width: int, mixes: int) -> dict[str, Param]:
    d, c = axis("width", width), axis("channels", width)
    return {"mix": param(axis("mixes", mixes), d, init=MIX), "receptance.weight": param(c, d), "key.weight": param(c, d),
            "value.weight": param(c, d), "bonus": param(c, share="own", init=BONUS), "out.weight": param(d, c)}


@dataclass(frozen=True)
class RWKV(Operator):
    """The time mixing of RWKV: Reinventing RNNs for the Transformer Era (Peng et al., 2023).

    decay_rank: None for a decay per channel, as in the paper; a number for one that depends on the token through a
    projection of this rank, as in Eagle and Finch (Peng et al., 2024), whose matrix-valued states are not meant here.
    The bonus weighs the token itself.
    """

    decay_rank: Any = None
    fixed: ClassVar[Mapping[str, str]] = {"mixes": "each is for another projection"}
    source: ClassVar[Source] = Source("RWKV: Reinventing RNNs for the Transformer Era", 2023)

    def check(self, width: int, where: str) -> None:
        require_whole("decay_rank", self.decay_rank or 0, where, low=0, instead="use 32, or None for a decay per channel")

    def axes(self, width: int) -> dict[str, Param]:
        d, c, rank = axis("width", width), axis("channels", width), self.decay_rank or 0
        declared = shared_axes(width, 4 if rank else 3) | {"decay": param(c, share="own", init=DECAY)}
        if rank:
            r = axis("decay_rank", rank)
            declared |= {"decay_down.weight": param(r, d), "decay_up.weight": param(c, r)}
        return declared

    def build(self, width: int) -> nn.Module:
        return WeightedKeyValues(width, self.decay_rank or 0)

    def state_numel(self, width: int, length: int) -> int:
        """The last token, and numerator, denominator and exponent of every channel."""
        return 4 * width


@dataclass(frozen=True)
class VisionRWKV(Operator):
    """The spatial mixing of Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures (Duan et
    al., 2024), the attention of RWKV-SAM's low-resolution stages.

    Weights fade by exp(-w / places) per step, w learned per channel and of either sign, as in the paper. The neighbours
    of a quarter of the channels each are taken from every fourth channel, so that narrower networks agree with wider ones.
    A sequence is a grid of one column. RWKV-SAM's backbone is stages of `MobileConv`, then of this.
    """

    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"mixes": "each is for another projection",
                                          "width": "every fourth channel looks the same way"}
    source: ClassVar[Source] = Source("Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures",
                                      2024, options=("S306",))

    def axes(self, width: int) -> dict[str, Param]:
        return shared_axes(width, 3) | {"decay": param(axis("channels", width), share="own", init=DECAY)}

    def build(self, width: int) -> nn.Module:
        return BidirectionalWeightedKeyValues(width)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        return float(self.matrix_numel(width) * tokens_of(length))

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
