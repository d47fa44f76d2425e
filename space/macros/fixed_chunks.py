"""Chunks of a fixed number of tokens, and a decoder that sees one of them at a time.

Legend: B batch, T tokens, L tokens of a chunk, N chunks, P tokens of the prefix, D width, E width of the inner layers.
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

__all__ = ["FixedChunkLayers", "FixedChunks"]


class FixedChunkLayers(nn.Module):
    """Chunks to vectors, inner layers over them, decoder over each chunk behind what the inner layers made of those before.

    Output t tells of token t + 1, so that of a chunk's last token comes from the next chunk's prefix alone. Decoding, the
    decoder begins anew at every chunk; the state keeps the tokens of the chunk that is not yet whole.
    """

    def __init__(self, encoder: Any, inner: Any, decoder: Any, width: int, inner_width: int, block: int,
                 prefix: int):
        super().__init__()
        self.encoder: Any = encoder
        self.inner: Any = inner
        self.decoder: Any = decoder
        self.block, self.prefix = block, prefix
        self.down = nn.Linear(width, inner_width // block, bias=False)
        self.expand = nn.Linear(inner_width, prefix * width)
        self.start = nn.Parameter(torch.empty(inner_width))

    def forward(self, x: Tensor) -> Tensor:
        x_BTD = x.flatten(1, -2)
        whole = x_BTD.shape[1] // self.block * self.block
        context_BNE = self.start.expand(len(x_BTD), 1, -1)
        if whole:
            context_BNE = torch.cat([context_BNE, self.inner(self.embedded(x_BTD[:, :whole]))], 1)
        prefix_BNPD = self.prefixes(context_BNE)
        last_BTD = torch.cat([prefix_BNPD[:, -1], x_BTD[:, whole:]], 1)
        found = [self.decoder(last_BTD)[:, self.prefix - 1:]]
        if whole:
            found.insert(0, self.decoded(prefix_BNPD[:, :-1], x_BTD[:, :whole]))
        return torch.cat(found, 1)[:, 1:].reshape(x.shape)

    def embedded(self, x_BTD: Tensor) -> Tensor:
        """One vector per whole chunk: its tokens through the encoder, each to E / L numbers, side by side. [B, N, E]"""
        x_NLD = self.encoder(x_BTD.reshape(-1, self.block, x_BTD.shape[-1]))
        return self.down(x_NLD).reshape(len(x_BTD), -1, self.start.shape[0])          # type: ignore[no-any-return]

    def prefixes(self, context_BNE: Tensor) -> Tensor:
        """What the decoder reads before the tokens of a chunk. [B, N, P, D]"""
        return self.expand(context_BNE).unflatten(-1, (self.prefix, -1))              # type: ignore[no-any-return]

    def decoded(self, prefix_BNPD: Tensor, x_BTD: Tensor) -> Tensor:
        """Whole chunks, each from the last token of its prefix on to its last token but one. [B, T, D]"""
        batch, chunks = prefix_BNPD.shape[:2]
        tokens_BNLD = x_BTD.reshape(batch, chunks, self.block, -1)[:, :, :-1]
        y_NLD = self.decoder(torch.cat([prefix_BNPD, tokens_BNLD], 2).flatten(0, 1))[:, self.prefix - 1:]
        return y_NLD.reshape(batch, -1, x_BTD.shape[-1])                              # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        first_BPD = self.prefixes(self.start.expand(batch, 1, -1))[:, 0]
        _, decoder = self.decoder.step(first_BPD, initial_state(self.decoder, batch, dtype, device))
        return {"inner": initial_state(self.inner, batch, dtype, device), "decoder": decoder, "chunk": first_BPD[:, :0]}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens: the rest of the open chunk, then whole chunks side by side, then what begins the last."""
        held_BTD = torch.cat([state["chunk"], x_BTD], 1)
        whole = held_BTD.shape[1] // self.block * self.block
        if not whole:
            y_BTD, decoder = self.decoder.step(x_BTD, state["decoder"])
            return y_BTD, {**state, "decoder": decoder, "chunk": held_BTD}
        context_BNE, inner = self.inner.step(self.embedded(held_BTD[:, :whole]), state["inner"])
        prefix_BNPD = self.prefixes(context_BNE)
        found, more = [], self.block - 1 - state["chunk"].shape[1]
        if more:
            found.append(self.decoder.step(x_BTD[:, :more], state["decoder"])[0])
        if whole > self.block:
            found.append(self.decoded(prefix_BNPD[:, :-1], held_BTD[:, self.block:whole]))
        last_BTD = torch.cat([prefix_BNPD[:, -1], held_BTD[:, whole:]], 1)
        y_BTD, decoder = self.decoder.step(last_BTD, initial_state(self.decoder, len(x_BTD), x_BTD.dtype, x_BTD.device))
        found.append(y_BTD[:, self.prefix - 1:])
        return torch.cat(found, 1), {"inner": inner, "decoder": decoder, "chunk": held_BTD[:, whole:]}


