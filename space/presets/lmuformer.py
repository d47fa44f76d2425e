"""LMUFormer: spoken words by a Legendre memory of the frames, with and without spikes.

LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units (Liu et al., 2024), as published for the
35 words of Speech Commands: convolutions make a token of every frame of 128 mel bands, one layer of memory and
feed-forward follows, and the scores of all tokens are averaged. In the spiking model every activation is a leaky
integrate-and-fire neuron that takes one step a token; its norms come before its neurons, not behind its matrices.
"""

from __future__ import annotations

from typing import Any

from ..architecture import Architecture
from ..choices import choice, integer, repeat
from ..macros.stack import Stack
from ..operator import Source
from ..operators.batchnorm import BatchNorm
from ..operators.frame_tokenizer import FrameTokenizer
from ..operators.identity import Identity
from ..operators.layernorm import NoNorm
from ..operators.lmu import LMU
from ..operators.normed_mlp import NormedMLP
from ..operators.pooled_head import PooledHead
from ..plan import Block
from ..space import Space
from .sizes import at_size, only

__all__ = ["SIZES", "fixed", "space"]

source = Source("LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units", 2024, systems=("S280",))

# width, layers, theta, spikes
SIZES: dict[str, tuple[int, int, int, bool]] = {
    "tiny": (48, 1, 32, False), "speech": (256, 1, 128, False), "tiny-spiking": (48, 1, 32, True),
    "spiking": (256, 1, 128, True)}


def layer(spiking: bool, order: Any = None, theta: Any = 128, ratio: Any = 4) -> Stack:
    """Memory, with a batch norm behind it, then feed-forward with its norms inside."""
    channel = NormedMLP(ratio=ratio, activation="spike", bias=True) if spiking else NormedMLP(
        ratio=ratio, activation="gelu", last=True, bias=True)
    memory = LMU(order=order, theta=theta, spiking=spiking)
    return Stack((Block(mixer=memory, channel=Identity(), norm=BatchNorm(), placement="out"),
                  Block(mixer=Identity(), channel=channel, norm=NoNorm())))


def space(features: int = 128, classes: int = 35, spiking: bool = False) -> Space:
    """Width, depth, and per layer the memory's order and span and the feed-forward size; with or without spikes."""
    searched = layer(spiking, order=choice(16, 32, 64), theta=choice(32, 64, 128), ratio=choice(2, 4))
    return Space(embed=FrameTokenizer(features, spiking=spiking), width=choice(32, 48, 64),
                 body=repeat(searched, times=integer(1, 3)), head=PooledHead(classes, spiking=spiking), norm=NoNorm())


def fixed(size: str = "tiny", features: int = 128, classes: int = 35) -> Architecture:
    """The paper's "speech" or "spiking"; "tiny" and "tiny-spiking" are narrow ones of a shorter memory."""
    width, layers, theta, spiking = at_size(SIZES, size)
    return only(embed=FrameTokenizer(features, spiking=spiking), width=width,
                body=repeat(layer(spiking, theta=theta), times=layers), head=PooledHead(classes, spiking=spiking),
                norm=NoNorm())
