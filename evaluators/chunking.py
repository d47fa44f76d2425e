"""What trains chunks whose boundaries are learned: a loss beside the task's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..space.macros.dynamic_chunks import DynamicChunkLayers
from ..space.macros.routing import compacted
from .depth import modules_of, replaced

__all__ = ["ratio_loss"]


def ratio_loss(model: nn.Module, inputs: Tensor, ratio: float | tuple[float, ...] | None = None) -> tuple[Tensor, Tensor]:
    """The logits, and how far chunks of `DynamicChunks` are from the length they are to have (Hwang et al., 2025).

    N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)) of every such layer, added up, where F is the share of tokens at which a
    chunk begins, G the mean of their chances p, both over the tokens of the batch, and N the tokens per chunk; 1 at
    F = G = 1 / N. F has no gradient. The loss of the paper is the task's plus 0.03 times this. Inside another hierarchy the
    tokens are its chunks, without those that fill up shorter sequences.

    ratio: N of every layer in the order of the model, outer before inner; default what the layers declare.

    Raises ValueError for a model without such layers, and for a number of ratios that is not theirs.
    """
    layers = modules_of(model, DynamicChunkLayers, "DynamicChunks")
    targets = _targets(layers, ratio)
    outer = {below: layer for layer in layers for below in layer.inner.modules() if isinstance(below, DynamicChunkLayers)}
    real: dict[nn.Module, Tensor] = {}
    losses: list[Tensor] = []

    def measured(layer: DynamicChunkLayers) -> Any:
        def run(x_BTD: Tensor, key_B1D: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
            found = DynamicChunkLayers.boundaries(layer, x_BTD, key_B1D)
            chance_BT, begins_BT, _ = found
            counts_BT = real[outer[layer]] if layer in outer else torch.ones_like(begins_BT)
            losses.append(_far_from(targets[layer], begins_BT[counts_BT], chance_BT[counts_BT]))
            places_BK, begins_BK = compacted(begins_BT)
            real[layer] = begins_BK & counts_BT.gather(1, places_BK)
            return found
        return run

    with replaced(layers, "boundaries", measured):
        logits = model(inputs)
    return logits, torch.stack(losses).sum()


def _far_from(ratio: float, begins_T: Tensor, chance_T: Tensor) -> Tensor:
    share, chance = begins_T.to(chance_T.dtype).mean(), chance_T.mean()
    return ratio / (ratio - 1) * ((ratio - 1) * share * chance + (1 - share) * (1 - chance))


def _targets(layers: list[Any], ratio: float | tuple[float, ...] | None) -> dict[nn.Module, float]:
    wanted = [layer.ratio for layer in layers] if ratio is None else (
        list(ratio) if isinstance(ratio, tuple) else [ratio] * len(layers))
    if len(wanted) != len(layers) or not all(n > 1 for n in wanted):
        raise ValueError(f"a ratio above 1 for each of the {len(layers)} layers with dynamic chunks: got {ratio!r}")
    return dict(zip(layers, wanted, strict=True))
