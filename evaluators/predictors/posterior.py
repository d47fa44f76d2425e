"""The parameters of a Gaussian process that are likeliest, with a prior, after what was measured."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["climb", "misfit"]


def climb(loss: Any, start: Tensor, iterations: int) -> Tensor:
    """The parameters where `loss(parameters)` is lowest from `start` on; those met so far where it fails numerically."""
    parameters = start.clone().requires_grad_()
    best, least = start.clone(), float("inf")
    search = torch.optim.LBFGS([parameters], max_iter=iterations, line_search_fn="strong_wolfe", history_size=20)

    def closure() -> Tensor:
        nonlocal best, least
        search.zero_grad()
        value: Tensor = loss(parameters)
        value.backward()                                                             # type: ignore[no-untyped-call]
        if float(value.detach()) < least:
            best, least = parameters.detach().clone(), float(value.detach())
        return value

    # A wild step of the line search may fail: then what was found before stands.
    with contextlib.suppress(torch.linalg.LinAlgError):                              # type: ignore[attr-defined]
        search.step(closure)                                                         # type: ignore[no-untyped-call]
    return best


def misfit(noisy: Tensor, values: Tensor) -> Tensor:
    """Minus the log likelihood, up to a constant. Its slope by the covariance is known, and not differentiated."""
    with torch.no_grad():
        factor = torch.linalg.cholesky(noisy)
        inverse = torch.cholesky_inverse(factor)
        solved = inverse @ values
        found = 0.5 * values @ solved + factor.diagonal().log().sum()
        slope = 0.5 * (inverse - torch.outer(solved, solved))
    through: Tensor = (slope * noisy).sum()
    found_with_slope: Tensor = through + (found - through.detach())
    return found_with_slope
