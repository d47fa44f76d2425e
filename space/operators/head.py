"""What leaves the residual stream: logits of the next token, or scores of classes.

Legend: B batch, T tokens, D width, V vocabulary, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole

__all__ = ["ClassScores", "ClassifierHead", "HiddenClassScores", "LanguageHead", "TiedLogits", "TokenLogits"]


class TokenLogits(nn.Module):
    """Logits from a matrix of its own."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self.weight)


class TiedLogits(nn.Module):
    """Logits from the rows of the embedding, which the model hands in."""

    def forward(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        return F.linear(x_BTD, table_VD)


@dataclass(frozen=True)
class LanguageHead(Operator):
    """Next-token logits; tied to the embedding (Press and Wolf, 2017) or with a matrix of its own.

    vocab: rows of that matrix; a tied head reads as many as the embedding has.
    """

    tied: Any = True
    vocab: Any = None
    kind: ClassVar[str] = "head"
    fixed: ClassVar[Mapping[str, str]] = {"vocab": "a row is a token"}
    source: ClassVar[Source] = Source("Using the Output Embedding to Improve Language Models", 2017)

    def for_embedding(self, embed: Any) -> LanguageHead:
        """This head with the vocabulary of `embed`, unless it names its own. Raises ValueError where it cannot be tied."""
        for candidate in getattr(embed, "candidates", (embed,)) if self.tied else ():
            if getattr(candidate, "cannot_tie", False):
                raise ValueError("a tied head reads rows that are learned, of the width: "
                                 f"{type(candidate).__name__} has none; use LanguageHead(tied=False)")
        return self if self.vocab is not None else replace(self, vocab=getattr(embed, "vocab", None))

    def check(self, width: int, where: str) -> None:
        if not self.tied or self.vocab is not None:
            require_whole("vocab", self.vocab, where, instead="write LanguageHead(tied=False, vocab=256)")

    def axes(self, width: int) -> dict[str, Param]:
        return {} if self.tied else {"weight": param(axis("vocab", self.vocab), axis("width", width))}

    def build(self, width: int) -> nn.Module:
        return TiedLogits() if self.tied else TokenLogits(width, self.vocab)

    def macs(self, width: int, length: int) -> float:
        return float(length * self.decode_macs(width, length))

    def decode_macs(self, width: int, length: int) -> float:
        """One row of logits; 0 while the vocabulary is not known."""
        return float((self.vocab or 0) * width)


class HiddenClassScores(nn.Module):
    """Class scores behind a hidden layer, `scores(relu(hidden(mean)))`, of the mean over all tokens."""

    def __init__(self, width: int, hidden: int, classes: int):
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.hidden_scores = nn.Linear(hidden, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BF = F.relu(self.hidden(x_BTD.flatten(1, -2).mean(dim=1)))
        scores_BK: Tensor = self.hidden_scores(h_BF)
        return scores_BK


class ClassScores(nn.Module):
    """Class scores of the mean over all tokens of a sequence [B, T, D] or a grid [B, H, W, D]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.scores = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BK: Tensor = self.scores(x_BTD.flatten(1, -2).mean(dim=1))
        return scores_BK


@dataclass(frozen=True)
class ClassifierHead(Operator):
    """Scores of `classes` from the mean over tokens: global average pooling (Network In Network, Lin et al., 2013).

    hidden: units of a layer between the mean and the scores, as in MobileNetV3 (Howard et al., 2019); None for none.
    """

    classes: Any
    hidden: Any = None
    kind: ClassVar[str] = "head"
    fixed: ClassVar[Mapping[str, str]] = {"classes": "a row is a class"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Network In Network", 2013)

    def check(self, width: int, where: str) -> None:
        require_whole("classes", self.classes, where, low=2)
        if self.hidden is not None:
            require_whole("hidden", self.hidden, where, instead="use None for scores from the mean itself")

    def axes(self, width: int) -> dict[str, Param]:
        k = axis("classes", self.classes)
        if self.hidden is not None:
            f = axis("hidden", self.hidden)
            return {"hidden.weight": param(f, axis("width", width)), "hidden.bias": param(f, init="zeros"),
                    "hidden_scores.weight": param(k, f), "hidden_scores.bias": param(k, init="zeros")}
        return {"scores.weight": param(k, axis("width", width)), "scores.bias": param(k, init="zeros")}

    def build(self, width: int) -> nn.Module:
        if self.hidden is not None:
            return HiddenClassScores(width, self.hidden, self.classes)
        return ClassScores(width, self.classes)

    def macs(self, width: int, length: int) -> float:
        """Once per sequence."""
        return float(self.matrix_numel(width))
