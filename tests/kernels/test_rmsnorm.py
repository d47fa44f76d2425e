"""RMSNorm: the plain form is the formula, the choice of an implementation is explicit, errors say what to do."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch
from bodyplan.kernels.rmsnorm import add_rms_norm, naive_rms_norm, rms_norm


def test_naive_agrees_with_torch():
    x, weight = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    wanted = torch.nn.functional.rms_norm(x, (7,), weight, 1e-5)
    torch.testing.assert_close(naive_rms_norm(x, weight, 1e-5), wanted, rtol=1e-14, atol=1e-14)


def test_half_precision_rounds_once():
    x, weight = torch.randn(64, 33).bfloat16(), torch.randn(33).bfloat16()
    wanted = naive_rms_norm(x.double(), weight.double(), 1e-6).float().bfloat16()
    assert (naive_rms_norm(x, weight, 1e-6) == wanted).float().mean() > 0.995


def test_the_sum_is_rounded_before_the_norm_sees_it():
    x, residual = (torch.randn(9, 33).bfloat16() for _ in range(2))
    weight = torch.ones(33)
    y, total = add_rms_norm(x, residual, weight)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, rms_norm(total, weight))


def test_gradients_of_the_plain_form():
    x, weight = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (5,)))
    assert torch.autograd.gradcheck(lambda *a: rms_norm(*a, 1e-6), (x, weight))


@pytest.mark.parametrize("x, weight, impl, words", [
    (torch.ones(2, 4), torch.ones(3), "auto", "last dimension of x: got [3] for x [2, 4]"),
    (torch.ones(2, 4), torch.ones(4), "cuda", "impl must be 'auto', 'naive' or 'triton': got 'cuda'"),
    (torch.ones(2, 4, dtype=torch.int64), torch.ones(4), "auto", "floating point: got torch.int64"),
    (torch.ones(2, 4), torch.ones(4, device="meta"), "auto", "on one device: got cpu and meta"),
], ids=["shape", "impl", "dtype", "device"])  # fmt: skip
def test_bad_arguments_are_answered(x, weight, impl, words):
    with pytest.raises(ValueError) as caught:
        rms_norm(x, weight, impl=impl)
    assert words in str(caught.value)


def test_a_residual_of_another_dtype_is_answered():
    with pytest.raises(ValueError, match="one shape, dtype and device"):
        add_rms_norm(torch.ones(2, 4), torch.ones(2, 4).half(), torch.ones(4))


def test_triton_without_triton_raises_and_does_not_fall_back(monkeypatch):
    really_import = builtins.__import__

    def without_triton(name, *rest):
        if name == "triton" or name.startswith("triton."):
            raise ImportError("No module named 'triton'")
        return really_import(name, *rest)

    for name in [n for n in sys.modules if n.endswith("kernels.rmsnorm.triton")]:
        monkeypatch.delitem(sys.modules, name)
    package = sys.modules["bodyplan.kernels.rmsnorm"]
    monkeypatch.delattr(package, "triton", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_triton)
    with pytest.raises(ImportError, match="pip install 'bodyplan\\[triton\\]'"):
        rms_norm(torch.ones(2, 4), torch.ones(4), impl="triton")


@pytest.mark.kernels
def test_triton_on_a_cpu_outside_the_interpreter_raises_and_says_what_to_do(compiled):
    source = """
import torch
from bodyplan.kernels.rmsnorm import rms_norm
try:
    rms_norm(torch.ones(2, 4), torch.ones(4), impl="triton")
except ValueError as error:
    print(error)
"""
    assert "needs a CUDA tensor: got one on cpu" in (text := compiled("-c", source))
    assert "TRITON_INTERPRET=1" in text
