"""Optimizers for weights that are shared: only the entries a step touched move, decay and age.

Plain AdamW decays every entry and pushes it along its old momentum at every step, sampled or not; in a supernet
this drifts the entries whose slice is drawn rarely. Here an entry that no subnet of the step used keeps its value
and all its averages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MaskedAdamW", "MaskedOptimizer", "MaskedSGD", "Touch", "clip_gradients", "make_optimizer"]

Touch = Tensor | None   # boolean mask of a parameter's shape, or None for every entry


class MaskedOptimizer(ABC):
    """Moves the touched entries of named parameters.

    Args:
        parameters: by name; names are those of the checkpoint.
        weight_decay: for parameters of two dimensions and more; vectors (gains, gates) are never decayed. Decoupled
            from the gradient (Loshchilov and Hutter, 2019): a step shrinks touched entries by `lr * weight_decay`.
        rates: multipliers of the learning rate by name, 1 where there is none, as rules like muP (Yang et al.,
            2022) set them. They do not multiply the decay.

    Raises:
        ValueError: a rate for an unknown name, or one that is not a positive number.
    """

    def __init__(self, parameters: Mapping[str, Tensor], weight_decay: float = 0.1,
                 rates: Mapping[str, float] | None = None):
        self.parameters = dict(parameters)
        self.weight_decay = weight_decay
        self.rates = dict(rates or {})
        _check_rates(self.rates, self.parameters)

    @torch.no_grad()
    def step(self, lr: float, touched: Mapping[str, Touch] | None = None) -> None:
        """Move what was touched along its gradients, then clear them.

        `touched` maps names to masks; a name that is missing was not touched. Without it every parameter that has a
        gradient is touched as a whole.
        """
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and (touched is None or name in touched):
                mask = None if touched is None else touched[name]
                decay = lr * self.weight_decay if parameter.ndim >= 2 else 0.0
                self._update(name, parameter, parameter.grad, mask, lr * self.rates.get(name, 1.0), decay)
            parameter.grad = None

    @abstractmethod
    def _update(self, name: str, parameter: Tensor, grad: Tensor, mask: Touch, lr: float, decay: float) -> None:
        """Move one parameter; touched entries lose the share `decay` of themselves."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be stored besides the parameters, by "exp_avg:name" and the like."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Update counts of the parameters whose entries all agree."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Restore what `tensors` and `counts` gave; the next step is then the same to the bit."""


@dataclass
class Moments:
    """Running averages of one parameter. `count` is an int while all entries agree, else int32 per entry."""

    mean: Tensor
    square: Tensor
    count: int | Tensor


class MaskedAdamW(MaskedOptimizer):
    """AdamW with per-entry step counts, so that bias correction fits entries met ten times and a thousand times.

    With everything touched it is AdamW (Loshchilov and Hutter, 2019). Other arguments as in `MaskedOptimizer`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, rates: Mapping[str, float] | None = None):
        super().__init__(parameters, weight_decay, rates)
        self.betas, self.eps = betas, eps
        self.moments: dict[str, Moments] = {}

    def _update(self, name: str, parameter: Tensor, grad: Tensor, mask: Touch, lr: float, decay: float) -> None:
        held = self.moments.get(name)
        if held is None:
            held = self.moments[name] = Moments(torch.zeros_like(parameter), torch.zeros_like(parameter), 0)
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
        parameter.mul_(1 - decay).addcdiv_(held.mean, scale, value=-lr / (1 - fast ** held.count))

    def _update_masked(self, parameter: Tensor, grad: Tensor, held: Moments, mask: Touch, lr: float,
                       decay: float) -> None:
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
            parameter.mul_(1 - decay * used)
        parameter.sub_(move, alpha=lr)

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, held in self.moments.items():
            found[f"exp_avg:{name}"] = held.mean
            found[f"exp_avg_sq:{name}"] = held.square
            if not isinstance(held.count, int):
                found[f"count:{name}"] = held.count
        return found

    def counts(self) -> dict[str, int]:
        return {name: held.count for name, held in self.moments.items() if isinstance(held.count, int)}

    def load(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        self.moments = {}
        for key, mean in tensors.items():
            kind, _, name = key.partition(":")
            if kind == "exp_avg":
                place = self.parameters[name].device
                count = counts[name] if name in counts else tensors[f"count:{name}"].to(place, copy=True)
                square = tensors[f"exp_avg_sq:{name}"].to(place, copy=True)
                self.moments[name] = Moments(mean.to(place, copy=True), square, count)


class MaskedSGD(MaskedOptimizer):
    """Gradient descent with momentum; an entry's velocity stands still while nothing touches it.

    With everything touched and no decay it is torch's SGD. Other arguments as in `MaskedOptimizer`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], momentum: float = 0.9, weight_decay: float = 0.1,
                 rates: Mapping[str, float] | None = None):
        super().__init__(parameters, weight_decay, rates)
        self.momentum = momentum
        self.velocities: dict[str, Tensor] = {}

    def _update(self, name: str, parameter: Tensor, grad: Tensor, mask: Touch, lr: float, decay: float) -> None:
        before = self.velocities.get(name)
        velocity = grad.clone() if before is None else grad + self.momentum * before
        if mask is None:
            parameter.mul_(1 - decay).sub_(velocity, alpha=lr)
        else:
            velocity = torch.where(mask, velocity, 0.0 if before is None else before)
            parameter.copy_(torch.where(mask, (1 - decay) * parameter - lr * velocity, parameter))
        self.velocities[name] = velocity

    def tensors(self) -> dict[str, Tensor]:
        return {f"velocity:{name}": velocity for name, velocity in self.velocities.items()}

    def counts(self) -> dict[str, int]:
        return {}

    def load(self, tensors: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        found = {key.partition(":")[2]: t for key, t in tensors.items() if key.startswith("velocity:")}
        self.velocities = {name: t.to(self.parameters[name].device, copy=True) for name, t in found.items()}


OPTIMIZERS: dict[str, type[MaskedAdamW] | type[MaskedSGD]] = {"adamw": MaskedAdamW, "sgd": MaskedSGD}


def make_optimizer(name: str, parameters: Mapping[str, Tensor], weight_decay: float,
                   rates: Mapping[str, float] | None = None) -> MaskedOptimizer:
    """The optimizer called "adamw" or "sgd". Raises ValueError for another name."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}: got {name!r}")
    return OPTIMIZERS[name](parameters, weight_decay=weight_decay, rates=rates)


def clip_gradients(parameters: Iterable[Tensor], most: float | None) -> float:
    """Scale all gradients so that their common norm is at most `most` (None: leave them); returns the norm before."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
    if most is not None and norm > most:
        torch._foreach_mul_(grads, most / (norm + 1e-6))
    return norm


def _check_rates(rates: Mapping[str, float], parameters: Mapping[str, Tensor]) -> None:
    for name, rate in rates.items():
        if name not in parameters:
            raise ValueError(f"rates are multipliers by the names of trained parameters: {name!r} is none; the first "
                             f"are {', '.join(list(parameters)[:3])}")
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"a learning-rate multiplier is a positive number at {name}: got {rate!r}")
