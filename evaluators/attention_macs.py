"""Multiply-adds that options of softmax attention and its relatives execute outside their children, for `macs_thop`.

Each formula is `(module, inputs, output) -> multiply-adds`, from the shapes of the products that the module's file shows.
Fused attention counts the pairs that see each other; written scores count all, as they are executed.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["FORMULAS"]


def _sizes(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """(sequences, tokens) of a sequence or a grid."""
    batch, *grid, _ = inputs[0].shape
    return batch, math.prod(grid)


def _fused(module: Any, inputs: tuple[Any, ...]) -> float:
    """Scores and values of the visible pairs."""
    batch, length = _sizes(inputs)
    behind = sum(min(i + 1, module.window or length) for i in range(length))
    pairs = 2 * behind - length if getattr(module, "bidirectional", False) else behind
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _heads(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return _fused(module, inputs)


def _cached(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Pairs of a token and what it reads, and once more, all of them, for what is kept where that goes by scores."""
    batch, length = _sizes(inputs)
    whole = min(length, module.limit)
    later = (length - whole) * (module.budget + 1)
    scored = whole * whole + later if module.scored else 0
    return float(batch * module.heads * module.head_dim * (2 * (whole * (whole + 1) // 2 + later) + scored))


def _lines(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Scores and values of the tokens of a frame, of those at a place, or of all, filled-up queries included."""
    batch, length = _sizes(inputs)
    size = length if module.over == "both" else min(module.places, length)
    frames = -(-length // size)
    each = [min(size, length - start) for start in range(0, length, size)]       # tokens that there are of each frame
    pairs = frames * length if module.over == "time" else sum(size * there for there in each)
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _scored(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    inner, keys = module.heads * module.head_dim, module.kv_heads * module.head_dim
    always = 0 if module.persistent_key is None else module.persistent_key.shape[1]
    taps = sum(taps.numel() for taps in (module.query_taps, module.key_taps, module.value_taps) if taps is not None)
    is_masked = length > 1 and not (module.bidirectional and module.window is None)
    mean = length * length * keys if module.shaped and is_masked else 0
    return float(batch * (2 * inner * length * (length + always) + length * taps + mean))


def _offset_factors(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() * module.factors.shape[1])


def _offset_vectors(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Queries and keys times every vector; a single query meets its keys one by one."""
    _, q, k = inputs[:3]
    return float((q.numel() + (k.numel() if q.shape[1] > 1 else 0)) * module.vectors.shape[0])


def _sinusoids(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    _, q, k = inputs[:3]
    new, seen = q.shape[1], k.shape[1]
    distances = seen + new - 1 if module.bidirectional else seen
    return float(q.numel() * distances + q.numel() // new * seen)


def _isomorphic(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    networks = batch * length * (module.up.numel() + module.down.numel())
    written = float(2 * batch * module.heads * module.head_dim * length * length)
    return float(networks + (_fused(module, inputs) if module.threshold is None else written))


def _split(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return _fused(module, inputs) + float(math.prod(_sizes(inputs)) * module.taps.numel())


def _mixing(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    routes = 0 if module.before == 0 else module.own.numel() + module.earlier.numel()
    return _fused(module, inputs) + float(math.prod(_sizes(inputs)) * 2 * routes * module.head_dim)


def _all_pairs(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, tokens = _sizes(inputs)
    return float(2 * batch * module.heads * module.head_dim * tokens * tokens)


def _near_pairs(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """On the sphere: pairs within the radius."""
    if module.radius is None:
        return _all_pairs(module, inputs, output)
    batch, *grid = inputs[0].shape[:-1]
    rows, columns = (*grid, 1)[:2]
    pairs = int((module.measure(rows, columns, inputs[0]) > -math.inf).sum())
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _other_views(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Pairs of tokens of two views; a single token reads itself."""
    batch, tokens = _sizes(inputs)
    sizes = [-(-(n + 1) * tokens // module.views) - -(-n * tokens // module.views) for n in range(module.views)]
    pairs = sum(size * (tokens - size) for size in sizes) if tokens > 1 else 1
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _manhattan(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, tokens = _sizes(inputs)
    rows, columns = (*inputs[0].shape[1:-1], 1)[:2]
    pairs = tokens * (rows + columns) if module.decompose else tokens * tokens
    return float(batch * (2 * module.heads * module.head_dim * pairs + tokens * module.taps.numel()))


def _partial(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, tokens = _sizes(inputs)
    return float(batch * tokens * tokens * (module.query_dim + module.channels))


def _variates(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length, width = inputs[0].shape
    query = module.query.shape[0]
    return float(batch * width * (length * (2 * query + length) + width * (query + length)))


def _conv_projection(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() * module.taps.shape[1])


def _joint(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    padded, query, both = -(-length // module.chunk) * module.chunk, module.scale.shape[1], 2 * module.hidden
    return float(batch * (padded * module.chunk * (query + both) + query * both * (length + padded)))


def _memory(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(math.prod(_sizes(inputs)) * module.taps.numel())


def _cross_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid = inputs[0].shape[:-1]
    tokens = math.prod(grid)
    cross = math.prod(-(-side // module.stride) for side in grid)
    filters = 0 if module.taps is None else cross * module.taps.numel()
    seen = tokens + module.before * cross
    return float(batch * (2 * module.heads * module.head_dim * tokens * seen + filters))


def _merged_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid = inputs[0].shape[:-1]
    tokens = math.prod(grid)
    seen = tokens + (0 if module.scale is None else module.scale.numel())
    return float(batch * 2 * module.query.out_features * tokens * seen)


def _enhancement(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid = inputs[0].shape[:-1]
    merged = math.prod(-(-side // module.stride) for side in grid) if module.merging is not None else 0
    return float(batch * (math.prod(grid) * module.taps.numel() + (merged * module.merging.numel() if merged else 0)))


FORMULAS = {
    "CachingAttention": _cached, "SubsampledAttention": _heads, "SpaceTime": _lines,
    "MergedTokenAttention": _merged_tokens, "MergingEnhancement": _enhancement,
    "ScoredAttention": _scored, "OffsetFactors": _offset_factors, "OffsetVectors": _offset_vectors,
    "SinusoidTerms": _sinusoids, "MixtureOfHeadsAttention": _heads, "IsomorphicAttention": _isomorphic,
    "SplitPaths": _split, "MixingAttention": _mixing, "SkippingAttention": _heads,
    "GatedPositionalAttention": _all_pairs, "QuadratureAttention": _near_pairs, "ManhattanRetention": _manhattan,
    "OtherViews": _other_views,
    "PartialAttention": _partial, "VariateAttention": _variates, "ConvProjection": _conv_projection,
    "JointAttention": _joint, "GatedMemory": _memory, "CrossTokenAttention": _cross_tokens,
}
