"""Multiply-adds that tokenisers of images and the parts of their pyramids execute outside their children, for `macs_thop`.

Each formula is `(module, inputs, output) -> multiply-adds`, from the shapes of the products that the module's file shows.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["FORMULAS"]


def _tokens(inputs: tuple[Any, ...]) -> int:
    """Of all sequences or grids together."""
    return math.prod(inputs[0].shape[:-1])


def _fixed_grid(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(2 * _tokens(inputs) * module.side**2 * module.query.out_features)


def _pooled_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """At every place of the convolution, before the pooling."""
    batch, _, *sides = inputs[0].shape
    return float(batch * math.prod(math.ceil(side / module.stride) for side in sides) * module.weight.numel())


def _tubes(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, _, *sides = inputs[0].shape
    places = math.prod(math.ceil(side / stride) for side, stride in zip(sides, module.stride, strict=True))
    return float(batch * places * module.weight.numel())


def _filtered_grid(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() * module.taps[0].numel())


def _filtered_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Of all tokens but the class."""
    return float(output[:, 1:].numel() * module.taps[0].numel())


def _pooled_volume(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return 0.0 if module.taps is None else float(output.numel() * module.taps[0].numel())


def _pooling_heads(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All pairs of the queries that are left and the pooled keys, of a class token too."""
    batch, *grid, width = inputs[0].shape
    first = int(module.class_token)
    if first:
        rows = module.frames * (module.rows or math.isqrt((grid[0] - 1) // module.frames))
        grid = [rows, (grid[0] - 1) // rows]
    rows, columns = (*grid, 1)[:2]
    stride = 1 if module.key_pool is None else module.key_pool.stride[-1]
    keys = first + module.frames * math.ceil(rows // module.frames / stride) * math.ceil(columns / stride)
    return float(2 * keys * module.query.out_features * output.numel() / width)


def _light_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All pairs of tokens."""
    return float(2 * output.numel() * inputs[0].shape[1])


def _feature_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Features of queries and keys, and values and a one read with and given to them."""
    return float(2 * _tokens(inputs) * len(module.random_features) * (2 * output.shape[-1] + 1))


def _patches(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Filters of the places, where there are any: once for all images."""
    inside = 0 if module.padded else module.kernel - module.patch
    places = math.prod(-(-(side - inside) // module.patch) for side in inputs[0].shape[2:])
    return 0.0 if module.position_taps is None else float(9 * places * output.shape[-1])


def _all_pairs_and_filter(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid, _ = inputs[0].shape
    tokens = math.prod(grid)
    return float(batch * tokens * module.query.out_features * (2 * tokens + module.taps[0].numel()))


FORMULAS: dict[str, Any] = {
    "FixedGridAttention": _fixed_grid,
    "FilteredGrid": _filtered_grid,
    "FilteredTokens": _filtered_tokens,
    "LightTokens": _light_tokens,
    "FeatureTokens": _feature_tokens,
    "ImagePatches": _patches,
    "AttentionAndFilter": _all_pairs_and_filter,
    "PooledVolume": _pooled_volume,
    "PoolingHeads": _pooling_heads,
    "VideoTubes": _tubes,
    "PooledConvolution": _pooled_convolution,
}
