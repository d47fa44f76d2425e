"""AdamW for weights that are shared: only the entries a step touched move, decay and age.

Plain AdamW decays every entry and pushes it along its old momentum at every step, sampled or not; in a
supernet this drifts the entries whose slice is drawn rarely. Here an entry that no subnet of the step used
keeps its value and both moments, and counts its own updates, so that bias correction fits entries that were
met ten times and a thousand times. With everything touched it is AdamW (Loshchilov and Hutter, 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MaskedAdamW", "Touch", "clip_gradients"]

Touch = Tensor | None   # boolean mask of a parameter's shape, or None for every entry


@dataclass
class Moments:
    """Running averages of one parameter. `count` is an int while all entries agree, else int32 per entry."""

    mean: Tensor
    square: Tensor
    count: int | Tensor


class MaskedAdamW:
    """AdamW with per-entry step counts.

    Args:
        parameters: by name; names are those of the checkpoint.
        weight_decay: for parameters of two dimensions and more; vectors (gains, gates) are never decayed.
    """

    def __init__(self, parameters: Mapping[str, Tensor], betas: tuple[float, float] = (0.9, 0.95),
                 eps: float = 1e-8, weight_decay: float = 0.1):
        self.parameters = dict(parameters)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moments: dict[str, Moments] = {}

    @torch.no_grad()
    def step(self, lr: float, touched: Mapping[str, Touch] | None = None) -> None:
        """Move what was touched along its gradients, then clear them.

        `touched` maps names to masks; a name that is missing was not touched. Without it every parameter that
        has a gradient is touched as a whole.
        """
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and (touched is None or name in touched):
                mask = None if touched is None else touched[name]
                self._update(name, parameter, parameter.grad, mask, lr)
            parameter.grad = None

    def _update(self, name: str, parameter: Tensor, grad: Tensor, mask: Touch, lr: float) -> None:
        held = self.moments.get(name)
        if held is None:
            held = self.moments[name] = Moments(torch.zeros_like(parameter), torch.zeros_like(parameter), 0)
        decay = self.weight_decay if parameter.ndim >= 2 else 0.0
        if mask is None and isinstance(held.count, int):
            self._update_whole(parameter, grad, held, lr, decay)
        else:
            self._update_masked(parameter, grad, held, mask, lr, decay)

    def _update_whole(self, parameter: Tensor, grad: Tensor, held: Moments, lr: float, decay: float) -> None:
        assert isinstance(held.count, int)
        held.count += 1
        fast, slow = self.betas
        held.mean.lerp_(grad, 1 - fast)
        held.square.mul_(slow).addcmul_(grad, grad, value=1 - slow)
        scale = (held.square / (1 - slow ** held.count)).sqrt_().add_(self.eps)
        parameter.mul_(1 - lr * decay).addcdiv_(held.mean, scale, value=-lr / (1 - fast ** held.count))

    def _update_masked(self, parameter: Tensor, grad: Tensor, held: Moments, mask: Touch, lr: float,
                       decay: float) -> None:
        """The same for some entries, dense with weights of 0 and 1: gathers would cost more than they save."""
        if isinstance(held.count, int):
            held.count = torch.full(parameter.shape, held.count, dtype=torch.int32, device=parameter.device)
        used = torch.ones_like(parameter) if mask is None else mask.to(parameter.dtype)
        held.count += 1 if mask is None else mask
        fast, slow = self.betas
        held.mean.lerp_(grad, used * (1 - fast))
        held.square.lerp_(grad * grad, used * (1 - slow))
        age = held.count.clamp(min=1).to(parameter.dtype)
        scale = (held.square / (1 - torch.pow(slow, age))).sqrt_().add_(self.eps)
        move = (held.mean / (1 - torch.pow(fast, age))).div_(scale).mul_(used)
        if decay:
            parameter.mul_(1 - (lr * decay) * used)
        parameter.sub_(move, alpha=lr)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored besides the parameters, by "exp_avg:name" and the like."""
        found: dict[str, Tensor] = {}
        for name, held in self.moments.items():
            found[f"exp_avg:{name}"] = held.mean
            found[f"exp_avg_sq:{name}"] = held.square
            if not isinstance(held.count, int):
                found[f"count:{name}"] = held.count
        return found

    def counts(self) -> dict[str, int]:
        """Counts of the parameters whose entries all agree."""
        return {name: held.count for name, held in self.moments.items() if isinstance(held.count, int)}

    def load(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Restore what `tensors` and `counts` gave; the next step is then the same to the bit."""
        self.moments = {}
        for key, mean in tensors.items():
            kind, _, name = key.partition(":")
            if kind == "exp_avg":
                place = self.parameters[name].device
                count = counts[name] if name in counts else tensors[f"count:{name}"].to(place, copy=True)
                square = tensors[f"exp_avg_sq:{name}"].to(place, copy=True)
                self.moments[name] = Moments(mean.to(place, copy=True), square, count)


def clip_gradients(parameters: Iterable[Tensor], most: float) -> float:
    """Scale all gradients so that their common norm is at most `most`; returns the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
    if norm > most:
        torch._foreach_mul_(grads, most / (norm + 1e-6))
    return norm
