"""New operators in the places of a trained network's own, each taught what the old one gave there.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..space.conversions import inherited
from ..space.conversions.converting import from_paper
from ..space.conversions.depth import is_last
from ..space.operator import Source
from ..space.plan import Block

if TYPE_CHECKING:
    from ..space.architecture import Architecture
    from ..space.model import SequenceModel

__all__ = ["Grafted", "grafted"]

LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


class Grafted(NamedTuple):
    """`errors`: of every new operator, by its name, how far its outputs are from the old one's: the mean square of the
    difference over the mean square of what the old one gave. `before`: the same when it was drawn."""

    model: SequenceModel
    errors: dict[str, float]
    before: dict[str, float]


@from_paper(Source("Exploring Diffusion Transformer Designs via Grafting", 2025, options=("S074",)),
            "tests/evaluators/test_grafting.py -k grafted")
def grafted(model: SequenceModel, architecture: Architecture, inputs: Tensor, steps: int = 200, lr: float = 1e-3,
            loss: str | Mapping[str, str] = "l2", batch: int = 16, seed: int = 0) -> Grafted:
    """A network of `architecture`, a body like the trained one's with other operators in places, that starts near it
    (Chandrasegaran et al., 2025).

    Every new operator learns alone, by AdamW, to give what the old one gave for the same inputs: those that reached it in
    the trained network, on the sequences or images of `inputs`, the last eighth of which is kept for the errors. Where the
    new one may start from the old one's weights it does (`inherited`), else as it is drawn from `seed`. What is to follow is
    a short training of the whole, `train`. Errors say how much a place minds an operator, at a fraction of a training.

    Args:
        steps: of each operator, on `batch` rows of inputs each. lr: falls to 0 by a cosine.
        loss: "l2", "l1" or "huber"; or one per sublayer, as in {"mixer": "l1", "channel": "l2"}: the paper takes that which
            suits how widely activations are spread.

    Restructuring that puts blocks of a row side by side, and the diffusion transformers that the paper edits, are left out.

    Raises ValueError for a body that is no row of blocks as long as the trained one's, another width or other norms, or a
    loss that is not known, or fewer than two inputs.
    """
    losses = {name: loss if isinstance(loss, str) else loss[name] for name in ("mixer", "channel")}
    unknown = sorted(set(losses.values()) - set(LOSSES))
    if unknown:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}: got {unknown[0]!r}")
    if len(inputs) < 2:
        raise ValueError(f"some inputs are learned from and some are kept for the errors: got {len(inputs)}; give 2 or more")
    places = _new_places(model, architecture)
    made, fresh = inherited(model, architecture, seed).to(inputs.device), architecture.build(seed)
    errors, before = {}, {}
    for name in places:
        op, old = made.get_submodule(name), model.get_submodule(name)
        if _is_silent(op):
            op.load_state_dict(fresh.get_submodule(name).state_dict())
        given, wanted = _activations(model, old, inputs)
        kept = max(1, len(given) // 8)
        before[name] = _error(op, given[-kept:], wanted[-kept:])
        _regress(op, given[:-kept], wanted[:-kept], LOSSES[losses[name.split(".")[2]]], steps, lr, batch, seed)
        errors[name] = _error(op, given[-kept:], wanted[-kept:])
    return Grafted(made, errors, before)


def _new_places(model: Any, architecture: Architecture) -> list[str]:
    """The names of the operators that are others. Raises ValueError where more than operators differs."""
    old, new = model.architecture.plan, architecture.plan
    rows = [(a, b) for a, b in zip(old.layers, new.layers, strict=False) if isinstance(a, Block) and isinstance(b, Block)]
    same = len(rows) == len(old.layers) == len(new.layers) and old.width == new.width
    if not same or any((a.norm, a.placement, a.join) != (b.norm, b.placement, b.join) for a, b in rows):
        raise ValueError(f"grafting exchanges operators of a row of blocks: got {len(new.layers)} layers of width "
                         f"{new.width} for {len(old.layers)} of width {old.width}; keep layers, width, norms and joins")
    found = []
    for i, (a, b) in enumerate(rows):
        before, after = dict(a.sublayers()), dict(b.sublayers())
        if set(before) != set(after):
            raise ValueError(f"an operator is exchanged for another at layers[{i}]: got {sorted(before)} and {sorted(after)}")
        found += [f"layers.{i}.{name}.op" for name, op in after.items() if op != before[name]]
    return found


def _is_silent(op: torch.nn.Module) -> bool:
    """Whether nothing was inherited, so that the last matrices were put to zero."""
    last = [p for name, p in op.named_parameters() if is_last(name)]
    return bool(last) and not any(bool(p.any()) for p in last)


@torch.no_grad()
def _activations(model: SequenceModel, op: torch.nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What reaches an operator of the trained network, and what it gives, for all inputs at once."""
    found: list[tuple[Tensor, Tensor]] = []
    hook = op.register_forward_hook(lambda _, given, y: found.append((given[0].detach(), y.detach())))
    was_training = model.training
    try:
        model.eval()(inputs)
    finally:
        hook.remove()
        model.train(was_training)
    return found[0]


def _regress(op: torch.nn.Module, given: Tensor, wanted: Tensor, loss: Any, steps: int, lr: float, batch: int,
             seed: int) -> None:
    """Train one operator alone; losses are of outputs over their root mean square, so that one rate suits all places."""
    generator = torch.Generator().manual_seed(seed)
    scale = wanted.square().mean().sqrt().clamp(min=1e-12)
    optimizer = torch.optim.AdamW([p for p in op.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    op.train()
    for _ in range(steps):
        rows = torch.randint(len(given), (batch,), generator=generator)
        optimizer.zero_grad()
        loss(op(given[rows]) / scale, wanted[rows] / scale).backward()
        optimizer.step()
        schedule.step()
    op.eval()


@torch.no_grad()
def _error(op: torch.nn.Module, given: Tensor, wanted: Tensor) -> float:
    was_training = op.training
    y = op.eval()(given)
    op.train(was_training)
    return float((y - wanted).square().mean() / wanted.square().mean().clamp(min=1e-30))
