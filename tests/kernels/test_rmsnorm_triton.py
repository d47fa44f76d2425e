"""The Triton kernels of RMSNorm, in Triton's interpreter, against the plain form."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.rmsnorm import add_rms_norm, rms_norm

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter")]

# The interpreter truncates where hardware rounds to nearest, hence twice the usual bfloat16 tolerance.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
SHAPES = [(1, 1), (5, 7), (2, 65, 33), (130, 100), (1, 257), (3, 1000)]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch):
    """An output element that no program writes then fails the comparison."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)

        def poisoned(*args, allocate=allocate, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def assert_agrees(function, inputs, tolerance):
    """Outputs and gradients of impl="triton" against impl="naive" in float64 from the same, rounded inputs."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    answers = []
    for impl, given in (("triton", inputs), ("naive", exact)):
        outputs = function(*given, 1e-6, impl=impl)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pull = [normal(*y.shape, dtype=inputs[0].dtype, seed=7 + i).detach().to(y.dtype) for i, y in enumerate(outputs)]
        answers.append([*outputs, *torch.autograd.grad(outputs, list(given), pull)])
    for got, wanted in zip(*answers, strict=True):
        largest = wanted.abs().max().item()
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * max(1.0, largest))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_forward_and_backward_agree_with_the_plain_form(shape, dtype):
    inputs = normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=1)
    assert_agrees(rms_norm, inputs, TOLERANCES[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_fused_residual_addition_agrees_with_the_plain_form(shape, dtype):
    inputs = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=2), normal(shape[-1], seed=1).to(dtype)
    assert_agrees(add_rms_norm, [x.detach().requires_grad_() for x in inputs], TOLERANCES[dtype])


@pytest.mark.parametrize("view", [
    lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[..., 3:20], lambda x: x[..., ::3],
    lambda x: x.transpose(1, 2), lambda x: x[:1].expand(4, -1, -1),
], ids=["transposed", "every second row", "columns", "every third column", "columns as rows", "expanded"])  # fmt: skip
def test_strided_inputs_and_gradients_are_read_by_their_strides(view):
    x, residual = view(normal(4, 6, 24)), view(normal(4, 6, 24, seed=1))
    weight = normal(x.shape[-1], seed=2)
    pull = view(normal(4, 6, 24, seed=3)).detach()
    results = []
    for impl in ("triton", "naive"):
        y, total = add_rms_norm(x, residual, weight, impl=impl)
        results.append([y, total, *torch.autograd.grad((y, total), (x, residual, weight), (pull, 2 * pull))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_weights_keep_their_own_dtype():
    x, weight = normal(5, 16, dtype=torch.bfloat16), normal(16, seed=1)
    y = rms_norm(x, weight, impl="triton")
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_no_rows_are_no_work():
    x, weight = normal(0, 8), normal(8)
    y = rms_norm(x, weight, impl="triton")
    y.sum().backward()
    assert y.shape == (0, 8) and torch.equal(weight.grad, torch.zeros(8))


def test_gradcheck_in_double_precision(monkeypatch):
    monkeypatch.undo()
    inputs = normal(3, 5, dtype=torch.float64), normal(3, 5, dtype=torch.float64), normal(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *a: add_rms_norm(*a, 1e-6, impl="triton"), inputs)
    assert torch.autograd.gradcheck(lambda *a: rms_norm(*a, 1e-6, impl="triton"), inputs[1:])


def test_opcheck(monkeypatch):
    monkeypatch.undo()
    x, residual, weight = normal(3, 5), normal(3, 5, seed=1), normal(5, seed=2)
    torch.library.opcheck(torch.ops.bodyplan.rms_norm.default, (x, weight, 1e-6))
    torch.library.opcheck(torch.ops.bodyplan.add_rms_norm.default, (x, residual, weight, 1e-6))


def test_two_runs_agree_bit_for_bit():
    x, weight = normal(130, 33), normal(33, seed=1)
    grads = [torch.autograd.grad(rms_norm(x, weight, impl="triton").square().sum(), (x, weight)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_row_too_wide_for_registers_is_answered():
    with pytest.raises(ValueError, match="at most 16384 wide: got 16385; pass impl='naive'"):
        rms_norm(torch.ones(1, 16385), torch.ones(16385), impl="triton")