@dataclass(frozen=True)
class FixedChunks(Chunker):
    """Block Transformer (Ho et al., 2024): chunks of `block` tokens, and a decoder that never looks beyond one of them.

    Every token of a chunk is taken to E / block numbers by one matrix, and these side by side are the chunk's vector of the
    inner width E (the lookup embedder; the encoder, where there are layers in it, works on one chunk at a time before, and
    may look both ways: the paper's encoder embedder). The inner layers, the block decoder, are causal over chunks. A linear
    map makes `prefix` tokens of their output, behind which the decoder reads the tokens of the next chunk: the prefix
    predicts the first of them. So decoding keeps, for the decoder, at most prefix + block - 1 tokens, and of the past one
    vector per chunk. Before the first chunk stands a learned vector, where the authors begin with a chunk of padding. The
    prefix form of the token decoder alone; their summation and cross-attention are not here. The lookup embedder's own
    table is the stream's embedding times the matrix.
    """

    block: Any = 4
    prefix: Any = 2
    encodes_tokens: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, str]] = {"inner_width": "it is made of the tokens of a chunk, one after the other"}
    proof: ClassVar[str] = "tests/space/test_hierarchy.py -k fixed"
    source: ClassVar[Source] = Source("Block Transformer: Global-to-Local Language Modeling for Fast Inference", 2024,
                                      systems=("S034",))

    def check(self, width: int, inner: int, where: str) -> None:
        require_whole("block", self.block, where)
        require_whole("prefix", self.prefix, where)
        if inner % self.block:
            raise ValueError(f"block must divide the width of the inner layers at {where}: got {self.block} and {inner}; use "
                             f"{-(-inner // self.block) * self.block}")

    def axes(self, width: int, inner: int) -> dict[str, Param]:
        d, e = axis("width", width), axis("inner_width", inner)
        p = axis("prefix", self.prefix)
        return {"down.weight": param(axis("piece", inner // self.block), d), "expand.weight": param(p * d, e),
                "expand.bias": param(p * d, init="zeros"), "start": param(e, init=Init("normal", gain=0.02))}

    def macs(self, width: int, inner: int, tokens: int) -> float:
        whole = tokens // self.block
        return float(width * inner * whole + width * inner * self.prefix * (whole + 1))

    def decode_macs(self, width: int, inner: int) -> float:
        """The mean over the tokens of a chunk, the last of which does it all."""
        return width * inner * (1 + self.prefix) / self.block                          # type: ignore[no-any-return]

    def state_numel(self, width: int, inner: int, tokens: int) -> int:
        return int(width * (tokens % self.block))

    def runs(self, field: str, tokens: int) -> Runs:
        """Next tokens are the mean over those of a chunk."""
        (whole, rest), each = divmod(tokens, self.block), 1 / self.block
        if field == "encoder":
            return Runs(((self.block, whole),), anew=((self.block, each),))
        if field == "inner":
            return Runs(((whole, 1.0),) if whole else (), steps=((whole, each),), keeps=whole)
        size = self.prefix + self.block - 1
        return Runs(((size, whole), (self.prefix + rest, 1.0)), steps=tuple((before, each) for before in range(size)),
                    keeps=self.prefix + rest)

    def build(self, encoder: nn.Module, inner: nn.Module, decoder: nn.Module, width: int, inner_width: int,
              ahead: bool) -> nn.Module:
        return FixedChunkLayers(encoder, inner, decoder, width, inner_width, self.block, self.prefix)
