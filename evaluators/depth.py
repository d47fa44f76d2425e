"""What trains layers that tokens or sequences pass by, or leave early: losses beside the task's.

All of them run the model once, as it is trained, and give gradients to whatever has `requires_grad`. A trunk stays as it
was where its parameters are frozen:

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters." in name)          # Balcony: exits alone
        parameter.requires_grad_(".router." in name)            # Router-Tuning: routers alone
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..space.macros.exits import ExitLayers
from ..space.macros.gated import GatedLayers
from ..space.macros.latent_reasoning import ReasoningLayers
from ..space.macros.multi_rate import MultiRateLayers
from ..space.macros.routed import RoutedLayers
from ..space.macros.routing import count_of, picked

__all__ = ["distillation_of", "every_exit", "exit_distillation", "exit_logits", "exit_loss", "halting_loss", "halting_of",
           "mean_gate", "modules_of", "rate_loss", "reasoning_logits", "replaced", "routing_loss"]


def exit_logits(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The logits of every exit of the model's one `EarlyExit` or `MultiRate`, and last of the whole depth, from one pass.

    What follows the layers with exits sees all exits as one larger batch.
    """
    return every_exit(model, inputs)[0]


def exit_loss(model: nn.Module, task: Any, batch: Any) -> Tensor:
    """The mean of the task's losses at all exits and at the whole depth (aligned training, Elbayad et al., 2020)."""
    losses = [task.loss_of(logits, batch) for logits in exit_logits(model, batch.inputs)]
    return torch.stack(losses).mean()


def exit_distillation(model: nn.Module, inputs: Tensor) -> Tensor:
    """The mean divergence in nats of the exits' predictions from those of the whole depth (Jamialahmadi et al., 2025).

    The whole depth is the teacher and gets no gradient from it.
    """
    return distillation_of(exit_logits(model, inputs))


def distillation_of(logits: list[Tensor]) -> Tensor:
    """The same of the logits of every exit and the whole depth."""
    *exits, whole = logits
    teacher = F.log_softmax(whole.detach(), -1).flatten(0, -2)
    found = [F.kl_div(F.log_softmax(logits, -1).flatten(0, -2), teacher, reduction="batchmean", log_target=True)
             for logits in exits]
    return torch.stack(found).mean()


def halting_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the halting scores with the correctness oracle (Elbayad et al., 2020, the geometric form).

    The oracle leaves at the first exit whose most likely answer is right. An exit before that should not halt, that exit
    should, and later ones do not count; where no exit is right none should halt. Logits [B, C] of a classifier are judged by
    the mean of a sequence's scores, which is the score of its mean. The logits themselves get no gradient.
    """
    return halting_of(*every_exit(model, inputs), targets)


def halting_of(logits: list[Tensor], scores: list[Tensor], targets: Tensor) -> Tensor:
    """The same of the logits of every exit and the whole depth, and of the scores of the exits."""
    losses, pending = [], torch.ones_like(targets, dtype=torch.bool)
    for exit_, score in zip(logits[:-1], scores, strict=True):
        right = exit_.detach().argmax(-1) == targets
        said = score.squeeze(-1) if targets.ndim == 2 else score.flatten(1).mean(1)
        each = F.binary_cross_entropy_with_logits(said, right.to(said.dtype), reduction="none")
        losses.append((each * pending).sum())
        pending = pending & ~right
    return torch.stack(losses).sum() / targets.numel()


def routing_loss(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and how far the scores of `Routed` layers are from telling the chosen tokens by their sign.

    Binary cross-entropy of every score with membership in the top `capacity` (Raposo et al., 2024); so `choose="threshold"`
    comes to choose what "top_k" does. Its gradient reaches the layers before as the scores do. Routes within frames have no
    threshold, and no part in it.
    """
    losses: list[Tensor] = []

    def compare(router: nn.Module, _: Any, score: Tensor) -> None:
        score_BT = score.squeeze(-1)
        places_BK = picked(score_BT.detach(), count_of(shares[router], score_BT.shape[1]))
        member_BT = torch.zeros_like(score_BT).scatter(1, places_BK, 1.0)
        losses.append(F.binary_cross_entropy_with_logits(score_BT, member_BT))

    shares = {m.router: m.capacity for m in modules_of(model, RoutedLayers, "Routed")}
    hooks = [router.register_forward_hook(compare) for router in shares]
    try:
        logits = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.stack(losses).mean()


