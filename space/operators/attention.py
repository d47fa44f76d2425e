"""Softmax attention with rotary positions, grouped key/value heads and an optional sliding window.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, R queries per key (H / G),
P head_dim.

Attention layers of one stream may hand things on in a dictionary `shared`, new in every pass. Whoever computes keys
and values publishes `kv`: keys after rotation and cache, values, the position of the first new token, the window; and,
where no layer did before, `first_value`, the values of the new tokens alone, and `first_seen`, values with the cached ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Dim, Init, Param, axis, param
from ..operator import Operator, Source
from .layernorm import LayerNormalisation
from .rmsnorm import RootMeanSquareNorm

__all__ = ["Attention", "CausalAttention", "attend", "rotate", "rotation"]


def rotation(start: int, length: int, half: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [T, 1, half], of the rotary angles of positions start, start + 1, ... (Su et al., 2021)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    steps = torch.arange(half, device=like.device, dtype=dtype)
    position_T = torch.arange(start, start + length, device=like.device, dtype=dtype)
    angle_T1F = torch.outer(position_T, base ** (-steps / half))[:, None, :]
    return angle_T1F.cos().to(like.dtype), angle_T1F.sin().to(like.dtype)


def rotate(x_BTHP: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of each head by the angles of their positions."""
    a, b = x_BTHP.chunk(2, dim=-1)
    return torch.cat([a * cos_T1F - b * sin_T1F, b * cos_T1F + a * sin_T1F], dim=-1)


def attend(q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor, window: int | None, bidirectional: bool = False) -> Tensor:
    """Softmax attention of the T newest of S tokens; each key serves the H / G queries of its group."""
    new, seen = q_BTHP.shape[1], k_BSGP.shape[1]
    q, k, v = q_BTHP.transpose(1, 2), k_BSGP.transpose(1, 2), v_BSGP.transpose(1, 2)
    whole = window is None and new == seen
    mask_TS = None if whole else visible(new, seen, window, bidirectional, q.device)
    y_BHTP = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=False if bidirectional else whole,
                                            enable_gqa=q.shape[1] != k.shape[1])
    return y_BHTP.transpose(1, 2)


def visible(new: int, seen: int, window: int | None, bidirectional: bool, device: torch.device) -> Tensor | None:
    """Which keys each query sees, aligned at the newest token; None when a single query sees all."""
    if new == 1 and (window is None or seen <= window):
        return None
    query_T1 = torch.arange(seen - new, seen, device=device)[:, None]
    key_1S = torch.arange(seen, device=device)[None, :]
    if bidirectional:
        return None if window is None else (key_1S - query_T1).abs() < window
    mask_TS = key_1S <= query_T1
    return mask_TS if window is None else mask_TS & (key_1S > query_T1 - window)


