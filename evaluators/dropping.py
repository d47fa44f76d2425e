"""What trains the interpreters of `DynamicDrop`: a reward for right answers from few tokens (IA-RED^2, Pan et al., 2021).

Groups are trained one after the other, the first one first: `interpreter_loss(..., group=0)` with every parameter frozen but
`.interpreter.` and the layers of that group, then `group=1` with the first interpreter frozen, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..space.macros.dynamic_drop import DroppingLayers
from .depth import modules_of, replaced

__all__ = ["Dropping", "interpreter_loss"]


class Dropping(NamedTuple):
    """The loss to minimise, the mean reward of the sampled decisions, and the mean share of free tokens that they kept."""

    loss: Tensor
    reward: float
    kept: float


def interpreter_loss(model: nn.Module, task: Any, batch: Any, group: int = -1, wrong: float = 0.5,
                     generator: torch.Generator | None = None) -> Dropping:
    """The task's loss of sampled decisions, plus REINFORCE for the interpreter of one group, by default the last.

    Its decisions u are drawn from Bernoulli(I). The reward is 1 - (kept / free)^2 where the answer is right, else -wrong;
    the baseline is the reward of the most likely decisions; free tokens are those that reach the group. Groups before decide
    as they do in use, those after keep all tokens. Gradients: of the task's loss to the layers, of the policy to this
    interpreter and what comes before it. Targets are classes [B].

    Raises ValueError for a model without `DynamicDrop`, for a group that is not there, and for other targets.
    """
    groups = modules_of(model, DroppingLayers, "DynamicDrop")
    if not -len(groups) <= group < len(groups):
        raise ValueError(f"group is one of {len(groups)} DynamicDrop in the model, from 0: got {group}")
    if batch.targets.ndim != 1:
        raise ValueError(f"rewards are for one class per input: got targets of shape {tuple(batch.targets.shape)}")
    group %= len(groups)
    with torch.no_grad():
        greedy, _, kept_B = _decided(model, groups, group, batch.inputs, lambda I_BF: I_BF > 0.5)
        baseline_B = _reward(greedy, batch.targets, kept_B, wrong)
    logits, chance_B, kept_B = _decided(model, groups, group, batch.inputs, lambda I_BF: _drawn(I_BF, generator))
    reward_B = _reward(logits.detach(), batch.targets, kept_B, wrong)
    policy = -((reward_B - baseline_B) * chance_B).mean()
    return Dropping(task.loss_of(logits, batch) + policy, float(reward_B.mean()), float(kept_B.mean()))


def _drawn(I_BF: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(I_BF.shape, generator=generator).to(I_BF.device) < I_BF


def _reward(logits_BK: Tensor, targets_B: Tensor, kept_B: Tensor, wrong: float) -> Tensor:
    right_B = logits_BK.argmax(-1) == targets_B
    return torch.where(right_B, 1 - kept_B.square(), torch.full_like(kept_B, -wrong))


def _decided(model: nn.Module, groups: list[Any], group: int, inputs: Tensor,
             decide: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with these decisions in one group, the log of their chance, and the share of free tokens kept, per sequence."""
    chances: list[Tensor] = []
    shares: list[Tensor] = []

    def deciding(module: DroppingLayers) -> Any:
        def run(I_BF: Tensor) -> Tensor:
            number = groups.index(module)
            if number < group:
                return I_BF > 0.5
            if number > group:
                return torch.ones_like(I_BF, dtype=torch.bool)
            keep_BF = decide(I_BF.detach())
            likely_BF = torch.where(keep_BF, I_BF, 1 - I_BF)
            chances.append(likely_BF.clamp_min(1e-6).log().sum(-1))
            shares.append(keep_BF.to(I_BF.dtype).mean(-1) if keep_BF.shape[1] else I_BF.new_zeros(len(I_BF)))
            return keep_BF
        return run

    with replaced(groups, "decided", deciding):
        logits = model(inputs)
    return logits, torch.cat(chances), torch.cat(shares)
