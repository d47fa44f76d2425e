"""How `Hierarchy` cuts a sequence into chunks: what every way to do it says of itself.

    dynamic_chunks   where neighbours differ, learned (H-Net)
    fixed_chunks     every so many tokens (Block Transformer)
    word_chunks      at marked tokens (hierarchical autoregressive transformers)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..axes import Param
from ..operator import Source
from .base import Runs

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Chunker"]


class Chunker:
    """Where chunks begin, how a chunk becomes one vector, and how what the inner layers make of it comes back to tokens.

    A subclass is a frozen dataclass. Its module runs `encoder` and `decoder` at the stream's width and `inner`, over one
    vector per chunk, at a width of its own.

    encodes_tokens: whether next tokens go through the encoder one by one, which then has to be causal; else it works on whole
    chunks. fixed: axes whose entries have a meaning of their own, with the reason. begins_inside: whether a wider inner
    stream begins with the outer one.
    """

    source: ClassVar[Source]
    proof: ClassVar[str] = "tests/space/test_hierarchy.py"
    encodes_tokens: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {}
    begins_inside: ClassVar[bool] = False

    def check(self, width: int, inner: int, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""

    def axes(self, width: int, inner: int) -> dict[str, Param]:
        """Parameters beside those of the layers."""
        return {}

    def macs(self, width: int, inner: int, tokens: int) -> float:
        """Multiply-adds beside those of the layers."""
        return 0.0

    def decode_macs(self, width: int, inner: int) -> float:
        """Those of one more token."""
        return 0.0

    def state_numel(self, width: int, inner: int, tokens: int) -> int:
        """Numbers that decoding keeps beside the states of the layers."""
        return 0

    def runs(self, field: str, tokens: int) -> Runs:
        """How the layers of a field, "encoder", "inner" or "decoder", run over so many tokens."""
        raise TypeError(f"{type(self).__name__} must define runs(field, tokens)")

    def build(self, encoder: nn.Module, inner: nn.Module, decoder: nn.Module, width: int, inner_width: int,
              ahead: bool) -> nn.Module:
        """The module around these layers; ahead: whether one of the inner is not causal."""
        raise TypeError(f"{type(self).__name__} must define build(encoder, inner, decoder, width, inner_width)")
