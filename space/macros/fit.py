"""Groups of tokens that meet through a few latents each.

Legend: B batch, T tokens, D width, G groups, N tokens of a group, M latents of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..graph import SKIP
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_divisor, require_whole
from ..operators.rmsnorm import RMSNorm, RootMeanSquareNorm
from ..operators.windows import projections
from .base import Macro, Part, at, kept

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["FIT", "InterleavedLayers"]


class Reading(nn.Module):
    """`x + attention(norm(x), norm(memory))`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = RootMeanSquareNorm(width)
        self.memory_norm = RootMeanSquareNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor) -> Tensor:
        memory_BSD = self.memory_norm(memory_BSD)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (
            self.query(self.norm(x_BTD)), self.key(memory_BSD), self.value(memory_BSD)))
        y_BTD: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BTD + y_BTD


class InterleavedLayers(nn.Module):
    """In every round: local layers in all groups, latents read their group, layers among all latents, tokens read latents.

    shifted: tokens read the latents of the group before, of which the first group has none. What is left over after whole
    groups is a shorter one.
    """

    def __init__(self, local: list[nn.Module], overall: list[nn.Module], width: int, heads: int, group: int, latents: int,
                 rounds: int, shifted: bool):
        super().__init__()
        self.local, self.overall = nn.ModuleList(local), nn.ModuleList(overall)
        self.reads = nn.ModuleList([Reading(width, heads) for _ in range(rounds)])
        self.writes = nn.ModuleList([Reading(width, heads) for _ in range(rounds)])
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.group, self.rounds, self.shifted = group, rounds, shifted

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        batch, length, width = x_BTD.shape
        whole = length // self.group
        full, rest = x_BTD[:, :whole * self.group], x_BTD[:, whole * self.group:]
        pieces = [piece for piece in (full.reshape(batch * whole, self.group, width), rest) if piece.numel()]
        groups = [len(piece) // batch for piece in pieces]
        latents_BGMD = self.latents.repeat(batch, sum(groups), 1, 1)
        for r, (read, write) in enumerate(zip(self.reads, self.writes, strict=True)):
            pieces = [self.through(self.local, r, piece) for piece in pieces]
            latents_BGMD = torch.cat([read(old.flatten(0, 1), piece).unflatten(0, (batch, -1)) for old, piece in zip(
                torch.split(latents_BGMD, groups, 1), pieces, strict=True)], dim=1)
            latents_BGMD = self.through(self.overall, r, latents_BGMD.flatten(1, 2)).view(latents_BGMD.shape)
            pieces = self.written(write, pieces, latents_BGMD, groups)
        return torch.cat([piece.reshape(batch, -1, width) for piece in pieces], dim=1).view(x.shape)

    def through(self, layers: nn.ModuleList, r: int, x_BTD: Tensor) -> Tensor:
        """The layers of round r."""
        each = len(layers) // self.rounds
        for index in range(r * each, (r + 1) * each):
            x_BTD = layers[index](x_BTD)
        return x_BTD

    def written(self, write: nn.Module, pieces: list[Tensor], latents_BGMD: Tensor, groups: list[int]) -> list[Tensor]:
        """Tokens after they have read latents."""
        if self.shifted:
            latents_BGMD = F.pad(latents_BGMD, (0, 0, 0, 0, 1, -1))
        made = [write(piece, given.flatten(0, 1)) for piece, given in zip(
            pieces, torch.split(latents_BGMD, groups, 1), strict=True)]
        if self.shifted:
            is_first = torch.arange(groups[0], device=latents_BGMD.device).repeat(len(latents_BGMD)) == 0
            made[0] = torch.where(is_first[:, None, None], pieces[0], made[0])
        return made


@dataclass(frozen=True)
class FIT(Macro):
    """FIT: Far-reaching Interleaved Transformers (Chen and Li, 2023).

    local: layers inside groups of `group` tokens. overall: layers among the latents of all groups, `latents` each, which
    start learned and the same. heads of the attention between the tokens and the latents of a group. rounds: local and
    overall layers come in so many equal parts, after each of which latents and tokens read each other. With groups near the
    cube root of the length all costs T^(4/3).

    shifted: tokens read the latents of the group before, as the paper's autoregressive form does; the network is causal where
    its layers are. Else they read their own group's, and layers should look both ways. Does not stream.
    """

    local: Any
    overall: Any
    group: Any = 64
    latents: Any = 4
    heads: Any = 4
    rounds: Any = 1
    shifted: Any = True
    holds: ClassVar[tuple[str, ...]] = ("local", "overall")
    streams: ClassVar[tuple[str, ...]] = ("local", "overall")
    proof: ClassVar[str] = "tests/space/test_fit.py"
    source: ClassVar[Source] = Source("FIT: Far-reaching Interleaved Transformers", 2023, systems=("S019",))

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(self.shifted) and all(item.causal for item in self.inside())

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return False

    def check(self, width: int, where: str) -> None:
        for name in ("group", "latents", "heads", "rounds"):
            require_whole(name, getattr(self, name), where)
        require_divisor("heads", self.heads, "width", width, where)
        for name in self.holds:
            count = len(kept(getattr(self, name)))
            if count % self.rounds:
                raise ValueError(f"rounds must divide the number of {name} layers at {where}: got {self.rounds} and {count}; "
                                 f"use {max(count // self.rounds, 1) * self.rounds} layers")

    def axes(self, width: int) -> dict[str, Param]:
        attention, norm = projections(width, self.heads, width // self.heads), RMSNorm().axes(width)["weight"]
        found = {"latents": param(axis("latents", self.latents), axis("width", width), init=Init("normal", gain=0.02))}
        for name in (f"{way}.{r}" for way in ("reads", "writes") for r in range(self.rounds)):
            found |= {f"{name}.norm.weight": norm, f"{name}.memory_norm.weight": norm}
            found |= {f"{name}.{key}": declared for key, declared in attention.items()}
        return found

    def groups(self, length: Length) -> tuple[int, int]:
        """(tokens of a group, groups)."""
        size = min(self.group, tokens_of(length))
        return size, -(-tokens_of(length) // size)

    def parts(self, width: int, length: Length) -> list[Part]:
        size, groups = self.groups(length)
        local = [Part(f"local.{n}", entry.item, at("local", self.local, entry.index), width, size,
                      times=tokens_of(length) / size) for n, entry in enumerate(kept(self.local))]
        return local + [Part(f"overall.{n}", entry.item, at("overall", self.overall, entry.index), width,
                             groups * self.latents) for n, entry in enumerate(kept(self.overall))]

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Latents that read tokens, and tokens that read latents."""
        size, _ = self.groups(length)
        each = 2 * width * width * (size + self.latents) + 2 * width * size * self.latents
        return float(2 * self.rounds * each * tokens_of(length) / size)

    def decode_macs(self, width: int, length: Length) -> float:                      # type: ignore[override]
        """A whole pass."""
        return self.macs(width, length)

    def build(self, width: int) -> nn.Module:
        local, overall = (built_layers([entry.item for entry in kept(held)], width) for held in (self.local, self.overall))
        return InterleavedLayers(local, overall, width, self.heads, self.group, self.latents, self.rounds, bool(self.shifted))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        latents = draft.node(self.label(), "latents", place, self)
        for r in range(self.rounds):
            stream = self._sketch_layers(draft, "local", r, stream, place, width)
            latents = draft.node("read", "read", "", None, latents)
            draft.join(stream, latents, SKIP)
            latents = self._sketch_layers(draft, "overall", r, latents, place, width)
            stream = draft.node("write", "write", "", None, stream)
            draft.join(latents, stream, SKIP)
        return stream

    def _sketch_layers(self, draft: Draft, name: str, r: int, stream: int, place: str, width: int) -> int:
        items = [entry.item for entry in kept(getattr(self, name))]
        each = len(items) // self.rounds
        for index in range(r * each, (r + 1) * each):
            stream = draft.op(items[index], f"{place}.{name}.{index}", "mixer", stream, width)
        return stream
