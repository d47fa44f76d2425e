"""What a language model over tokens says of bytes.

Legend: N bytes of the text, V tokens, T tokens of one sequence, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..space.operator import Source

__all__ = ["byte_probabilities"]

END = 256                            # the column after those of the bytes
Encode = Callable[[bytes], Sequence[int]]


class Starting(NamedTuple):
    """The tokens that start with a string of bytes and go on: their ids, and the byte that is next in each."""

    ids: Tensor
    bytes: Tensor


@torch.no_grad()
def byte_probabilities(model: nn.Module, tokens: Sequence[bytes], text: bytes, start: Sequence[int],
                       encode: Encode | None = None, batch: int = 32, most: int = 4096) -> Tensor:
    """Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles (Phan et al., 2024).

    A string of bytes is as likely as all sequences of tokens together that cover it: the last token of each reaches or
    crosses the end of the string, all before it end earlier. Row n of what is returned, [N + 1, 257] in float64, is the
    distribution of the byte after the first n of `text`; its last column is the probability that the text ends there, by
    one of the tokens without bytes. Bits per byte of models with different vocabularies are `-probabilities[range(N),
    list(text)].log2().mean()`; the next byte, also inside of a token, is drawn from the last row; an ensemble is a mean
    of rows.

    Args:
        model: causal, ids [S, T] to logits [S, T, V].
        tokens: the bytes of every token; empty for one that ends the text.
        text: what is scored.
        start: tokens before the text, at least one: a token that begins every text, or a prompt.
        encode: the tokens of some bytes, where beginnings of an encoding are encodings themselves: byte pairs, the longest
            match. With it only the encodings that it would choose count, one per place to go on from, and every row is
            divided by what they make together: exact for a model that gives nothing to other encodings. It is called for
            every token that may come next. Without it all encodings count, of which there may be exponentially many.
        batch: sequences in one pass of the model.
        most: sequences of tokens; one pass of the model looks at each.

    Raises:
        ValueError: nothing to start from, a vocabulary that is not the model's, more sequences than `most`, or a text
            that no sequence covers.
    """
    if len(start) == 0:
        raise ValueError("byte probabilities start after a token: got none; give the one that begins a text, or a prompt")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    starting, ends = _starting(tokens, device), [i for i, piece in enumerate(tokens) if not piece]
    longest = max(map(len, tokens), default=0)
    joint = torch.zeros(len(text) + 1, END + 1, dtype=torch.float64, device=device)
    reached: list[dict[tuple[int, ...], float]] = [{} for _ in range(len(text) + 1)]
    reached[0][()] = 1.0
    seen, was_training = 0, model.training
    model.eval()
    try:
        for place in range(len(text) + 1):
            seen += len(reached[place])
            if seen > most:
                raise ValueError(f"at most {most} sequences of tokens are looked at: the first {place} of {len(text)} bytes "
                                 f"have {seen}; give `encode`, a shorter text, or a larger `most`")
            for prefix, weight, next_V in _continued(model, reached[place], start, batch, len(tokens), device):
                joint[place, END] += weight * next_V[ends].sum()
                for end in range(place, min(place + longest, len(text) + 1)):
                    found = starting.get(text[place:end])
                    if found is None:
                        break
                    if encode is not None:
                        found = _chosen(found, prefix, text[:place], tokens, encode)
                    joint[end].index_add_(0, found.bytes, weight * next_V[found.ids])
                for token in _whole(tokens, text, place, longest):
                    made = (*prefix, token)
                    if encode is None or tuple(encode(text[:place + len(tokens[token])])) == made:
                        reached[place + len(tokens[token])][made] = weight * float(next_V[token])
    finally:
        model.train(was_training)
    whole = joint.sum(1, keepdim=True)
    if not bool((whole > 0).all()):
        bare = int((whole[:, 0] <= 0).nonzero()[0])
        raise ValueError(f"a text is covered by tokens: nothing covers its first {bare} bytes, or goes on from there; is it "
                         "of another vocabulary?")
    return joint / whole


byte_probabilities.source = Source(                                                  # type: ignore[attr-defined]
    "Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles", 2024,
    systems=("S426",))
byte_probabilities.proof = "tests/evaluators/test_byte_level.py"                     # type: ignore[attr-defined]


def _starting(tokens: Sequence[bytes], device: torch.device) -> dict[bytes, Starting]:
    """For every beginning of a token, the tokens that go on after it."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    for number, piece in enumerate(tokens):
        for length in range(len(piece)):
            found.setdefault(piece[:length], []).append((number, piece[length]))
    return {beginning: Starting(*torch.tensor(pairs, device=device).unbind(1)) for beginning, pairs in found.items()}


def _whole(tokens: Sequence[bytes], text: bytes, place: int, longest: int) -> list[int]:
    """The tokens that the text goes on with at a place, whole."""
    rest = text[place:place + longest]
    return [number for number, piece in enumerate(tokens) if piece and rest.startswith(piece)]


def _chosen(found: Starting, prefix: tuple[int, ...], before: bytes, tokens: Sequence[bytes], encode: Encode) -> Starting:
    """Those that the encoder would choose after the prefix."""
    kept = torch.tensor([tuple(encode(before + tokens[token])) == (*prefix, token) for token in found.ids.tolist()],
                        dtype=torch.bool, device=found.ids.device)
    return Starting(found.ids[kept], found.bytes[kept])


def _continued(model: nn.Module, reached: dict[tuple[int, ...], float], start: Sequence[int], batch: int, vocab: int,
               device: torch.device) -> list[tuple[tuple[int, ...], float, Tensor]]:
    """(sequence, its probability, the probabilities of the token after it) of every sequence; equally long ones together."""
    found = []
    for _, group in groupby(sorted(reached, key=len), key=len):
        alike = list(group)
        for first in range(0, len(alike), batch):
            rows = alike[first:first + batch]
            logits_SV = model(torch.tensor([[*start, *row] for row in rows], device=device))[:, -1].double()
            if logits_SV.shape[1] != vocab:
                raise ValueError(f"every token of the model has its bytes: got {vocab} for {logits_SV.shape[1]} logits; "
                                 "give b'' for tokens that stand for none")
            found += [(row, reached[row], next_V) for row, next_V in zip(rows, logits_SV.softmax(-1), strict=True)]
    return found
