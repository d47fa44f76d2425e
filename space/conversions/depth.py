"""Trained networks with layers more, which pass the stream through or say it twice, and with layers less.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..equivalents.comparing import in_double, with_weights
from ..operator import Source
from ..plan import Block
from .converting import Tensors, built_from, from_paper

if TYPE_CHECKING:
    from ..model import SequenceModel

__all__ = ["appended_layers", "arranged", "below", "block_importance", "closest_span", "dropped_layers", "duplicated_layers",
           "injected_layers", "is_last", "layer_streams", "rearranged", "silenced"]

LAST = ("out", "down", "project")             # what operators call the matrix that writes to the stream
PROOF = "tests/space/test_conversions_depth.py -k {}"


def rearranged(model: SequenceModel, order: Sequence[int], silent: Collection[int] = ()) -> SequenceModel:
    """The network with layers `order` of the trained one: left out, moved, or several copies of one.

    silent: places in `order` whose layer is to pass the stream through, bit for bit, until it has learned: the last
    matrices of its operators start at zero. Gradients reach these, and through them later everything else.

    Raises ValueError for a layer that is not there, for a silent layer that no zeros make silent, as with a norm behind the
    sum, and where layers change the width of the stream.
    """
    plan: Any = built_from(model).plan
    if not all(0 <= i < len(plan.layers) for i in order):
        raise ValueError(f"layers are counted from 0 to {len(plan.layers) - 1}: got {list(order)}")
    if any(item.out(plan.width, 8) != (plan.width, 8) for item in plan.layers):
        raise ValueError("layers change places where the stream keeps its width and length: got a body that changes them")
    weights = arranged(in_double(model), order)
    for place in silent:
        prefix = f"layers.{place}."
        weights |= {f"{prefix}{key}": tensor
                    for key, tensor in silenced(plan.layers[order[place]], below(weights, prefix)).items()}
    made = with_weights(plan, {"body": tuple(plan.layers[i] for i in order)}, weights, model)
    for place in silent:
        _check_passes(made, place)
    return made


def arranged(weights: Tensors, order: Sequence[int]) -> Tensors:
    """A network's weights with its layers in another order."""
    found = {name: tensor for name, tensor in weights.items() if not name.startswith("layers.")}
    for place, i in enumerate(order):
        found |= {f"layers.{place}.{key}": tensor for key, tensor in below(weights, f"layers.{i}.").items()}
    return found


def below(weights: Tensors, prefix: str) -> Tensors:
    """The weights whose names start so, without that start."""
    return {name[len(prefix):]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def silenced(item: Any, weights: Tensors) -> Tensors:
    """Weights of a block whose operators give zeros: their last matrices and its shifts are zero.

    Raises ValueError for an item that is no block, or an operator whose last matrix is not known.
    """
    found = dict(weights)
    for name, op in item.sublayers() if isinstance(item, Block) else [("", item)]:
        prefix = f"{name}.op."
        last = [key for key in weights if key.startswith(prefix) and is_last(key[len(prefix):])]
        if not last:
            raise ValueError(f"a layer passes the stream through when its last matrices are zero: got {type(op).__name__}, "
                             f"which has none called {', '.join(LAST)}")
        found |= {key: torch.zeros_like(weights[key]) for key in last}
    return found


def is_last(key: str) -> bool:
    """Whether an operator's parameter is what it writes to the stream with."""
    return key in {f"{name}.{kind}" for name in LAST for kind in ("weight", "bias")}


@torch.no_grad()
def _check_passes(made: SequenceModel, place: int) -> None:
    width = made.plan.width
    like = next(made.parameters())
    x_BTD = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(0)).to(like)
    layer, was_training = made.layers[place], made.training
    y_BTD = layer.eval()(x_BTD)
    made.train(was_training)
    if not torch.equal(y_BTD, x_BTD):
        raise ValueError(f"zeros in the last matrices make a layer pass the stream through at layers[{place}]: got another "
                         f"stream out of {made.plan.layers[place]!r}; use placement='pre' and Add(), without shifts behind")


@from_paper(Source("Transformer Layer Injection: A Novel Approach for Efficient Upscaling of Large Language Models", 2024,
                   systems=("S070",)), PROOF.format("injected"))
