"""Attention with what attention layers before it computed: keys and values of some heads, or mixtures of all.

Legend: B batch, T new tokens, S visible tokens, D width, H query heads, G key/value heads, P head_dim, N layers before.

Layers publish in `shared["layers"]`, one entry each in their order; `Stack(..., residual=LayerMemory())` hands the list on
and tells every layer how many there are before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .attention import Attention
from .causal_attention import CausalAttention, rotate, rotation
from .checks import require_whole

__all__ = ["LayerMixAttention", "MixingAttention", "SkipAttention", "SkippingAttention", "earlier_layers"]


def earlier_layers(count: int, shape: tuple[int, ...],
                   shared: dict[str, Any] | None = None) -> list[tuple[Tensor, Tensor]]:
    """The entries of all layers before, of which there must be `count`, with keys of one [heads, size]."""
    layers = [] if shared is None else shared.get("layers", [])
    if len(layers) != count or any(tuple(k.shape[2:]) != shape for k, _ in layers):
        found = [tuple(k.shape[2:]) for k, _ in layers]
        raise ValueError(f"a layer that remembers needs {count} layers before it with [kv_heads, head_dim] {list(shape)}: "
                         f"got {found}; put layers of one size into Stack(..., residual=LayerMemory())")
    return list(layers)


class MixingAttention(CausalAttention):
    """Keys and values of every head are its own plus learned mixtures of all heads of all layers up to this one.

    What it publishes are its own, before they are mixed; its cache keeps the mixtures, so it is as large as without.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None, rotary: bool, before: int):
        super().__init__(width, heads, kv_heads, head_dim, window, rotary=rotary)
        self.before = before
        self.own = nn.Parameter(torch.empty(kv_heads, kv_heads)) if before else None
        self.earlier = nn.Parameter(torch.empty(kv_heads, before, kv_heads)) if before else None

    def by_head(self, x_BTD: Tensor, state: dict[str, Any] | None,
                shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """What each head gives, before the output projection, and the state after it."""
        start = 0 if state is None else state["position"]
        q_BTHP, k_BSGP, v_BSGP = self.projected(x_BTD, start)
        layers = earlier_layers(self.before, (self.kv_heads, self.head_dim), shared)
        if shared is not None:
            shared["layers"] = [*layers, (k_BSGP, v_BSGP)]
        if self.own is not None and self.earlier is not None:
            route = torch.cat([self.earlier.flatten(1), self.own], 1)
            k_BSGP = k_BSGP + torch.matmul(route, torch.cat([*(k for k, _ in layers), k_BSGP], 2))
            v_BSGP = v_BSGP + torch.matmul(route, torch.cat([*(v for _, v in layers), v_BSGP], 2))
        if state is not None:
            k_BSGP, v_BSGP = torch.cat([state["key"], k_BSGP], 1), torch.cat([state["value"], v_BSGP], 1)
        first = 0 if self.window is None else max(k_BSGP.shape[1] - self.window + 1, 0)
        return self.attend(q_BTHP, k_BSGP, v_BSGP), {"key": k_BSGP[:, first:], "value": v_BSGP[:, first:],
                                                     "position": start + x_BTD.shape[1]}


class SkippingAttention(CausalAttention):
    """The last `skipped` key/value heads are those of the layer `offset` before it; the others are its own.

    Borrowed heads are cached where they come from. What it publishes are all heads.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, window: int | None, rotary: bool,
                 offset: int, skipped: int):
        super().__init__(width, heads, kv_heads, head_dim, window, rotary=rotary)
        self.offset, self.skipped, self.owned = offset, skipped, kv_heads - skipped
        self.key = nn.Linear(width, self.owned * head_dim, bias=False)
        self.value = nn.Linear(width, self.owned * head_dim, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        empty = torch.zeros(batch, 0, self.owned, self.head_dim, dtype=dtype, device=device)
        return {"key": empty, "value": empty, "position": 0}

    def by_head(self, x_BTD: Tensor, state: dict[str, Any] | None,
                shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """What each head gives, before the output projection, and the state after it."""
        start = 0 if state is None else state["position"]
        q_BTHP, k_BSGP, v_BSGP = self.projected(x_BTD, start)
        if state is not None:
            k_BSGP, v_BSGP = torch.cat([state["key"], k_BSGP], 1), torch.cat([state["value"], v_BSGP], 1)
        first = 0 if self.window is None else max(k_BSGP.shape[1] - self.window + 1, 0)
        after = {"key": k_BSGP[:, first:], "value": v_BSGP[:, first:], "position": start + x_BTD.shape[1]}
        if self.skipped:
            k_BSJP, v_BSJP = self.borrowed(k_BSGP.shape[1], shared)
            k_BSGP, v_BSGP = torch.cat([k_BSGP, k_BSJP], 2), torch.cat([v_BSGP, v_BSJP], 2)
        if shared is not None:
            shared["layers"] = [*shared.get("layers", []), (k_BSGP, v_BSGP)]
        return self.attend(q_BTHP, k_BSGP, v_BSGP), after

    def projected(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of all heads, keys and values of its own."""
        q_BTHP, k_BTGP, v_BTGP = (part.unflatten(-1, (heads, self.head_dim)) for part, heads in (
            (self.query(x_BTD), self.heads), (self.key(x_BTD), self.owned), (self.value(x_BTD), self.owned)))
        if self.rotary:
            turn = rotation(start, x_BTD.shape[1], self.head_dim // 2, self.rope_base, x_BTD)
            q_BTHP, k_BTGP = rotate(q_BTHP, *turn), rotate(k_BTGP, *turn)
        return q_BTHP, k_BTGP, v_BTGP

    def borrowed(self, seen: int, shared: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of the last heads, `offset` layers ago.

        Raises ValueError where that layer is not there or differs in heads, sizes or window.
        """
        layers = [] if shared is None else shared.get("layers", [])
        k_BSGP, v_BSGP = layers[-self.offset] if len(layers) >= self.offset else (None, None)
        if k_BSGP is None or v_BSGP is None or tuple(k_BSGP.shape[1:]) != (seen, self.kv_heads, self.head_dim):
            wanted, found = [seen, self.kv_heads, self.head_dim], None if k_BSGP is None else list(k_BSGP.shape[1:])
            raise ValueError(f"a layer that skips needs [tokens, kv_heads, head_dim] {wanted} from the layer {self.offset} "
                             f"before it: got {found}; put layers of one window and one size into "
                             "Stack(..., residual=LayerMemory())")
        return k_BSGP[:, :, self.owned:], v_BSGP[:, :, self.owned:]


@dataclass(frozen=True)
class LayerMixAttention(Operator):
    """LIMe: You Do Not Fully Utilize Transformer's Representation Capacity (Gerasimov et al., 2025), static routing.

    Layers of one stack, `Stack(..., residual=LayerMemory())`, which must have the same kv_heads and head_dim. before: how
    many there are before this one; the stack fills it in. Other fields as of `Attention`.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    window: Any = None
    rotary: Any = True
    before: Any = 0
    couples: ClassVar[frozenset[str]] = frozenset({"kv_heads", "head_dim", "half", "pairs"})
    source: ClassVar[Source] = Source("You Do Not Fully Utilize Transformer's Representation Capacity", 2025,
                                      systems=("S125",))

    @property
    def plain(self) -> Attention:
        """The same attention without memory."""
        return Attention(self.heads, self.kv_heads, self.head_dim, self.window, rotary=self.rotary)

    @property
    def reads_shared(self) -> bool:
        return bool(self.before)

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return {**self.plain.fixed, "sources": "an entry is a layer"}

    def check(self, width: int, where: str) -> None:
        self.plain.check(width, where)
        require_whole("before", self.before, where, low=0)

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, _, _ = self.plain.sizes(width)
        if not self.before:
            return self.plain.axes(width)
        g, bound = axis("kv_heads", kv_heads), (3 / (kv_heads * (self.before + 1))) ** 0.5
        return {**self.plain.axes(width), "own": param(g, g, init="zeros"),
                "earlier": param(g, axis("sources", self.before), g, init=Init("uniform", low=-bound, high=bound))}

    def build(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self.plain.sizes(width)
        return MixingAttention(width, self.heads, kv_heads, head_dim, self.window, bool(self.rotary), self.before)

    def _mixing(self, width: int) -> int:
        kv_heads, _, head_dim = self.plain.sizes(width)
        return 2 * kv_heads * kv_heads * (self.before + 1) * head_dim if self.before else 0

    def macs(self, width: int, length: int) -> float:
        return float(self.plain.macs(width, length) + length * self._mixing(width))

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.plain.decode_macs(width, length) + self._mixing(width))

    def state_numel(self, width: int, length: int) -> int:
        return self.plain.state_numel(width, length)


@dataclass(frozen=True)
class SkipAttention(Operator):
    """Skip-Layer Attention (Chen et al., 2024): some heads attend to the keys and values of an earlier layer.

    Layers of one stack, `Stack(..., residual=LayerMemory())`, which must have the same kv_heads, head_dim and window.
    skipped: key/value heads that are not its own. offset: how many layers back they come from; a layer with fewer before it
    has all its own. before: how many there are; the stack fills it in. Other fields as of `Attention`.
    """

    heads: Any = 4
    kv_heads: Any = None
    head_dim: Any = None
    window: Any = None
    rotary: Any = True
    skipped: Any = 1
    offset: Any = 2
    before: Any = 0
    couples: ClassVar[frozenset[str]] = frozenset({"kv_heads", "head_dim", "half", "pairs"})
    source: ClassVar[Source] = Source("Skip-Layer Attention: Bridging Abstract and Detailed Dependencies in Transformers",
                                      2024, systems=("S225",))

    @property
    def plain(self) -> Attention:
        """The same attention with all heads its own."""
        return Attention(self.heads, self.kv_heads, self.head_dim, self.window, rotary=self.rotary)

    @property
    def borrows(self) -> int:
        """How many key/value heads come from an earlier layer."""
        return int(self.skipped) if self.before >= self.offset else 0

    @property
    def reads_shared(self) -> bool:
        return bool(self.borrows)

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return self.plain.fixed

    def check(self, width: int, where: str) -> None:
        self.plain.check(width, where)
        for name, low in (("skipped", 0), ("offset", 1), ("before", 0)):
            require_whole(name, getattr(self, name), where, low=low)
        kv_heads = self.plain.sizes(width)[0]
        if self.skipped >= kv_heads:
            raise ValueError(f"skipped must leave a key/value head of the layer's own at {where}: got {self.skipped} of "
                             f"{kv_heads}; use at most {kv_heads - 1}, or Attention(reuse_kv=True) for all")

    def axes(self, width: int) -> dict[str, Param]:
        kv_heads, _, head_dim = self.plain.sizes(width)
        d, g = axis("width", width), axis("kv_heads", kv_heads - self.borrows)
        return {**self.plain.axes(width), "key.weight": param(g * axis("half", 2) * axis("pairs", head_dim // 2), d),
                "value.weight": param(g * axis("head_dim", head_dim), d)}

    def build(self, width: int) -> nn.Module:
        kv_heads, _, head_dim = self.plain.sizes(width)
        return SkippingAttention(width, self.heads, kv_heads, head_dim, self.window, bool(self.rotary), self.offset,
                                 self.borrows)

    def macs(self, width: int, length: int) -> float:
        return float(self.plain.macs(width, length) - length * self._saved(width))

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.plain.decode_macs(width, length) - self._saved(width))

    def _saved(self, width: int) -> int:
        return 2 * self.borrows * self.plain.sizes(width)[2] * width

    def state_numel(self, width: int, length: int) -> int:
        kv_heads = self.plain.sizes(width)[0]
        return self.plain.state_numel(width, length) * (kv_heads - self.borrows) // kv_heads
