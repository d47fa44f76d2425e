"""Layers among which tokens get fewer, by what their attention says or by the features alone; and, where wanted, back again.

Legend: B batch, N tokens, M tokens after, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..grammar import leaves
from ..graph import SKIP, operator_label
from ..joined import built_block
from ..operator import Length, Source
from ..operators.attention import Attention
from ..operators.identity import Identity
from ..operators.spatial import as_grid, shaped_like
from ..operators.telling_attention import _Telling, tells
from ..plan import Block
from .base import Macro, Part, as_items, at, kept
from .reductions import Reduction
from .running import as_sequence

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["Reduced", "ReducedLayers", "reduced_stream"]


class ReducedLayers(nn.Module):
    """Layers, and the reductions that stand at some of them.

    turns: for every layer the number of its reduction, -1 for none. telling: whether its attention is asked for keys and
    weights. sized: whether attention counts tokens by their sizes. A reduced grid is a grid of one column, or what the
    reduction makes of it.
    """

    def __init__(self, layers: list[nn.Module], choosers: list[nn.Module], turns: tuple[int, ...], telling: tuple[bool, ...],
                 place: str, sized: bool, restore: bool):
        super().__init__()
        self.layers, self.choosers = nn.ModuleList(layers), nn.ModuleList(choosers)
        self.turns, self.telling, self.place, self.sized, self.restore = turns, telling, place, sized, restore

    def forward(self, x: Tensor) -> Tensor:
        start = x
        size_BN, undo = torch.ones_like(x.flatten(1, -2)[..., 0]), []
        for layer, turn, asked in zip(self.layers, self.turns, self.telling, strict=True):
            key = attention = None
            if turn >= 0 and self.place == "before":
                x, size_BN, back = self.reduced(turn, x, key, attention, size_BN)
                undo.append(back)
            if asked:
                x, key, attention = self.told(layer, x, size_BN)
                if turn >= 0 and self.place == "between":
                    x, size_BN, back = self.reduced(turn, x, key, attention, size_BN)
                    undo.append(back)
                channel: Any = layer.channel
                x = x if channel is None else channel(x)
            else:
                x = as_sequence(layer, x, True)
            if turn >= 0 and self.place == "after":
                x, size_BN, back = self.reduced(turn, x, key, attention, size_BN)
                undo.append(back)
        if not self.restore or not undo:
            return x
        y_BMD = x.flatten(1, -2)
        for way, before_BND in reversed(undo):
            y_BMD = way.restored(y_BMD, before_BND)
        return y_BMD.view(start.shape)

    def told(self, layer: Any, x: Tensor, size_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stream behind the mixer of a layer, with its keys and its attention."""
        u = layer.mixer.enter(x)
        y_BND, key_BNP, attention_BHNN = layer.mixer.op.telling(u.flatten(1, -2), size_BN if self.sized else None)
        return layer.mixer.leave(x, y_BND.view(x.shape)), key_BNP, attention_BHNN

    def reduced(self, turn: int, x: Tensor, key: Tensor | None, attention: Tensor | None,
                size_BN: Tensor) -> tuple[Tensor, Tensor, tuple[Any, Tensor]]:
        """The stream after a reduction, the sizes of its tokens, and what brings them back."""
        chooser: Any = self.choosers[turn]
        x_BND = x.flatten(1, -2)
        way = chooser(x, x_BND if key is None else key, attention, size_BN)
        y_BMD = way.apply(x_BND)
        size_BM = way.sizes(size_BN) if self.sized else torch.ones_like(y_BMD[..., 0])
        return reduced_stream(x, y_BMD, chooser), size_BM, (way, x_BND)


def reduced_stream(x: Tensor, y_BMD: Tensor, chooser: Any) -> Tensor:
    """Fewer tokens in the form of the stream: a sequence, a grid of one column, or the grid that a clustering makes."""
    columns = min(getattr(chooser, "columns", 1), as_grid(x).shape[2])
    return shaped_like(x, torch.unflatten(y_BMD, 1, (-1, columns)))


class Turn(NamedTuple):
    """A layer, where it stands in the field, whether its attention tells, whether a reduction stands at it, and the
    lengths."""

    item: Any
    number: int
    tells: bool
    reduces: bool
    length: Length
    after: Length
    depth: float