def injected_layers(model: SequenceModel, every: int) -> SequenceModel:
    """A new layer behind every `every` layers, which passes the stream through (TLI, Vo, 2024), for training on.

    It is a copy of the layer before it with its last matrices at zero, the reading of "minimal disruption" taken here, as
    in LLaMA Pro (Wu et al., 2024): outputs stay, bit for bit. Raises ValueError for fewer layers than `every`.
    """
    count = len(built_from(model).plan.layers)
    if not 1 <= every <= count:
        raise ValueError(f"every is at least 1 and at most the number of layers: got {every} and {count}")
    order: list[int] = []
    silent: list[int] = []
    for i in range(count):
        order.append(i)
        if (i + 1) % every == 0:
            silent.append(len(order))
            order.append(i)
    return rearranged(model, order, silent)


@from_paper(Source("SANA 1.5: Efficient Scaling of Training-Time and Inference-Time Compute in Linear Diffusion Transformer",
                   2025, options=("S083",)), PROOF.format("appended"))
def appended_layers(model: SequenceModel, count: int, without: int = 0) -> SequenceModel:
    """`count` new layers at the end, which pass the stream through (SANA-1.5, Xie et al., 2025).

    They are copies of the last layer with their last matrices at zero. without: how many layers are taken off the end
    before, since those are tied most closely to what came out of the smaller network (2 in the paper); then outputs move.
    """
    layers = len(built_from(model).plan.layers)
    if count < 1 or not 0 <= without < layers:
        raise ValueError(f"one new layer at least, and one old one stays: got count={count}, without={without} of {layers}")
    kept = layers - without
    return rearranged(model, [*range(kept), *[kept - 1] * count], range(kept, kept + count))


@from_paper(Source("Yi: Open Foundation Models by 01.AI", 2024, systems=("S041",)), PROOF.format("duplicated"))
def duplicated_layers(model: SequenceModel, first: int, last: int) -> SequenceModel:
    """Layers first, ..., last - 1 twice, the second time behind the first, as they are (Yi, Young et al., 2024).

    Yi repeats the middle layers, whose inputs and outputs are most alike (`block_importance`), and trains on: 16 of 32. The
    depth up-scaling of SOLAR (Kim et al., 2023), two copies without the last m layers of one and the first m of the other,
    is `duplicated_layers(model, m, layers - m)`. `presets.llama` is the architecture of both.
    """
    layers = len(built_from(model).plan.layers)
    _check_span(first, last, layers)
    return rearranged(model, [*range(last), *range(first, layers)])


def dropped_layers(model: SequenceModel, first: int, last: int) -> SequenceModel:
    """The trained network without layers first, ..., last - 1; `linear_span` puts a matrix in their place."""
    layers = len(built_from(model).plan.layers)
    _check_span(first, last, layers)
    return rearranged(model, [*range(first), *range(last, layers)])


def _check_span(first: int, last: int, layers: int) -> None:
    if not 0 <= first < last <= layers:
        raise ValueError(f"a span is first < last, counted from 0 to {layers}: got {first} and {last}")


@torch.no_grad()
def layer_streams(model: SequenceModel, inputs: Tensor) -> list[Tensor]:
    """What reaches every layer, and last what leaves them, in evaluation mode: [B, T, D] each.

    Raises ValueError for a body that runs more than once.
    """
    if model.times > 1:
        raise ValueError(f"a stream is read where every layer runs once: got a body that runs {model.times} times")
    found: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in model.layers]
    was_training = model.training
    try:
        found.append(model.eval().run(model.embed(inputs)))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return [x.flatten(1, -2) for x in found]


def block_importance(model: SequenceModel, inputs: Tensor) -> list[float]:
    """Of every layer, 1 - the cosine of what reaches and what leaves it, mean over tokens: small where it changes little.

    The measure by which SANA-1.5 drops layers, Yi repeats them, and ShortGPT (Men et al., 2024) named them.
    """
    streams = layer_streams(model, inputs)
    return [_distance(x, y) for x, y in zip(streams, streams[1:], strict=False)]


def closest_span(model: SequenceModel, inputs: Tensor, length: int, first: int = 0) -> tuple[int, int]:
    """(first, last) of the `length` layers in a row whose input and output are most alike; of equals the earliest.

    first: where the span may start at the earliest.
    """
    streams = layer_streams(model, inputs)
    if not 1 <= length <= len(streams) - 1 - first:
        raise ValueError(f"a span of layers fits into the body: got {length} from layer {first} of {len(streams) - 1}")
    starts = range(first, len(streams) - length)
    best = min(starts, key=lambda i: _distance(streams[i], streams[i + length]))
    return best, best + length


def _distance(x_BTD: Tensor, y_BTD: Tensor) -> float:
    return float(1 - F.cosine_similarity(x_BTD.double(), y_BTD.double(), dim=-1).mean())
