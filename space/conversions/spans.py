"""Layers of a trained network as one linear map, inside a matrix that is there already.

Legend: N tokens of all sequences, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..equivalents.comparing import TOLERANCE, in_double, with_weights
from ..operator import Source
from ..operators.add import Add
from ..plan import Block
from .converting import Tensors, built_from, from_paper
from .depth import arranged, below, layer_streams

if TYPE_CHECKING:
    from ..model import SequenceModel

__all__ = ["fitted_map", "linear_span", "span_tensors"]

LOSSES = ("l2", "cosine")


@from_paper(Source("ReplaceMe: Network Simplification via Layer Pruning and Linear Transformations", 2025, systems=("S139",)),
            "tests/space/test_conversions_depth.py -k linear_span")
def linear_span(model: SequenceModel, first: int, last: int, inputs: Tensor, loss: str = "l2",
                ridge: float = 0.0) -> SequenceModel:
    """The trained network with layers first, ..., last - 1 as one linear map (ReplaceMe, Shopkhoev et al., 2025).

    With M what the channel mixer of layer first - 1 gives for the tokens of `inputs`, Y the stream it is added to, and X
    what leaves layer last - 1, the map is `T = argmin |M T + Y - X|^2`, and goes into that mixer's last matrix, so that no
    parameter comes in. `closest_span(model, inputs, n, first=1)` is the span that the paper takes; several spans are
    replaced one after another, the last first. The paper's shorter form of "cosine", without Y, is for want of memory.

    Args:
        inputs: a batch to fit on; more tokens than the width, or the map is not determined and the smallest is taken.
        loss: "l2", or "cosine": the mean of 1 - cos(M T + Y, X), minimised from the identity on.
        ridge: alpha of "l2": adds alpha |T|^2, for "cosine" alpha |T - 1|^2.

    Raises ValueError for a span without a layer before it, a layer before it that is no block which adds the output of a
    channel mixer with a last matrix called down, or a loss that is not known.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}: got {loss!r}")
    plan: Any = built_from(model).plan
    _check(plan, first, last)
    map_DD = fitted_map(*span_tensors(model, first, last, inputs), loss, ridge)
    kept = [*range(first), *range(last, len(plan.layers))]
    weights = arranged(in_double(model), kept)
    mixer: Any = model.layers[first - 1].channel
    op, place = mixer.op, f"layers.{first - 1}.channel.op."
    weights |= {f"{place}{key}": tensor for key, tensor in _with_map(op, below(weights, place), map_DD, first).items()}
    return with_weights(plan, {"body": tuple(plan.layers[i] for i in kept)}, weights, model)


@torch.no_grad()
def _with_map(op: Any, weights: Tensors, map_DD: Tensor, first: int) -> Tensors:
    """A channel mixer's weights with a linear map after its last matrix. Raises ValueError where more comes after that."""
    found = dict(weights) | {"down.weight": map_DD.T @ weights["down.weight"]}
    if "down.bias" in weights:
        found["down.bias"] = weights["down.bias"] @ map_DD
    x_BTD = torch.randn(2, 8, len(map_DD), generator=torch.Generator().manual_seed(0), dtype=map_DD.dtype)
    wanted, got = (functional_call(op, given, (x_BTD,)) for given in (weights, found))
    error = (wanted @ map_DD - got).abs().max() / wanted.abs().max().clamp(min=1e-30)
    if not error <= TOLERANCE * map_DD.abs().max().clamp(min=1.0):
        raise ValueError(f"a linear map goes into the last matrix of a channel mixer at layers[{first - 1}].channel: got "
                         f"outputs that differ by {error:.1e}; use MLP or SwiGLU, whose last step is down")
    return found


def _check(plan: Any, first: int, last: int) -> None:
    layers = len(plan.layers)
    if not 1 <= first < last <= layers:
        raise ValueError(f"a span is first < last with a layer before it, counted from 1 to {layers}: got {first} and {last}")
    before = plan.layers[first - 1]
    if not (isinstance(before, Block) and before.placement == "pre" and before.join == Add()):
        raise ValueError(f"a linear map goes into a block that adds what a channel mixer gives at layers[{first - 1}]: got "
                         f"{before!r}; use placement='pre' and Add()")
    if "down.weight" not in before.channel.axes(plan.width):
        raise ValueError(f"a linear map goes into a matrix called down at layers[{first - 1}].channel: got "
                         f"{before.channel!r}; use MLP or SwiGLU")


@torch.no_grad()
def span_tensors(model: SequenceModel, first: int, last: int, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, Y, X), [N, D] in float64: what the channel mixer before the span gives, the stream it is added to, and what
    leaves the span."""
    found: list[Tensor] = []
    mixer: Any = model.layers[first - 1].channel
    hook = mixer.op.register_forward_hook(lambda _, given, y: found.append(y))
    try:
        streams = layer_streams(model, inputs)
    finally:
        hook.remove()
    given, reached, left = (x.flatten(0, -2).to("cpu", torch.float64) for x in (found[0], streams[first], streams[last]))
    return given, reached - given, left


def fitted_map(m_ND: Tensor, y_ND: Tensor, x_ND: Tensor, loss: str, ridge: float = 0.0) -> Tensor:
    """T, [D, D] in float64, with M T + Y nearest X."""
    if loss == "l2":
        return _least_squares(m_ND, x_ND - y_ND, ridge)
    identity = torch.eye(m_ND.shape[1], dtype=torch.float64, device=m_ND.device)
    map_DD = identity.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([map_DD], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = 1 - F.cosine_similarity(m_ND @ map_DD + y_ND, x_ND, dim=-1).mean()
        found = found + ridge * (map_DD - identity).square().sum()
        found.backward()                                                              # type: ignore[no-untyped-call]
        return found

    with torch.enable_grad():
        optimizer.step(closure)                                                       # type: ignore[no-untyped-call]
    return map_DD.detach()


def _least_squares(m_ND: Tensor, target_ND: Tensor, ridge: float) -> Tensor:
    """The smallest of the maps that are best: no entry comes from directions that M never takes."""
    if ridge:
        gram_DD = m_ND.T @ m_ND + ridge * torch.eye(m_ND.shape[1], dtype=m_ND.dtype, device=m_ND.device)
        return torch.linalg.solve(gram_DD, m_ND.T @ target_ND)                       # type: ignore[no-any-return]
    return torch.linalg.pinv(m_ND) @ target_ND                                        # type: ignore[no-any-return]
