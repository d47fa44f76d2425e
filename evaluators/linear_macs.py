"""Multiply-adds that modules of linear attention and its kin execute outside their children, for `macs_thop`.

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


def _recurrence(batch: int, length: int, heads: int, keys: int, values: int, chunk: int) -> float:
    """Scores, what they read, what chunks add to the state, and what they read of it."""
    chunks = math.ceil(length / chunk)
    size = math.ceil(length / chunks)
    return float(batch * chunks * heads * (size * size * (keys + values) + 2 * size * keys * values))


def _gated(batch: int, length: int, heads: int, keys: int, values: int, chunk: int) -> float:
    """The same, with scores of the right halves of ever smaller stretches with the left ones."""
    size = min(chunk, 2 ** math.ceil(math.log2(length)))
    pairs = sum(size // (2 * half) * half * half for half in (2**i for i in range(size.bit_length() - 1)))
    return float(batch * math.ceil(length / size) * heads * (pairs * (keys + values) + 2 * size * keys * values))


def _features(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    columns = module.value_dim + int(module.normalise)
    return _recurrence(*_sizes(inputs), module.heads, module.num_features, columns, module.chunk)


def _features_both_ways(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    columns = module.value_dim + int(module.normalise)
    return float(2 * math.prod(_sizes(inputs)) * module.heads * module.num_features * columns)


def _decayed(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    rows = module.key_dim if module.frequency is None else 2 * module.key_dim
    return _recurrence(*_sizes(inputs), module.heads, rows, module.value_dim, module.chunk)


def _prefix(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    scores = float(math.prod(_sizes(inputs)) * module.query.numel())
    return scores + _recurrence(*_sizes(inputs), module.heads, 1, module.value_dim + 1, module.chunk)


def _gated_linear(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return _gated(*_sizes(inputs), module.heads, module.key_dim, module.value_dim, module.chunk)


def _liger(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    pairs = sum(min(i + 1, module.window) for i in range(length))
    gated = _gated(batch, length, module.heads, module.head_dim, module.head_dim, module.chunk)
    return gated + float(2 * batch * module.heads * module.head_dim * pairs)


def _keys_alone(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    pairs = length * length if module.bidirectional else length * (length + 1) // 2
    waves = 0 if module.places is None else module.places.numel()
    return float(2 * batch * module.heads * module.head_dim * pairs + waves * length + waves // 2 * length * length)


def _toeplitz(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Random features, and three transforms per feature, head and column: of each sequence, back, and of the weights."""
    batch, length = _sizes(inputs)
    points = 2 * (length if module.ahead is None else 2 * length - 1)
    columns = module.features * module.heads * (module.head_dim + 1)
    features = 2 * batch * length * module.heads * module.features * module.head_dim
    return float(features + 1.25 * points * math.log2(points) * columns * (2 * batch + 1))


def _agents(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    taps = 0 if module.taps is None else module.taps[0].numel()
    return float(math.prod(_sizes(inputs)) * module.query.out_features * (4 * module.side**2 + taps))


def _super_tokens(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid, width = inputs[0].shape
    sides = [min(module.cell, size) for size in grid]
    supers = math.prod(math.ceil(size / side) for size, side in zip(grid, sides, strict=True))
    shares = 9 * supers * math.prod(sides) * (module.iterations * (2 * width + 1) + width)
    return float(batch * (shares + 2 * module.query.out_features * supers * supers))


def _hashes(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    heads, anchors, head_dim = module.anchors.shape
    codes, products = 2 * anchors * (head_dim + module.bits), 2 * module.bits * (head_dim + 1)
    return float(math.prod(_sizes(inputs)) * heads * (codes + products))


def _estimated(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Random features, kernel attention, two convolutions over the estimate, and the chosen pairs."""
    batch, length = _sizes(inputs)
    columns, size = module.decode.out_features, module.head_dim
    cells = min(columns, length)
    chosen = min(cells, max(1, round(module.tokens * cells / length))) * math.ceil(length / cells)
    head = 2 * module.features * (3 * size + 1) + 2 * size * chosen
    return float(batch * length * (module.heads * head + columns * (module.widen.numel() + module.narrow.numel())))


def _sequence(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = _sizes(inputs)
    up, down = ((module.up, module.down) if hasattr(module, "up") else (module.head_up, module.head_down))
    return float(batch * length * (up.numel() // down.shape[0] + down[0].numel()))


def _hidden_states(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """The filters of B, C and dt, writing to the states and reading from them."""
    batch, length = _sizes(inputs)
    return float(batch * length * (module.taps.numel() + 2 * module.taps.shape[0] // 3 * inputs[0].shape[-1]))


def _relu_windows(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid, _ = inputs[0].shape
    rows, columns = (*grid, 1) if len(grid) == 1 else grid
    down, across = (size if module.window is None else -(-size // min(module.window, size)) * min(module.window, size)
                    for size in (rows, columns))
    size, kernel = module.taps.shape[:2]
    return float(batch * down * across * module.heads * size * (2 * size + kernel**2))


def _selective(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """The filter of a scan; a first one is called by its `step`, so it is no module of its own here."""
    taps = module.ssm.taps if hasattr(module, "ssm") else module.taps
    return 0.0 if taps is None else float(math.prod(_sizes(inputs)) * taps.numel())


FORMULAS = {
    "FeatureAttention": _features,
    "BidirectionalFeatureAttention": _features_both_ways,
    "DecayedAttention": _decayed,
    "PrefixAttention": _prefix,
    "GatedLinearAttention": _gated_linear,
    "LigerAttention": _liger,
    "KeyValueMixer": _keys_alone,
    "ToeplitzAttention": _toeplitz,
    "AgentMixer": _agents,
    "SuperTokenMixer": _super_tokens,
    "HashAttention": _hashes,
    "EstimatedAttention": _estimated,
    "SequenceFeedForward": _sequence,
    "HeadFeedForwards": _sequence,
    "SelectiveStateSpace": _selective,
    "ReluAttention": _relu_windows,
    "SelectiveSSM": _selective,
    "HiddenStateMixing": _hidden_states,
    "ToldStates": _hidden_states,
}