class CausalAttention(nn.Module):
    """Causal self-attention. The cache keeps keys and values; with a window only the last `window` of them."""

    shares = True

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None = None,
                 rope_base: float = 10000.0, rotary: bool = True, qk_norm: bool = False, value_residual: bool = False,
                 half_first: bool = False, sub_norm: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary = window, rope_base, rotary
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.query_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.key_norm = RootMeanSquareNorm(head_dim) if qk_norm else None
        self.mix = nn.Parameter(torch.empty(2)) if value_residual else None
        self.half_first = half_first
        self.sub_norm = LayerNormalisation(heads * head_dim) if sub_norm else None

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.kv_heads, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty, "position": 0}

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return self.step(x_BTD, None, shared)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Any] | None,
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Attend from T new tokens to the cached ones and themselves."""
        batch, length, _ = x_BTD.shape
        start = 0 if state is None else state["position"]
        q_BTHP = self.query(x_BTD).view(batch, length, self.heads, self.head_dim)
        k_BSGP = self.key(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        v_BSGP = self.value(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        if self.query_norm is not None:
            q_BTHP = self.query_norm(q_BTHP)
        if self.key_norm is not None:
            k_BSGP = self.key_norm(k_BSGP)
        if self.rotary:
            cos_T1F, sin_T1F = rotation(start, length, self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BSGP = rotate(q_BTHP, cos_T1F, sin_T1F), rotate(k_BSGP, cos_T1F, sin_T1F)
        if shared is not None:
            shared.setdefault("first_value", v_BSGP)
        if self.mix is not None:
            v_BSGP = with_first_values(v_BSGP, self.mix, shared)
        if self.half_first:
            v_BSGP = with_first_values(v_BSGP, (0.5, 0.5), shared)
        if state is not None:
            k_BSGP = torch.cat([state["key"], k_BSGP], dim=1)
            v_BSGP = torch.cat([state["value"], v_BSGP], dim=1)
        if shared is not None:
            shared["kv"] = k_BSGP, v_BSGP, start, self.window
            shared.setdefault("first_seen", v_BSGP)
        y_BTHP = self.attend(q_BTHP, k_BSGP, v_BSGP)
        keep = k_BSGP.shape[1] if self.window is None else min(self.window - 1, k_BSGP.shape[1])
        new_state = {"key": k_BSGP[:, k_BSGP.shape[1] - keep:], "value": v_BSGP[:, v_BSGP.shape[1] - keep:],
                     "position": start + length}
        y_BTE = y_BTHP.reshape(batch, length, self.heads * self.head_dim)
        if self.sub_norm is not None:
            y_BTE = self.sub_norm(y_BTE)
        return self.out(y_BTE), new_state

    def attend(self, q_BTHP: Tensor, k_BSGP: Tensor, v_BSGP: Tensor) -> Tensor:
        return attend(q_BTHP, k_BSGP, v_BSGP, self.window)


def with_first_values(v_BTGP: Tensor, mix: Any, shared: dict[str, Any] | None) -> Tensor:
    """`mix[0]` of these values and `mix[1]` of those of the first attention layer."""
    if shared is None:
        raise ValueError("value_residual mixes in the values of the first attention layer, which layers must hand on: "
                         "got no shared dictionary; use a body that shares, Stack(..., residual=ValueResidual())")
    first_BTGP: Tensor = shared["first_value"]
    if first_BTGP.shape != v_BTGP.shape:
        raise ValueError(f"value_residual mixes values of one shape: got [kv_heads, head_dim] {list(v_BTGP.shape[2:])} "
                         f"after {list(first_BTGP.shape[2:])}; give these layers the same, or one tied(...) choice")
    mixed_BTGP: Tensor = mix[0] * v_BTGP + mix[1] * first_BTGP
    return mixed_BTGP


@dataclass(frozen=True)
class Attention(Operator):
    """Multi-head softmax attention (Vaswani et al., 2017), grouped key/value heads (GQA, Ainslie et al., 2023),
    rotary positions (Su et al., 2021), sliding window (Longformer, Beltagy et al., 2020).

    `window=w` sees the token itself and the w - 1 before it. head_dim defaults to width / heads.
    bidirectional: tokens see each other both ways, up to w - 1 apart with a window. rotary: False for no positions.
    qk_norm: RMS norm of queries and keys, one gain per entry of a head (Henry et al., 2020).
    value_residual: values are mixed with those of the first attention layer (Value Residual Learning, Zhou et al., 2024), by
    two learned numbers (True), half and half ("identity"), or it has no values but those ("single", SVFormer), which must
    have the same kv_heads, head_dim and window, so that only keys are cached. sub_norm: a layer norm before the output
    matrix (Foundation Transformers, Wang et al., 2022). reuse_kv: no keys and values of its own but those of the nearest
    attention layer before, which must have the same kv_heads and head_dim (cross-layer attention, Brandon et al., 2024).
    value_residual and reuse_kv need a body whose layers share.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    window: Any = None
    rope_base: float = 10000.0
    bidirectional: Any = False
    rotary: Any = True
    qk_norm: Any = False
    value_residual: Any = False
    reuse_kv: Any = False
    sub_norm: Any = False
    source: ClassVar[Source] = Source("GQA: Training Generalized Multi-Query Transformer Models from Multi-Head "
                                      "Checkpoints", 2023, options=("S281", "S202", "S196"))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    @property
    def reads_shared(self) -> bool:
        """Whether it needs what earlier layers publish."""
        return bool(self.value_residual or self.reuse_kv)

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        return not self.reads_shared

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """The pairs of rotary positions, and the two terms of mixed values."""
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.rotary else {}
        return {"terms": "own values, then those of the first layer", **pairs}

    @property
    def couples(self) -> frozenset[str]:                                              # type: ignore[override]
        """Heads and their entries, where keys or values of other layers come in."""
        shared = {"kv_heads", "head_dim", "half", "pairs"} if self.value_residual or self.reuse_kv else ()
        return frozenset(shared)

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(kv_heads, queries per key, head_dim) with defaults filled in."""
        kv_heads = self.kv_heads or self.heads
        return kv_heads, self.heads // kv_heads, self.head_dim or width // self.heads

    def check(self, width: int, where: str) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1 at {where}: got {self.heads}")
        if self.head_dim is None and width % self.heads:
            good = [h for h in range(1, width + 1) if width % h == 0 and (width // h) % 2 == 0]
            near = sorted(sorted(good, key=lambda h: abs(h - self.heads))[:2])
            raise ValueError(f"heads must divide width at {where}: got {self.heads} and {width}; "
                             f"use {' or '.join(map(str, near))}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads must divide heads at {where}: got {self.kv_heads} and {self.heads}; "
                             f"use a divisor of {self.heads}")
        if self.sizes(width)[2] % 2:
            raise ValueError(f"head_dim must be even for rotary positions at {where}: got {self.sizes(width)[2]}; "
                             "choose heads so that width / heads is even, or set head_dim")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 at {where}: got {self.window}; use None for full attention")
        if self.value_residual not in (False, True, "identity", "single"):
            raise ValueError(f"value_residual is True, False, 'identity' or 'single' at {where}: got "
                             f"{self.value_residual!r}")
        if self.reuse_kv and self.value_residual:
            raise ValueError(f"value_residual needs values of the layer's own at {where}: got reuse_kv=True with it; "
                             "leave one of them out")

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, group, head_dim = self.sizes(width)
        d, g, r = axis("width", width), axis("kv_heads", kv_heads), axis("group", group)
        half, pairs = axis("half", 2), axis("pairs", head_dim // 2)
        keys = {"key.weight": param(g * half * pairs, d), "value.weight": param(g * axis("head_dim", head_dim), d)}
        if self.value_residual == "single":
            del keys["value.weight"]
        return {
            "query.weight": param(g * r * half * pairs, d),
            **({} if self.reuse_kv else keys),
            "out.weight": param(d, g * r * axis("head_dim", head_dim)),
            **self._own_axes(half * pairs),
            **self._sub_axes(g * r * axis("head_dim", head_dim)),
        }

    def _own_axes(self, head: Dim) -> dict[str, Param]:
        """Gains of the norms of queries and keys, and the numbers that mix values."""
        declared = {}
        if self.qk_norm:
            declared["query_norm.weight"] = param(head, share="own", init="ones")
            if not self.reuse_kv:
                declared["key_norm.weight"] = param(head, share="own", init="ones")
        if self.value_residual is True:
            declared["mix"] = param(axis("terms", 2), share="own", init=Init("constant", low=0.5))
        return declared

    def _sub_axes(self, inner: Dim) -> dict[str, Param]:
        """Gain and shift of the norm before the output matrix."""
        return {"sub_norm.weight": param(inner, share="own", init="ones"),
                "sub_norm.bias": param(inner, share="own", init="zeros")} if self.sub_norm else {}

    def build(self, width: int) -> nn.Module:
        from .attention_variants import BidirectionalAttention, ReusingAttention, SingleValueAttention

        kv_heads, _, head_dim = self.sizes(width)
        options = {"rotary": bool(self.rotary), "qk_norm": bool(self.qk_norm), "sub_norm": bool(self.sub_norm)}
        sizes = (width, self.heads, kv_heads, head_dim, self.window, self.rope_base)
        if self.reuse_kv:
            return ReusingAttention(*sizes, **options, bidirectional=bool(self.bidirectional))
        if self.value_residual == "single":
            return SingleValueAttention(*sizes, **options, bidirectional=bool(self.bidirectional))
        kind = BidirectionalAttention if self.bidirectional else CausalAttention
        return kind(*sizes, **options, value_residual=self.value_residual is True,
                    half_first=self.value_residual == "identity")

    def visible_pairs(self, length: int) -> int:
        """Query-key pairs inside the window over a whole sequence."""
        window = min(self.window or length, length)
        behind = window * (window + 1) // 2 + (length - window) * window
        return 2 * behind - length if self.bidirectional else behind

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values over the visible pairs only."""
        pairs = 2 * self.heads * self.sizes(width)[2] * self.visible_pairs(length)
        return float(self.matrix_numel(width) * length + pairs)

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways and there is no next token."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        seen = length + 1 if self.window is None else min(length + 1, self.window)
        return float(self.matrix_numel(width) + 2 * self.heads * self.sizes(width)[2] * seen)

    def state_numel(self, width: int, length: int) -> int:
        if self.reuse_kv or self.bidirectional:
            return 0
        kv_heads, _, head_dim = self.sizes(width)
        kept = length if self.window is None else min(length, self.window - 1)
        return (1 if self.value_residual == "single" else 2) * kept * kv_heads * head_dim
