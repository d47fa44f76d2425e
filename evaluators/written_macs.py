"""Multiply-adds of convolutions and products that modules write out beside their children, for `macs_thop`.

Each formula is `(module, inputs, output) -> multiply-adds`, from the shapes of the products that the module's file shows.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["FORMULAS"]


def _sizes(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """(sequences, tokens) of a sequence or a grid."""
    batch, *grid, _ = inputs[0].shape
    return batch, math.prod(grid)


def _grid(inputs: tuple[Any, ...]) -> list[int]:
    """(height, width); a sequence is one row."""
    sides = list(inputs[0].shape[1:-1])
    return sides if len(sides) == 2 else [1, *sides]


def _convolved(*names: str) -> Any:
    """Filters that every place of the input goes through; an option that is off is None."""
    def formula(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
        filters = (getattr(module, name) for name in names)
        return float(math.prod(_sizes(inputs)) * sum(each.numel() for each in filters if each is not None))
    return formula


def _latent_places(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Latents of an image; a source that is a sequence passes through."""
    return float(output.numel() / output.shape[-1] * module.weight.numel()) if inputs[0].ndim == 4 else 0.0


def _circulant(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """A square matrix per path."""
    return float(inputs[0].numel() * inputs[0].shape[-1] * len(module.bias))


def _clusters(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All pairs of tokens and of a memory, for scores and values."""
    batch, length = _sizes(inputs)
    return float(2 * batch * length * inputs[1]["memory"].shape[1] * module.query.weight.shape[0])


def _pooled(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Scores and values of one query."""
    return float(2 * math.prod(_sizes(inputs)) * module.query.weight.shape[0])


def _tree(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Siblings with each other on every level, absent ones included."""
    batch, nodes = _sizes(inputs)
    pairs = 0
    while nodes > 1:
        parents = math.ceil(nodes / module.fan_out)
        pairs, nodes = pairs + parents * module.fan_out**2, parents
    return float(2 * batch * module.query.weight.shape[0] * pairs)


def _dynamic(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Every place with its own filter of every channel."""
    return float(math.prod(_sizes(inputs)) * module.input.weight.shape[0] * module.kernel**2)


def _interleaved(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All pairs in all windows; what fills up the last ones is projected as well, as children count it."""
    sides = [min(module.window, size) for size in _grid(inputs)]
    places = math.prod(math.ceil(size / side) * side for size, side in zip(_grid(inputs), sides, strict=True))
    return float(2 * inputs[0].shape[0] * module.query.weight.shape[0] * places * math.prod(sides))


def _routed(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All regions with each other, and all pairs of places of a region and of those it chooses."""
    sides = [math.ceil(size / module.regions) for size in _grid(inputs)]
    count = math.prod(math.ceil(size / side) for size, side in zip(_grid(inputs), sides, strict=True))
    pairs = count * min(module.chosen, count) * math.prod(sides) ** 2
    return float(inputs[0].shape[0] * module.query.weight.shape[0] * (count**2 + 2 * pairs))


def _choosing(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Scores and values of all tokens with all, those to come included."""
    batch, length = _sizes(inputs)
    return float(2 * batch * module.heads * module.head_dim * length**2)


def _extraction(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """A matrix, or a weight per channel, for every token of those behind."""
    each = module.width * module.reach if module.matrices is None else module.matrices.numel()
    return float(math.prod(_sizes(inputs)) * each)


FORMULAS = {
    "ChoosingTokens": _choosing,
    "Extraction": _extraction,
    "PlaceScores": _convolved("conv"),
    "WeighedChannels": _convolved("compress", "expand"),
    "MixedAverages": _convolved("first", "second"),
    "FrameConvolution": _convolved("weight"),
    "LatentPlaces": _latent_places,
    "CirculantPaths": _circulant,
    "MemoryClusters": _clusters,
    "PooledMixer": _pooled,
    "TreeAttention": _tree,
    "DynamicFilters": _dynamic,
    "InterleavedWindows": _interleaved,
    "RoutedRegions": _routed,
}
