"""A transformer of words inside a transformer of sentences.

Legend: B batch, R and Q rows and columns of sentences, S side of a sentence in words, C width of a word, D width of a
sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Dim, Init, Param, as_dim, axis, param, renamed
from ..graph import SKIP
from ..model import built_layers
from ..operator import Length, Source, tokens_of
from ..operators.checks import require_whole
from ..operators.layernorm import LayerNorm, LayerNormalisation
from ..operators.spatial import as_grid, grid_of, shaped_like
from .base import Macro, Numbers, Part, Visit, at, kept

if TYPE_CHECKING:
    from ..graph import Draft

__all__ = ["NestedLayers", "TransformerInTransformer"]


class NestedLayers(nn.Module):
    """`sentences = outer(sentences + project(norm(words)))` with `words = inner(words)`, layer by layer; sentences begin as
    `norm(first(norm(words))) + position`."""

    def __init__(self, inner: list[nn.Module], outer: list[nn.Module], width: int, out_width: int, side: int,
                 places: tuple[int, int] | None, class_token: bool):
        super().__init__()
        self.side = side
        words = side * side * width
        self.word_position = nn.Parameter(torch.empty(side, side, width))
        self.first_norm, self.sentence_norm = LayerNormalisation(words), LayerNormalisation(out_width)
        self.first = nn.Linear(words, out_width, bias=False)
        self.position = nn.Parameter(torch.empty(*places, out_width)) if places else None
        self.token = nn.Parameter(torch.empty(out_width)) if class_token else None
        self.inner, self.outer = nn.ModuleList(inner), nn.ModuleList(outer)
        self.norms = nn.ModuleList([LayerNormalisation(width) for _ in inner])
        self.projects = nn.ModuleList([nn.Linear(words, out_width, bias=False) for _ in inner])

    def forward(self, x: Tensor) -> Tensor:
        split = torch.unflatten(torch.unflatten(as_grid(x), 1, (-1, self.side)), 3, (-1, self.side)).transpose(2, 3)
        grid = split.shape[:3]                                                       # [B, R, Q, S, S, C]
        words = shaped_like(x, split.flatten(0, 2) + self.word_position)
        start_BRQD = self.sentence_norm(self.first(self.first_norm(self.flat(words, grid))))
        if self.position is not None:
            start_BRQD = start_BRQD + self.position
        sentences = shaped_like(x, self.placed(start_BRQD, self.token))
        for i, layer in enumerate(self.outer):
            if i < len(self.inner):
                words = self.inner[i](words)
                news_BRQD = self.projects[i](self.flat(self.norms[i](words), grid))
                sentences = sentences + shaped_like(x, self.placed(news_BRQD, torch.zeros_like(news_BRQD[0, 0, 0])))
            sentences = layer(sentences)
        return sentences

    def flat(self, words: Tensor, grid: torch.Size) -> Tensor:
        """The words of every sentence side by side, [B, R, Q, S * S * C]."""
        return torch.unflatten(words.flatten(1), 0, grid)

    def placed(self, sentences_BRQD: Tensor, first_D: Tensor | None) -> Tensor:
        """The grid of sentences, or a grid of one column with `first_D` before them all where there is a class token."""
        if self.token is None or first_D is None:
            return sentences_BRQD
        first_B11D = first_D.expand(len(sentences_BRQD), 1, 1, -1)
        return torch.cat([first_B11D, sentences_BRQD.flatten(1, 2)[:, :, None]], 1)


@dataclass(frozen=True)
class TransformerInTransformer(Macro):
    """Transformer in Transformer (Han et al., 2021): layers among the words of every sentence, whose words are then
    projected, all together, and added to the sentence, and layers among sentences. Only sentences go on.

    What comes in is a grid of words, in the paper one per 4 x 4 pixels: `PatchEmbedding(4, kernel=7, grid=True,
    position=False)`. side: rows and columns of words that are a sentence, which divide those of the grid; 4 in the paper.
    width: of a sentence. inner: layers at the width that comes in, among the words of one sentence, a grid of side x side; at
    most as many as outer, the layers among sentences. places: rows and columns of sentences where each has a learned vector;
    None for no positions. The place of a word in its sentence always has one. class_token: whether a learned token goes
    before all sentences, which then are a grid of one column, (B, 1 + sentences, 1, width), for operators that are not on
    grids. Projections have no biases.
    """

    inner: Any
    outer: Any
    width: Any
    side: Any = 4
    places: Any = None
    class_token: Any = False
    holds: ClassVar[tuple[str, ...]] = ("inner", "outer")
    streams: ClassVar[tuple[str, ...]] = ("inner", "outer")
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"word_rows": "a place in the sentence", "word_columns": "a place in the sentence"}
    proof: ClassVar[str] = "tests/space/test_nested.py"
    source: ClassVar[Source] = Source("Transformer in Transformer", 2021, systems=("S200",))

    def check(self, width: int, where: str) -> None:
        require_whole("width", self.width, where)
        require_whole("side", self.side, where)
        inner, outer = len(kept(self.inner)), len(kept(self.outer))
        if inner > outer:
            raise ValueError(f"inner has at most as many layers as outer at {where}: got {inner} and {outer}; what words "
                             "learn reaches sentences through the outer layer beside")
        if self.places is not None:
            if not isinstance(self.places, tuple) or len(self.places) != 2:
                raise ValueError(f"places is (rows, columns) of sentences, or None, at {where}: got {self.places!r}")
            for count in self.places:
                require_whole("places", count, where)

    def axes(self, width: int) -> dict[str, Param]:
        c, d, small = axis("width", width), axis("stage_width", self.width), Init("normal", gain=0.02)
        rows, columns = axis("word_rows", self.side), axis("word_columns", self.side)
        words = rows * columns * c
        found = {"word_position": param(rows, columns, c, init=small), "first.weight": param(d, words),
                 **_norm("first_norm", words), **_norm("sentence_norm", as_dim(d))}
        for i in range(len(kept(self.inner))):
            found |= {f"projects.{i}.weight": param(d, words), **_norm(f"norms.{i}", as_dim(c))}
        if self.places is not None:
            found["position"] = param(*(axis(name, size, "spread") for name, size in zip(
                ("rows", "columns"), self.places, strict=True)), d, init=small)
        return found | ({"token": param(d, init=small)} if self.class_token else {})

    def sentences(self, length: Length) -> tuple[int, int]:
        """Rows and columns of sentences."""
        rows, columns = (-(-size // self.side) for size in grid_of(length))
        return rows, columns

    def out(self, width: int, length: Length) -> tuple[int, Length]:
        sentences = self.sentences(length)
        if self.class_token:
            sentences = 1 + tokens_of(sentences), 1
        return self.width, sentences if isinstance(length, tuple) else tokens_of(sentences)

    def parts(self, width: int, length: Length) -> list[Part]:
        sentences, found = self.sentences(length), list[Part]()
        among, inner = self.out(width, length)[1], kept(self.inner)
        for i, entry in enumerate(kept(self.outer)):
            if i < len(inner):
                found.append(Part(f"inner.{i}", inner[i].item, at("inner", self.inner, inner[i].index), width,
                                  (self.side, self.side), times=tokens_of(sentences)))
            found.append(Part(f"outer.{i}", entry.item, at("outer", self.outer, entry.index), self.width, among))
        return found

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Projections of all words of all sentences: the first, and one per inner layer."""
        words = self.side**2 * width
        return float(tokens_of(self.sentences(length)) * words * self.width * (1 + len(kept(self.inner))))

    def build(self, width: int) -> nn.Module:
        inner, outer = (built_layers([entry.item for entry in kept(held)], size)
                        for held, size in ((self.inner, width), (self.outer, self.width)))
        return NestedLayers(inner, outer, width, self.width, self.side, self.places, bool(self.class_token))

    def sketch(self, draft: Draft, stream: int, place: str, width: int) -> int:
        inner = [entry.item for entry in kept(self.inner)]
        words, draft.width = stream, self.width
        stream = draft.node(self.label(), "sentences", place, self, words)
        for i, entry in enumerate(kept(self.outer)):
            if i < len(inner):
                draft.width = width
                words = draft.op(inner[i], f"{place}.inner.{i}", "mixer", words, width)
                draft.width = self.width
                joined = draft.node("words", "words", "", None, stream)
                draft.join(words, joined, SKIP)
                stream = joined
            stream = draft.op(entry.item, f"{place}.outer.{i}", "mixer", stream, self.width)
        return stream

    @classmethod
    def survey(cls, widths: frozenset[int], numbers: Numbers, visit: Visit) -> frozenset[int]:
        visit("inner", widths)
        own = frozenset(numbers("width"))
        visit("outer", own)
        return own


def _norm(name: str, channels: Dim) -> dict[str, Param]:
    return {f"{name}.{key}": renamed(part, "width", channels) for key, part in LayerNorm().axes(1).items()}
