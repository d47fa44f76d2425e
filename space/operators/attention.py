"""Softmax attention: rotary or other positions, grouped key/value heads, windows, and options on scores and outputs.

The modules are in `causal_attention`, `attention_variants` and `scored_attention`, what options declare in
`attention_options`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..axes import Dim, Init, Param, axis, param
from ..operator import Operator, Source
from .attention_options import (
    check_options,
    fixed_axes,
    is_stretched,
    option_axes,
    option_decode_macs,
    option_macs,
    position_module,
)
from .attention_variants import BidirectionalAttention, ReusingAttention, SingleValueAttention
from .caching_attention import CachingAttention
from .causal_attention import CausalAttention, attend, rotate, rotation
from .scored_attention import ScoredAttention
from .separate_attention import BidirectionalSeparateAttention, SeparateAttention
from .subsampled_attention import SubsampledAttention

__all__ = ["Attention", "CausalAttention", "attend", "rotate", "rotation"]


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
    matrix (Foundation Transformers, Wang et al., 2022), whose starting values `magneto` gives. reuse_kv: no keys and values
    of its own but those of the nearest attention layer before, which must have the same kv_heads and head_dim (cross-layer
    attention, Brandon et al., 2024).
    value_residual and reuse_kv need a body whose layers share.

    position: "rotary", or in its place "alibi" (Press et al., 2021), "t5" (Raffel et al., 2019), "fire" (Li et al., 2023),
    "transformer_xl" (Dai et al., 2019), "m1" to "m4" (Huang et al., 2020). reach: the distance from which on "t5" and "m1"
    to "m4" tell no more apart, and where the threshold of "fire" starts. buckets of "t5"; position_hidden of "fire".
    persistent: learned keys and values beside those of tokens (Sukhbaatar et al., 2019); with no channel mixer after it
    that is the all-attention layer.
    gate: outputs times a sigmoid of the token, one per "head" (Bondarenko et al., 2023) or "channel" (Qiu et al., 2025).
    clip_gamma, clip_zeta: weights are clip((zeta - gamma) softmax + gamma, 0, 1) (Bondarenko et al., 2023).
    temperature: queries are divided by a learned one per head (Jha and Reagen, 2025). sink: a learned logit per head with
    no value, so that weights may sum to less than 1 (gpt-oss, 2025).
    qkv_conv: taps of a filter per channel on queries, keys and values, causal unless bidirectional (Primer, So et al.,
    2021; with position="transformer_xl" that is RCMHA).
    symmetric: keys are the queries as well. shaped: tau0; the output is v + A v - mean(v) over what is visible, scores
    divided by tau0 sqrt(width head_dim) (Shaped Transformer, Noci et al., 2023).
    weights: "softmax", or "relu_norm": ReLU of the scores, and a layer norm of the heads' outputs (Zhou et al., 2023;
    read as a norm over channels, which serves any number of keys).
    cache: what is kept of tokens once there are many, a policy such as `Keyformer(budget=64)`; None keeps all of them. It
    goes with plain softmax scores, and hands on no keys and values to later layers.
    separate: queries, keys and values read streams of their own, side by side in one input, as `DeepCrossAttention(separate=
    True)` hands them on; it goes with plain softmax attention.
    subsample: a `Subsample`: in training, each token reads a random part of the others; it goes with plain softmax scores.
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
    position: Any = "rotary"
    reach: Any = 128
    buckets: Any = 32
    position_hidden: Any = 32
    persistent: Any = 0
    gate: Any = None
    clip_gamma: Any = 0.0
    clip_zeta: Any = 1.0
    temperature: Any = False
    sink: Any = False
    qkv_conv: Any = None
    symmetric: Any = False
    shaped: Any = None
    weights: Any = "softmax"
    cache: Any = None
    subsample: Any = None
    separate: Any = False
    options: ClassVar[tuple[str, ...]] = ("position", "reach", "buckets", "position_hidden", "persistent", "weights")
    source: ClassVar[Source] = Source(
        "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023,
        systems=("S196", "S228", "S229", "S230", "S243", "S393"), options=("S062", "S152", "S202", "S239", "S334"))

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
    def chooses(self) -> bool:                                                        # type: ignore[override]
        return self.cache is not None and self.cache.score is not None

    @property
    def is_rotary(self) -> bool:
        """Whether queries and keys are turned by their positions."""
        return bool(self.rotary) and self.position == "rotary"

    @property
    def writes_scores(self) -> bool:
        """Whether an option needs the scores one by one, which fused attention never shows."""
        return bool(self.position not in (None, "rotary") or self.persistent or self.gate or is_stretched(self)
                    or self.temperature or self.sink or self.qkv_conv is not None or self.symmetric
                    or self.shaped is not None or self.weights != "softmax")

    @property
    def keeps_zero(self) -> bool:                                                     # type: ignore[override]
        return not (self.reads_shared or self.persistent or self.weights == "relu_norm")

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """The pairs of rotary positions, and the two terms of mixed values."""
        pairs = {"half": "a rotary pair is ordered", "pairs": "a pair is a rotary frequency"} if self.is_rotary else {}
        return {"terms": "own values, then those of the first layer", **pairs, **fixed_axes(self)}

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
        if self.writes_scores and (self.sub_norm or self.value_residual in ("identity", "single")):
            raise ValueError(f"sub_norm and value_residual='identity' or 'single' go with plain softmax attention at {where}:"
                             " got them with an option on scores, queries or outputs; leave one of them out")
        if self.reuse_kv and self.value_residual:
            raise ValueError(f"value_residual needs values of the layer's own at {where}: got reuse_kv=True with it; "
                             "leave one of them out")
        check_options(self, where)

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, group, head_dim = self.sizes(width)
        d, g, r = axis("width", width), axis("kv_heads", kv_heads), axis("group", group)
        half, pairs = axis("half", 2), axis("pairs", head_dim // 2)
        keys = {"key.weight": param(g * half * pairs, d), "value.weight": param(g * axis("head_dim", head_dim), d)}
        if self.value_residual == "single":
            del keys["value.weight"]
        return {
            **({} if self.symmetric else {"query.weight": param(g * r * half * pairs, d)}),
            **({} if self.reuse_kv else keys),
            "out.weight": param(d, g * r * axis("head_dim", head_dim)),
            **self._own_axes(half * pairs),
            **self._sub_axes(g * r * axis("head_dim", head_dim)),
            **option_axes(self, width),
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
        kv_heads, _, head_dim = self.sizes(width)
        if self.writes_scores:
            return self._build_scored(width)
        options = {"rotary": self.is_rotary, "qk_norm": bool(self.qk_norm), "sub_norm": bool(self.sub_norm)}
        sizes = (width, self.heads, kv_heads, head_dim, self.window, self.rope_base)
        if self.reuse_kv:
            return ReusingAttention(*sizes, **options, bidirectional=bool(self.bidirectional))
        if self.value_residual == "single":
            return SingleValueAttention(*sizes, **options, bidirectional=bool(self.bidirectional))
        plain = (*sizes[:4], self.rope_base, self.is_rotary, bool(self.qk_norm), self.value_residual is True,
                 self.value_residual == "identity", bool(self.sub_norm))
        if self.cache is not None:
            kept = self.cache
            return CachingAttention(*plain, kept.budget, kept.limit, kept.kept_first, kept.kept_last, kept.score is not None,
                                    kept.noise())
        if self.subsample is not None:
            return SubsampledAttention(*plain, self.subsample.keep, self.subsample.spread, bool(self.bidirectional))
        kind: type[CausalAttention]
        if self.separate:
            kind = BidirectionalSeparateAttention if self.bidirectional else SeparateAttention
        else:
            kind = BidirectionalAttention if self.bidirectional else CausalAttention
        return kind(*sizes, **options, value_residual=self.value_residual is True,
                    half_first=self.value_residual == "identity")

    def _build_scored(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self.sizes(width)
        scale = head_dim**-0.5 if self.shaped is None else 1 / (self.shaped * math.sqrt(width * head_dim))
        return ScoredAttention(
            width, self.heads, kv_heads, head_dim, scale, self.window, self.rope_base, self.is_rotary, bool(self.qk_norm),
            bool(self.value_residual), bool(self.bidirectional), position_module(self, width), self.persistent, self.gate,
            (self.clip_gamma, self.clip_zeta), bool(self.temperature), self.qkv_conv, bool(self.symmetric), bool(self.sink),
            self.shaped is not None, self.weights == "relu_norm")

    def visible_pairs(self, length: int) -> int:
        """Query-key pairs inside the window, or read from the cache, over a whole sequence."""
        if self.cache is not None:
            return int(self.cache.pairs(length))
        window = min(self.window or length, length)
        behind = window * (window + 1) // 2 + (length - window) * window
        return 2 * behind - length if self.bidirectional else behind

    def macs(self, width: int, length: int) -> float:
        """Projections, plus scores and values over the visible pairs only."""
        visible = self.visible_pairs(length)
        pairs = 2 * self.heads * self.sizes(width)[2] * visible
        return float(self.matrix_numel(width) * length + pairs + option_macs(self, width, length, visible))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways and there is no next token."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        seen = length + 1 if self.window is None else min(length + 1, self.window)
        if self.cache is not None:
            seen = self.cache.reads(length)
        pairs = 2 * self.heads * self.sizes(width)[2] * seen
        return float(self.matrix_numel(width) + pairs + option_decode_macs(self, width, seen))

    def state_numel(self, width: int, length: int) -> int:
        if self.reuse_kv or self.bidirectional:
            return 0
        kv_heads, _, head_dim = self.sizes(width)
        kept = length if self.window is None else min(length, self.window - 1)
        channels = (2 * kv_heads + (0 if self.symmetric else self.heads)) * head_dim
        per_token = (1 if self.value_residual == "single" else 2) * kv_heads * head_dim
        if self.cache is not None:
            kept, per_token = self.cache.kept(length), per_token + (0 if self.cache.score is None else kv_heads)
        return int(kept * per_token + (0 if self.qkv_conv is None else (self.qkv_conv - 1) * channels))