@dataclass(frozen=True)
class Reduced(Macro):
    """Layers among which tokens get fewer: `reduction` stands at each of them, or at those numbered in `at`.

    layers: blocks, and macros where the reduction asks for nothing of a layer. reduction: `PiToMe(keep)`, `ToMe(remove)`,
    `ZeroTPrune(keep)`, `FasterVLM(keep)`, `TokenTransforming(keep)`, `Clusters(rows, columns)`; all of them are one matrix W
    with X' = W X (`transforms`). at: numbers of layers, negative ones from the end; None for every layer, or the first for
    `Clusters`. restore: tokens come back to their places behind the last layer, by the transposes of the matrices in reverse;
    a dropped one as it was when it was dropped. Without it fewer tokens go on, in the order of the sequence.

    Keys and attention are those of `Attention(bidirectional=True)` as a block's mixer, over all tokens and without options
    on its scores, keys as it uses them; at other layers such a reduction does not stand, and other mixers count tokens once.
    Sizes are counted from the first layer on; positions inside, rotary ones too, are those of the tokens that are left. For
    other numbers at later layers put another `Reduced` behind this one. There are no
    parameters: names and values are those of the layers alone, so a trained network takes a reduction as it is
    (`bp.reduced`). Layers inside get nothing of what an outer stream shares.
    """

    layers: Any
    reduction: Any
    at: Any = None
    restore: Any = False
    holds: ClassVar[tuple[str, ...]] = ("layers",)
    streams: ClassVar[tuple[str, ...]] = ("layers",)
    vanishes: ClassVar[bool] = True
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    proof: ClassVar[str] = "tests/space/test_reductions.py"
    source: ClassVar[Source] = Reduction.source

    def check(self, width: int, where: str) -> None:
        if not isinstance(self.reduction, Reduction):
            raise TypeError(f"reduction is one such as PiToMe() or Clusters() at {where}: got {self.reduction!r}")
        self.reduction.check(f"{where}.reduction")
        count = len(as_items(self.layers))
        if self.at is not None and (not isinstance(self.at, tuple) or any(
                isinstance(n, bool) or not isinstance(n, int) or not -count <= n < count for n in self.at)):
            raise ValueError(f"at has numbers of layers at {where}: got {self.at!r} for {count} layers; use (0, 2)")

    def check_stream(self, field: str, items: list[Any], where: str) -> None:
        mixers = [mixer for item in items if isinstance(item, Block) for mixer in leaves(item.mixer)]
        for reduction in leaves(self.reduction):
            reads = getattr(reduction, "reads", "features")
            if reads != "features" and not any(type(mixer) is Attention and mixer.bidirectional for mixer in mixers):
                raise ValueError(f"{type(reduction).__name__} reads {reads} of attention at {where}.{field}: got none in "
                                 "both directions among its layers; use Block(mixer=Attention(bidirectional=True))")

    def _asks(self, reduces: bool) -> bool:
        """Whether a layer is asked for what it attends to."""
        return self.reduction.reads != "features" and (reduces or self.reduction.proportional)

    def turns(self, length: Length) -> list[Turn]:
        """The layers that are there, with what reaches and what leaves each."""
        entries, declared = kept(self.layers), len(as_items(self.layers))
        usual = {entries[0].index} if self.reduction.place == "before" and entries else {e.index for e in entries}
        numbers = usual if self.at is None else {n % declared for n in self.at}
        found = []
        for position, entry in enumerate(entries):
            index, item = entry.index, entry.item
            can_tell = isinstance(item, Block) and tells(item.mixer)
            reduces = index in numbers and self.reduction.changes and (can_tell or self.reduction.reads == "features")
            is_told = can_tell and self.reduction.changes and self._asks(reduces)
            after = self.reduction.after(length) if reduces else length
            found.append(Turn(item, index, is_told, reduces, length, after, position / len(entries)))
            length = after
        return found

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        turns = self.turns(length)
        return width, length if self.restore or not turns else turns[-1].after

    def parts(self, width: int, length: Length) -> list[Part]:
        """A layer with a reduction between its mixers is two parts under one name, each at its length."""
        found = []
        for number, turn in enumerate(self.turns(length)):
            place = at("layers", self.layers, turn.number)
            reached = turn.after if turn.reduces and self.reduction.place == "before" else turn.length
            halves = [(turn.item, reached)]
            if turn.reduces and turn.tells and self.reduction.place == "between" and turn.length != turn.after:
                halves = list(zip(split(turn.item), (turn.length, turn.after), strict=True))
            found += [Part(f"layers.{number}", item, place, width, size) for item, size in halves
                      if item is None or not item.is_empty]
        return found

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        total = 0.0
        for turn in self.turns(length):
            if turn.reduces:
                sizes = turn.item.mixer.sizes(width) if turn.tells else (1, 1, width)
                total += self.reduction.macs(turn.length, width, sizes[2], sizes[0] * sizes[1])
                total += self.reduction.restoring_macs(turn.length, width) if self.restore else 0.0
        return total

    def build(self, width: int) -> nn.Module:
        turns = self.turns(1)
        layers = [built_block(replace(turn.item, mixer=_Telling(turn.item.mixer)), width) if turn.tells
                  else turn.item.build(width) for turn in turns]
        choosers = [self.reduction.chooser(turn.depth) for turn in turns if turn.reduces]
        numbers = tuple(sum(t.reduces for t in turns[:i]) if turn.reduces else -1 for i, turn in enumerate(turns))
        return ReducedLayers(layers, choosers, numbers, tuple(turn.tells for turn in turns), self.reduction.place,
                             self.reduction.proportional, bool(self.restore))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        start, label = stream, operator_label(self.reduction)
        turns = self.turns(1)
        for number, turn in enumerate(turns):
            name = f"{place}.layers.{number}"
            halves: tuple[Any, ...] = (turn.item,)
            if turn.reduces and self.reduction.place == "between":
                halves = split(turn.item)
            if turn.reduces and self.reduction.place == "before":
                stream = draft.node(f"{label} {turn.depth:g}", "reduce", "", None, stream)
            for half, item in enumerate(halves):
                stream = draft.op(item, name, "mixer", stream, width)
                if turn.reduces and half == 0 and self.reduction.place != "before":
                    stream = draft.node(f"{label} {turn.depth:g}", "reduce", "", None, stream)
        if self.restore and any(turn.reduces for turn in turns):
            end = draft.node("restore", "reduce", "", None, stream)
            draft.join(start, end, SKIP)
            return end
        return stream


def split(block: Block) -> tuple[Block, Block]:
    """The mixer of a block, and its channel mixer."""
    return replace(block, channel=Identity()), replace(block, mixer=Identity())
