"""Multiply-adds that modules of convolutions, pooling and token MLPs execute outside their children, for `macs_thop`.

Each formula is `(module, inputs, output) -> multiply-adds`, from the shapes of the products that the module's file shows.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["FORMULAS"]


def _tokens(inputs: tuple[Any, ...]) -> int:
    """Of all sequences or grids together."""
    return math.prod(inputs[0].shape[:-1])


def _smaller(inputs: tuple[Any, ...], side: int) -> tuple[int, int]:
    """(batch, squares of `side` x `side` that cover a sequence or a grid); of a sequence, runs of `side` tokens."""
    batch, *grid, _ = inputs[0].shape
    return batch, math.prod(math.ceil(size / side) for size in grid)


def _at_every_token(*names: str) -> Any:
    """Every entry of these weights once per token."""
    def formula(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
        return float(_tokens(inputs) * sum(getattr(module, name).numel() for name in names))

    return formula


def _branches(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(_tokens(inputs) * sum(weight.numel() for weight in module.weights))


def _halving(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() * module.weight[0].numel())


def _filters(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """One filter per channel of what goes out."""
    taps = module.random_taps if hasattr(module, "random_taps") else module.taps
    return float(output.numel() * taps[0].numel())


def _down(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() // output.shape[-1] * module.taps.numel())


def _cross_covariance(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    inner = module.query.out_features
    return float(2 * _tokens(inputs) * inner * inner // module.heads)


def _inception(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, small = _smaller(inputs, module.pool)
    return float(2 * batch * small * small * module.query.out_features)


def _means(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    _, small = _smaller(inputs, module.reduction)
    return float(2 * _tokens(inputs) * small * module.query.out_features)


def _rafts(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, rows, *columns, width = inputs[0].shape
    lines = math.prod(columns) if module.along == "rows" else rows
    return float(2 * batch * lines * width // module.up.shape[-1] * module.up.numel())


def _gate(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, small = _smaller(inputs, 2)
    return float(batch * small * (module.across.numel() + module.along.numel()))


def _token_mlp(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    up = module.up if hasattr(module.up, "numel") else module.token_up
    return float(2 * inputs[0].numel() * up.shape[0])


def _spectrogram(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, frames, features = inputs[0].shape
    halves = sum((frames // side) * (features // side) for side in (2, 4))
    return float(batch * halves * module.taps.numel())


FORMULAS = {
    "FoldedConvolution": _at_every_token("weight"),
    "MultiGroupConvolution": _branches,
    "FusedBottleneck": _at_every_token("weight"),
    "HeadConvolutions": _at_every_token("weight"),
    "SplitTranspose": _at_every_token("taps"),
    "SwishConvolution": _at_every_token("taps"),
    "ChannelSimilarities": _cross_covariance,
    "CrossCovariance": _cross_covariance,
    "InceptionBranches": _inception,
    "AttendedMeans": _means,
    "RaftMixing": _rafts,
    "LongRangeGate": _gate,
    "TokenMixing": _token_mlp,
    "MixerGate": _token_mlp,
    "HalvedGrid": _halving,
    "ThinnedGrid": _filters,
    "RandomFilters2d": _filters,
    "SeparableDown": _down,
    "SeparableSubsampling": _spectrogram,
}
