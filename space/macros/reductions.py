"""Token reductions: what they read, how many tokens they leave, what they cost. One mathematics (`transforms`), thin configs.

Legend: N tokens, P entries of a key, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..operator import Length, Source, tokens_of
from ..operators.checks import require_positive, require_whole
from ..operators.spatial import grid_of
from .choosers import (
    BipartiteMatching,
    ClassAttended,
    EnergyMatching,
    FirstRows,
    PageRank,
    SoftSelection,
    alike_of,
    matched,
    share_of,
)
from .clustering import NeighbourClustering

__all__ = ["Clusters", "FasterVLM", "FirstTokens", "PiToMe", "Reduction", "ToMe", "TokenTransforming", "ZeroTPrune"]


@dataclass(frozen=True)
class Reduction:
    """Base of reductions.

    reads: "features", "keys" or "attention" of a layer. place: where in a layer it stands: "before" it, "between" its mixer
    and its channel mixer, or "after" it. proportional: attention counts tokens by their sizes from there on.
    """

    reads: ClassVar[str] = "features"
    place: ClassVar[str] = "after"
    proportional: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Token Transforming: A Unified and Training-Free Token Compression Framework for "
                                      "Vision Transformer Acceleration", 2025)

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""

    def goes(self, tokens: int) -> int:
        """How many of `tokens` go."""
        return 0

    def after(self, length: Length) -> Length:
        """What is left of a sequence or a grid; of a grid a single column."""
        left = tokens_of(length) - self.goes(tokens_of(length))
        return left if isinstance(length, int) else (left, 1)

    @property
    def changes(self) -> bool:
        """Whether it reduces anything."""
        return True

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        """Multiply-adds of making W and of W X; key: entries of a key, heads: of the attention."""
        return 0.0

    def restoring_macs(self, length: Length, width: int) -> float:
        """Multiply-adds of bringing the tokens back."""
        return 0.0

    def chooser(self, depth: float) -> nn.Module:
        """The module that makes W. depth: the share of the layers that come before."""
        raise TypeError(f"{type(self).__name__} must define chooser(depth)")


@dataclass(frozen=True)
class _Keeping(Reduction):
    """A share of the free tokens stays; `protected` tokens at the beginning, such as a class token, are not free."""

    keep: Any = 0.9
    protected: Any = 0
    lowest: ClassVar[float] = 0.0

    def check(self, where: str) -> None:
        require_whole("protected", self.protected, where, low=0)
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)) or not self.lowest < self.keep <= 1:
            raise ValueError(f"keep is a share of the tokens above {self.lowest:g} and up to 1 at {where}: got {self.keep!r}")

    def goes(self, tokens: int) -> int:
        return share_of(self.keep, max(tokens - self.protected, 0))

    @property
    def changes(self) -> bool:
        return bool(self.keep < 1)


@dataclass(frozen=True)
class FirstTokens(Reduction):
    """The first `count` tokens alone go on: a class token to the head (ViT, Dosovitskiy et al., 2020), W the first rows of
    the identity."""

    count: Any = 1
    proof: ClassVar[str] = "tests/space/test_reductions.py -k FirstTokens"
    source: ClassVar[Source] = Source("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020)

    def check(self, where: str) -> None:
        require_whole("count", self.count, where)

    def goes(self, tokens: int) -> int:
        return int(max(tokens - self.count, 0))

    def chooser(self, depth: float) -> nn.Module:
        return FirstRows(self.count)


@dataclass(frozen=True)
class ToMe(Reduction):
    """Token Merging: Your ViT But Faster (Bolya et al., 2023): in every layer the `remove` most similar pairs of tokens at
    even and odd places become one, by size-weighted means of the tokens and cosines of the keys' mean over heads."""

    remove: Any = 8
    protected: Any = 0
    reads: ClassVar[str] = "keys"
    place: ClassVar[str] = "between"
    proportional: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_reductions.py -k ToMe"
    source: ClassVar[Source] = Source("Token Merging: Your ViT But Faster", 2023)

    def check(self, where: str) -> None:
        require_whole("remove", self.remove, where, low=0)
        require_whole("protected", self.protected, where, low=0)

    def goes(self, tokens: int) -> int:
        return matched(self.remove, tokens, self.protected)

    @property
    def changes(self) -> bool:
        return bool(self.remove)

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        tokens = tokens_of(length)
        return float(-(-tokens // 2) * (tokens // 2) * key)

    def chooser(self, depth: float) -> nn.Module:
        return BipartiteMatching(self.remove, self.protected)


@dataclass(frozen=True)
class PiToMe(_Keeping):
    """PiToMe (Tran et al., 2024): tokens of high energy, those with many alike, are merged; the others stay.

    keep: the share of the free tokens that a layer leaves, at least a half, as a token goes into another one. margin: None
    for 0.9 (1 - l / L) in layer l of L, as in the paper. alpha: of the energy below the margin. Otherwise as `ToMe`: keys
    averaged over heads, size-weighted means, proportional attention. The energy is the paper's, x from the margin on; the
    authors' code has x - margin there.
    """

    margin: Any = None
    alpha: Any = 1.0
    reads: ClassVar[str] = "keys"
    place: ClassVar[str] = "between"
    proportional: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_reductions.py -k PiToMe"
    source: ClassVar[Source] = Source("Accelerating Transformers with Spectrum-Preserving Token Merging", 2024,
                                      systems=("S420",))

    def check(self, where: str) -> None:
        super().check(where)
        if self.keep < 0.5:
            raise ValueError(f"keep is at least a half, as a token that goes needs one to go to, at {where}: got {self.keep}")
        require_positive("alpha", self.alpha, where)
        if self.margin is not None and (isinstance(self.margin, bool) or not -1 <= self.margin <= 1):
            raise ValueError(f"margin is a cosine at {where}: got {self.margin!r}; use None for 0.9 (1 - l / L)")

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        return float(max(tokens_of(length) - self.protected, 0) ** 2 * key)

    def chooser(self, depth: float) -> nn.Module:
        margin = 0.9 * (1 - depth) if self.margin is None else float(self.margin)
        return EnergyMatching(float(self.keep), margin, float(self.alpha), self.protected)


@dataclass(frozen=True)
class ZeroTPrune(_Keeping):
    """Zero-TPrune (Wang et al., 2024): weighted PageRank on the attention of a layer, and pruning of similar tokens.

    keep: the share of the free tokens that stays at each of the layers it stands behind. similar: the share of those that go
    which go for their likeness (cosine of keys averaged over heads): the tokens are split into a more and a less important
    half by one vote, and those of the second that are most like one of the first go. The others go for their importance,
    after `rounds` votes on what is left of the attention, its rows made to sum to one again. low, high: bounds of the
    variance of a head's importance, in units of its mean. Protected tokens start with sqrt(N) votes. Read so
    where the paper leaves it open: the scale of the variance, and the rows of what is left. Its rounds get fewer with depth:
    put one `Reduced` behind the other, each with its own.
    """

    similar: Any = 0.5
    rounds: Any = 5
    low: Any = 0.01
    high: Any = 0.7
    reads: ClassVar[str] = "attention"
    proof: ClassVar[str] = "tests/space/test_reductions.py -k ZeroTPrune"
    source: ClassVar[Source] = Source("Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in "
                                      "Pre-Trained Transformers", 2024, systems=("S414",))

    def check(self, where: str) -> None:
        super().check(where)
        require_whole("rounds", self.rounds, where)
        if not 0 <= self.similar <= 1:
            raise ValueError(f"similar is a share from 0 to 1 at {where}: got {self.similar!r}")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low and high bound a variance at {where}: got {self.low!r} and {self.high!r}")

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        tokens = tokens_of(length)
        free, count = tokens - self.protected, self.goes(tokens)
        alike = alike_of(self.similar, count, free)
        matching = heads * tokens**2 + key * (free // 2) * (free - free // 2) if alike else 0
        return float(matching + self.rounds * heads * (tokens - alike) ** 2)

    def chooser(self, depth: float) -> nn.Module:
        return PageRank(float(self.keep), float(self.similar), self.rounds, float(self.low), float(self.high), self.protected)


@dataclass(frozen=True)
class FasterVLM(_Keeping):
    """FasterVLM (Zhang et al., 2024): the tokens that the class token attends to most in a layer, heads averaged, stay.

    Its encoder has a class token, the first of the `protected` ones; `Reduced(layers, FasterVLM(0.05), at=(-2,))` prunes
    behind the last layer but one. Which layers the tokens come from, and what language model reads them, is the body's.
    """

    keep: Any = 0.05
    protected: Any = 1
    reads: ClassVar[str] = "attention"
    proof: ClassVar[str] = "tests/space/test_reductions.py -k FasterVLM"
    source: ClassVar[Source] = Source("[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM "
                                      "Inference Faster", 2024, options=("S319",))

    def check(self, where: str) -> None:
        super().check(where)
        require_whole("protected", self.protected, where, instead="the first protected token is the class token; put "
                      "ClassToken() before")

    def chooser(self, depth: float) -> nn.Module:
        return ClassAttended(float(self.keep), self.protected)


@dataclass(frozen=True)
class TokenTransforming(_Keeping):
    """Token Transforming (Zeng et al., 2025): many tokens into many. Every row of W is a softmax-weighted mean of all tokens.

    The most important tokens (attention of the class token where `protected` is not 0, else the mean attention received) are
    rows; W is the softmax over tokens of the cosine of keys, averaged over heads, with theirs, divided by `temperature`.
    Pruning and merging are the special cases in which W is one-hot (`ZeroTPrune`, `FasterVLM`) or averages disjoint groups
    (`ToMe`, `PiToMe`). Which similarity and which importance make W is read so; the paper's framework holds for any.
    """

    keep: Any = 0.7
    temperature: Any = 0.1
    reads: ClassVar[str] = "attention"
    proof: ClassVar[str] = "tests/space/test_reductions.py -k TokenTransforming"
    source: ClassVar[Source] = Source(Reduction.source.paper, 2025, systems=("S026",))

    def check(self, where: str) -> None:
        super().check(where)
        require_positive("temperature", self.temperature, where)

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        """Likeness of the rows to all free tokens, and W X."""
        tokens = tokens_of(length)
        left, free = tokens - self.goes(tokens), tokens - self.protected
        return float((left - self.protected) * free * key + left * tokens * width)

    def restoring_macs(self, length: Length, width: int) -> float:
        tokens = tokens_of(length)
        return float((tokens - self.goes(tokens)) * tokens * width)

    def chooser(self, depth: float) -> nn.Module:
        return SoftSelection(float(self.keep), float(self.temperature), self.protected)


@dataclass(frozen=True)
class Clusters(Reduction):
    """Expedit (Liang et al., 2022): tokens of a grid as rows x columns centres, before a layer, and back behind the last.

    Centres start as an adaptive average pooling, then `iterations` of soft k-means among the centres at most `radius` cells
    away; a token comes back as the softmax-weighted mean of the `nearest` centres to it, by distances before the layers.
    temperature: squared distances are divided by it, both times; 200 in the authors' code for Swin-L, as the size of a
    stream's features goes. A sequence is a grid of one column. The weights of a returning token sum to one, as the paper has
    it; the authors' code makes their squares do so.
    """

    rows: Any = 4
    columns: Any = 4
    iterations: Any = 5
    radius: Any = 2
    temperature: Any = 200.0
    nearest: Any = 3
    place: ClassVar[str] = "before"
    proof: ClassVar[str] = "tests/space/test_reductions.py -k Expedit"
    source: ClassVar[Source] = Source("Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning",
                                      2022, systems=("S124",))

    def check(self, where: str) -> None:
        for name in ("rows", "columns", "iterations", "nearest"):
            require_whole(name, getattr(self, name), where)
        require_whole("radius", self.radius, where, low=0)
        require_positive("temperature", self.temperature, where)

    def after(self, length: Length) -> Length:
        rows, columns = (min(held, side) for held, side in zip((self.rows, self.columns), grid_of(length), strict=True))
        return rows if isinstance(length, int) else (rows, columns)

    def macs(self, length: Length, width: int, key: int, heads: int) -> float:
        """Distances and centres in every iteration."""
        return float(2 * self.iterations * tokens_of(length) * tokens_of(self.after(length)) * width)

    def restoring_macs(self, length: Length, width: int) -> float:
        return float(2 * tokens_of(length) * tokens_of(self.after(length)) * width)

    def chooser(self, depth: float) -> nn.Module:
        return NeighbourClustering(self.rows, self.columns, self.iterations, self.radius, float(self.temperature),
                                   self.nearest)
