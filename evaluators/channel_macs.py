"""Multiply-adds that channel mixers execute outside their children, for `macs_thop`.

Each formula is `(module, inputs, output) -> multiply-adds`, from the shapes of the products that the module's file shows.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FORMULAS"]


def _tokens(inputs: tuple[Any, ...]) -> int:
    return int(inputs[0].numel() // inputs[0].shape[-1])


def _threshold_experts(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Three matrices of each expert that a token took; the router is a module of its own."""
    # Not by calling the router, which would be counted once more.
    probability = (inputs[0] @ module.router.weight.t()).softmax(-1)
    return float(module.chosen(probability).sum()) * 3 * module.gate[0].numel()


def _hidden_mixture(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Three matrices over the active channels, called by their weights, and the fusion of groups."""
    hidden, width = module.up.weight.shape
    size = (width - module.shared) // module.groups
    active = module.shared + module.top_k * size
    return float(_tokens(inputs) * (3 * active * hidden + module.groups**2 * size))


def _tables(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """A vector per chunk of the first table and of the second."""
    read = len(module.first) * module.first.shape[-1] + len(module.second) * module.second.shape[-1]
    return float(_tokens(inputs) * read)


FORMULAS = {
    "ThresholdExperts": _threshold_experts,
    "HiddenMixture": _hidden_mixture,
    "TableFeedForward": _tables,
}
