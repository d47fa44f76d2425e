"""Compares the compiled RMSNorm kernels with the plain form on a GPU, twice; run by test_rmsnorm_compiled.py."""

from __future__ import annotations

import torch
from bodyplan.kernels.rmsnorm import add_rms_norm, rms_norm

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(5, 7), (3, 1000, 100), (64, 4096), (7, 16384)]


def results(given: list[torch.Tensor], impl: str) -> list[torch.Tensor]:
    x, _, weight = given
    y, total = add_rms_norm(*given, 1e-6, impl=impl)
    alone = rms_norm(x, weight, 1e-6, impl=impl)
    loss = sum(part.double().sin().sum() for part in (y, total, alone))
    return [y, total, alone, *torch.autograd.grad(loss, given)]


def compare(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    sizes = (shape, shape, shape[-1:])
    given = [torch.randn(s, generator=generator, dtype=dtype, device="cuda").requires_grad_() for s in sizes]
    exact = [x.detach().double().requires_grad_() for x in given]
    once, again, wanted = results(given, "auto"), results(given, "auto"), results(exact, "naive")
    for a, b, c in zip(once, again, wanted, strict=True):
        assert torch.equal(a, b), "two runs differ"
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(a.double(), c, rtol=tolerance, atol=tolerance * max(1.0, c.abs().max().item()))
    whole = torch.compile(rms_norm, fullgraph=True)
    torch.testing.assert_close(whole(given[0], given[2]), rms_norm(given[0], given[2]))


if __name__ == "__main__":
    for dtype in TOLERANCES:
        for shape in SHAPES:
            compare(shape, dtype)
    print("agrees")