def mean_gate(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the mean probability of the gates of `GatedDepth` to be open: the expected share of active layers.

    The loss of I3D (Peng et al., 2023) is the task's plus a multiple of that mean.
    """
    found: list[Tensor] = []

    def gated(module: GatedLayers) -> Any:
        def run(layer: nn.Module, x: Tensor, score_B: Tensor) -> Tensor:
            found.append(torch.sigmoid(score_B))
            return GatedLayers.gated(module, layer, x, score_B)
        return run

    with replaced(modules_of(model, GatedLayers, "GatedDepth"), "gated", gated):
        logits = model(inputs)
    return logits, torch.stack(found).mean()


def rate_loss(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the mean squared difference of the faster stream of the model's `MultiRate` layers from the slower one
    `rate` times as deep after the last exit, or at the end where it ends before (Bhendawade et al., 2025). The slower stream
    is the teacher and gets no gradient from it.
    """
    losses: list[Tensor] = []

    def compare(module: MultiRateLayers) -> Any:
        def run(x: Tensor) -> Tensor:
            slow, fast = module.both(x)
            for index, each in enumerate(fast):
                start = max(depth for depth in (0, *module.depths) if depth <= index)
                deep = min(start + round(module.rate * (index + 1 - start)), len(slow) - 1)
                losses.append((each - slow[deep].detach()).square().mean())
            return slow[-1]
        return run

    with replaced(modules_of(model, MultiRateLayers, "MultiRate"), "forward", compare):
        logits = model(inputs)
    return logits, torch.stack(losses).mean()


def reasoning_logits(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The logits of the block before the first round and of every round of the model's one `LatentReasoning`.

    What follows sees all of them as one larger batch. The paper gives each round a task of its own (Dai et al., 2025).
    """
    layers = modules_of(model, ReasoningLayers, "LatentReasoning")
    if len(layers) > 1:
        raise ValueError(f"rounds are told apart for one LatentReasoning in a model: got {len(layers)}; leave one")
    with replaced(layers, "forward", lambda module: lambda x: torch.cat(module.every(x))):
        logits = model(inputs)
    return list(logits.split(len(inputs)))


def every_exit(model: nn.Module, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of all exits and the whole depth, and the scores of the exits."""
    layers = modules_of(model, (ExitLayers, MultiRateLayers), "EarlyExit")
    if len(layers) > 1:
        raise ValueError(f"exits are told apart for one EarlyExit or MultiRate in a model: got {len(layers)}; leave one")
    kept: list[Tensor] = []

    def all_exits(module: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            outputs, scores = module.every(x)
            kept.extend(scores)
            return torch.cat(outputs)
        return run

    with replaced(layers, "forward", all_exits):
        logits = model(inputs)
    return list(logits.split(len(inputs))), kept


def modules_of(model: nn.Module, kind: type | tuple[type, ...], macro: str) -> list[Any]:
    """The modules of a kind in a model. Raises ValueError where there are none."""
    found = [module for module in model.modules() if isinstance(module, kind)]
    if not found:
        raise ValueError(f"this is about {macro} in a model: got none in {type(model).__name__}; put one into the body")
    return found


@contextmanager
def replaced(modules: list[Any], name: str, method: Any) -> Iterator[None]:
    """While it lasts, `name` of every module is what `method(module)` makes."""
    for module in modules:
        setattr(module, name, method(module))
    try:
        yield
    finally:
        for module in modules:
            delattr(module, name)
