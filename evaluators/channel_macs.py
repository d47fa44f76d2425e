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
    return float(module.chosen(probability).sum()) * 3.0 * float(module.gate[0].numel())


def _hidden_mixture(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Three matrices over the active channels, called by their weights, and the fusion of groups."""
    hidden, width = module.up.weight.shape
    size = (width - module.shared) // module.groups
    active = module.shared + module.top_k * size
    return float(_tokens(inputs) * (3 * active * hidden + module.groups**2 * size))


def _table(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """A vector per chunk."""
    return float(len(module.table) * output.numel())


def _fixed_graph(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """The whole graph in all steps but the first; the projections are modules of their own."""
    return float(_tokens(inputs) * (module.steps - 1) * module.graph.numel())


def _head_networks(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Scores and values over the visible pairs, and both matrices of every head's network."""
    batch, length = inputs[0].shape[:2]
    pairs = length * (length + 1) // 2
    networks = length * (module.head_up.numel() + module.head_down.numel())
    return float(batch * (2 * module.heads * module.head_dim * pairs + networks))


FORMULAS = {
    "ThresholdExperts": _threshold_experts,
    "HiddenMixture": _hidden_mixture,
    "FixedGraphNetwork": _fixed_graph,
    "TableLookup": _table,
    "HeadNetworks": _head_networks,
}
