"""Attention among the places of a frame, or among the frames at a place.

Legend: B batch, T tokens, F frames, N places of a frame, K heads, P head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param
from ..operator import Operator, Source
from .attention import rotate, rotation
from .checks import require_whole
from .gathered import ROTARY, check_even, rotary_projections
from .windows import check_heads, head_size

__all__ = ["SpaceTime", "SpaceTimeAttention", "space_time_order"]

OVER = ("space", "time", "both")
LETTERS = {"S": "space", "T": "time", "F": "both"}


def space_time_order(pattern: str, times: int = 1, depth: int = 1) -> tuple[str, ...]:
    """What each block of a network attends over, for `SpaceTimeAttention(over=...)`.

    pattern: S for space, T for time, F for both, such as "TS" (binary), "TST" (triplet), "STTS" (quadruplet), repeated
    `times`. depth: blocks for each letter: "ST" once with a depth of 6 is the factorised encoder of 12 blocks.

    >>> space_time_order("TS", times=2)
    ('time', 'space', 'time', 'space')
    """
    if not pattern or set(pattern) - set(LETTERS):
        raise ValueError(f"pattern is made of S, T and F: got {pattern!r}; use 'TSST'")
    return tuple(LETTERS[letter] for letter in pattern * times for _ in range(depth))


class SpaceTime(nn.Module):
    """Softmax attention among tokens of one frame ("space"), of one place ("time"), or among all ("both").

    Tokens are frames one after the other, `places` to each; the last frame may lack some. Rotary positions count places in a
    frame, frames, or tokens.
    """

    def __init__(self, width: int, heads: int, head_dim: int, places: int, over: str, rotary: bool, rope_base: float):
        super().__init__()
        self.heads, self.head_dim, self.places, self.over = heads, head_dim, places, over
        self.rotary, self.rope_base = rotary, rope_base
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        size = length if self.over == "both" else min(self.places, length)
        frames = -(-length // size)
        missing = frames * size - length
        parts = [F.pad(project(x_BTD), (0, 0, 0, missing)).view(batch, frames, size, self.heads, self.head_dim)
                 for project in (self.query, self.key, self.value)]
        q, k, v = (part.transpose(1, 2) if self.over == "time" else part for part in parts)
        lines, each = q.shape[1:3]
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))                              # [B lines, each, K, P]
        if self.rotary:
            turn = rotation(0, each, self.head_dim // 2, self.rope_base, x_BTD)
            q, k = rotate(q, *turn), rotate(k, *turn)
        mask = self.there(frames, size, length, x_BTD.device).repeat(batch, 1, 1, 1) if missing else None
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        y = torch.unflatten(y.transpose(1, 2), 0, (batch, lines))
        y_BFNKP = y.transpose(1, 2) if self.over == "time" else y
        y_BTD: Tensor = self.out(y_BFNKP.flatten(1, 2)[:, :length].flatten(2))
        return y_BTD

    def there(self, frames: int, size: int, length: int, device: torch.device) -> Tensor:
        """Which tokens of every line are not filled up, [lines, 1, 1, each]."""
        there_FN = (torch.arange(frames * size, device=device) < length).view(frames, size)
        return (there_FN.T if self.over == "time" else there_FN)[:, None, None]


@dataclass(frozen=True)
class SpaceTimeAttention(Operator):
    """The attention of PredFormer (Tang et al., 2024): over space, over time, or over both.

    places: tokens of a frame; frames follow one another. over: "space", among the places of a frame; "time", among the frames
    at a place; "both", full attention. rotary: positions (Su et al., 2021), counted along what is attended over; the paper
    adds sinusoids to the tokens, which an embedding does. head_dim defaults to width / heads.

    The paper's gated transformer block is `Block(mixer=SpaceTimeAttention(...), channel=SwiGLU())`, with a norm after every
    so many of them, which `StreamNorm` is. Its nine networks are orders of such blocks, `space_time_order`. What is left out
    is the network around them, which embeds patches of several frames and predicts frames.
    """

    heads: Any = 4
    places: Any = 64
    over: Any = "space"
    head_dim: Any = None
    rotary: Any = False
    rope_base: float = 10000.0
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners", 2024,
                                      options=("S283",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        return ROTARY if self.rotary else {}

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("places", self.places, where)
        if self.over not in OVER:
            raise ValueError(f"{unknown('over', self.over, OVER)} (at {where})")
        check_even(head_size(self, width), where)

    def axes(self, width: int) -> dict[str, Param]:
        return rotary_projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        return SpaceTime(width, self.heads, head_size(self, width), self.places, self.over, bool(self.rotary), self.rope_base)

    def macs(self, width: int, length: int) -> float:
        """Projections, and scores and values of all pairs on all lines, filled-up tokens included."""
        size = length if self.over == "both" else min(self.places, length)
        frames = -(-length // size)
        pairs = frames * size * (frames if self.over == "time" else size)
        return float(length * self.matrix_numel(width) + 2 * self.heads * head_size(self, width) * pairs)

    def decode_macs(self, width: int, length: int) -> float:
        """A whole pass: there is no next token where frames look both ways."""
        return self.macs(width, length + 1)
