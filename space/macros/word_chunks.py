"""Chunks that begin at marked tokens: words.

Legend: B batch, T tokens, N words of all sequences, K words of a sequence, L tokens of a word, D width, E width of the inner
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Source
from ..operators.checks import require_whole
from .base import Runs
from .chunking import Chunker
from .running import initial_state

__all__ = ["WordChunkLayers", "WordChunks"]


class WordChunkLayers(nn.Module):
    """Each word that has ended to one vector, inner layers over them, decoder over each word behind what came before it.

    Words of one length are worked on together, with nothing to fill them up; sequences of a batch have their own words, so
    there is a state per sequence. ahead: the inner layers are not causal, so every sequence is worked on alone.
    """

    def __init__(self, encoder: Any, inner: Any, decoder: Any, width: int, inner_width: int,
                 ahead: bool = False):
        super().__init__()
        self.encoder: Any = encoder
        self.inner: Any = inner
        self.decoder: Any = decoder
        self.ahead = ahead
        self.word = nn.Parameter(torch.empty(width))
        self.start = nn.Parameter(torch.empty(inner_width))
        self.into = nn.Linear(width, inner_width)
        self.back = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.ahead and len(x) > 1:
            return torch.cat([self(row) for row in torch.split(x, 1)])
        x_BTD = x.flatten(1, -2)
        batch, tokens, width = x_BTD.shape
        row_N, place_N = self.begins(x_BTD).nonzero(as_tuple=True)
        first_N = row_N * tokens + place_N                              # where a word begins among all tokens
        after_N = torch.cat([first_N[1:], first_N.new_tensor([batch * tokens])])
        flat_SD, has_ended_N = x_BTD.flatten(0, 1), after_N % tokens != 0
        context_BKE = self.start.expand(batch, 1, -1)
        if has_ended_N.any():
            words = by_length(first_N[has_ended_N], after_N[has_ended_N])
            made_ND = torch.cat([self.vectors(flat_SD[places_NL]) for _, places_NL in words])
            vectors_NE = self.into(made_ND[torch.cat([which_N for which_N, _ in words]).argsort()])
            count_B = torch.bincount(row_N[has_ended_N], minlength=batch)
            words_BKE = nn.utils.rnn.pad_sequence(list(torch.split(vectors_NE, count_B.tolist())), batch_first=True)
            context_BKE = torch.cat([context_BKE, self.inner(words_BKE)], 1)
        number_N = torch.arange(len(row_N), device=x.device) - torch.searchsorted(row_N, row_N)
        prefix_ND, words = self.back(context_BKE[row_N, number_N]), by_length(first_N, after_N)
        y_SD = torch.cat([self.decoded(flat_SD[places_NL], prefix_ND[which_N]).flatten(0, 1) for which_N, places_NL in words])
        return y_SD[torch.cat([places_NL.flatten() for _, places_NL in words]).argsort()].view(x.shape)

    def begins(self, x_BTD: Tensor, mark_B1: Tensor | None = None) -> Tensor:
        """Whether a word begins at each token: at the first of all, and at a marked one behind one that is not.

        mark: whether the token before is marked, None where there is none.
        """
        is_marked_BT = x_BTD[..., 0] > 0.5
        before_BT = torch.cat([is_marked_BT[:, :1] if mark_B1 is None else mark_B1, is_marked_BT[:, :-1]], 1)
        begins_BT = is_marked_BT & ~before_BT
        if mark_B1 is None:
            begins_BT = torch.cat([torch.ones_like(begins_BT[:, :1]), begins_BT[:, 1:]], 1)
        return begins_BT

    def vectors(self, x_NLD: Tensor) -> Tensor:
        """What the encoder makes of the vector that stands before a word. [N, D]"""
        return self.encoder(torch.cat([self.word.expand(len(x_NLD), 1, -1), x_NLD], 1))[:, 0]  # type: ignore[no-any-return]

    def decoded(self, x_NLD: Tensor, prefix_ND: Tensor) -> Tensor:
        """Words behind their prefix. [N, L, D]"""
        return self.decoder(torch.cat([prefix_ND.unsqueeze(1), x_NLD], 1))[:, 1:]     # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        none_10D = torch.zeros(1, 0, self.word.shape[0], dtype=dtype, device=device)
        return {"mark": None, "rows": [{"inner": initial_state(self.inner, 1, dtype, device), "word": none_10D,
                                        "decoder": initial_state(self.decoder, 1, dtype, device)} for _ in range(batch)]}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens, sequence by sequence and word by word."""
        begins_BT = self.begins(x_BTD, state["mark"])
        rows, found = [], []
        for row, before in enumerate(state["rows"]):
            y_1TD, after = self.step_row(x_BTD[row:row + 1], begins_BT[row].nonzero().flatten().tolist(), before)
            found.append(y_1TD)
            rows.append(after)
        return torch.cat(found), {"mark": x_BTD[:, -1:, 0] > 0.5, "rows": rows}

    def step_row(self, x_1TD: Tensor, begins: list[int], state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens of one sequence; begins: where its words begin."""
        state, found = dict(state), []
        for place, piece_1LD in zip([0, *begins], torch.tensor_split(x_1TD, begins, 1), strict=True):
            if not piece_1LD.shape[1]:
                continue
            if place in begins:
                context_11E = self.start.expand(1, 1, -1)
                if state["word"].shape[1]:
                    vector_11E = self.into(self.vectors(state["word"]).unsqueeze(1))
                    context_11E, state["inner"] = self.inner.step(vector_11E, state["inner"])
                empty = initial_state(self.decoder, 1, x_1TD.dtype, x_1TD.device)
                _, state["decoder"] = self.decoder.step(self.back(context_11E), empty)
                state["word"] = state["word"][:, :0]
            y_1LD, state["decoder"] = self.decoder.step(piece_1LD, state["decoder"])
            state["word"] = torch.cat([state["word"], piece_1LD], 1)
            found.append(y_1LD)
        return torch.cat(found, 1), state


def by_length(first_N: Tensor, after_N: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(which words, the places of their tokens) for words of one length at a time."""
    length_N, found = after_N - first_N, []
    for length in torch.unique(length_N).tolist():
        which_N = (length_N == length).nonzero().flatten()
        found.append((which_N, first_N[which_N].unsqueeze(1) + torch.arange(length, device=first_N.device)))
    return found


@dataclass(frozen=True)
class WordChunks(Chunker):
    """Hierarchical autoregressive transformers (Neitemeier et al., 2025): words, each through a small encoder and decoder.

    A word begins at a marked token behind one that is not: a token whose first entry is above a half as it enters the
    macro, which `MarkedEmbedding(vocab, marks)` sees to, so the hierarchy stands first in the body. Words are therefore
    split before whitespace, which begins the next one; the published splitter knows more rules and a greatest length. The
    encoder, which may look both ways, reads a word that has ended behind a learned vector ([W]), whose output a linear map
    takes to the inner width; the inner layers are causal over words; a linear map takes their output back, as the prefix
    behind which the decoder reads the tokens of the next word. Before the first stands a learned vector. That a word ends
    is said by the first token of the next, not by a token of its own.

    ratio: tokens per word that costs are stated for; `bp.measured_macs` counts what ran.
    """

    ratio: Any = 6
    encodes_tokens: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"width": "the first entry is a mark"}
    proof: ClassVar[str] = "tests/space/test_word_chunks.py"
    source: ClassVar[Source] = Source("Hierarchical Autoregressive Transformers: Combining Byte- and Word-Level Processing "
                                      "for Robust, Adaptable Language Models", 2025, systems=("S003",))

    def check(self, width: int, inner: int, where: str) -> None:
        require_whole("ratio", self.ratio, where)

    def axes(self, width: int, inner: int) -> dict[str, Param]:
        d, e, start = axis("width", width), axis("inner_width", inner), Init("normal", gain=0.02)
        return {"word": param(d, init=start), "start": param(e, init=start), "into.weight": param(e, d),
                "into.bias": param(e, init="zeros"), "back.weight": param(d, e), "back.bias": param(d, init="zeros")}

    def words(self, tokens: int) -> int:
        """How many there are, the last not yet ended."""
        return -(-tokens // self.ratio)                                               # type: ignore[no-any-return]

    def macs(self, width: int, inner: int, tokens: int) -> float:
        return float(width * inner * (2 * self.words(tokens) - 1))

    def decode_macs(self, width: int, inner: int) -> float:
        """The mean over the tokens of a word."""
        return 2 * width * inner / self.ratio                                          # type: ignore[no-any-return]

    def state_numel(self, width: int, inner: int, tokens: int) -> int:
        return int(width * (tokens - (self.words(tokens) - 1) * self.ratio) + 1)

    def runs(self, field: str, tokens: int) -> Runs:
        ended, each = max(0, self.words(tokens) - 1), 1 / self.ratio
        size, rest = 1 + self.ratio, 1 + tokens - ended * self.ratio
        if field == "encoder":
            return Runs(((size, float(ended)),), anew=((size, each),))
        if field == "inner":
            return Runs(((ended, 1.0),) if ended else (), ((ended, each),), keeps=ended)
        return Runs(((size, float(ended)), (rest, 1.0)), tuple((before, each) for before in range(size)), keeps=rest)

    def build(self, encoder: nn.Module, inner: nn.Module, decoder: nn.Module, width: int, inner_width: int,
              ahead: bool) -> nn.Module:
        return WordChunkLayers(encoder, inner, decoder, width, inner_width, ahead)
