"""Both causal convolutions equal their sums, do not see the future, and continue from their state."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.long_conv import fft_long_conv, long_conv_step, naive_long_conv
from bodyplan.kernels.short_conv import causal_conv


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("length, taps", [(1, 1), (5, 5), (63, 63), (64, 10), (65, 200), (130, 130)])
def test_fft_equals_the_sum_in_outputs_and_gradients(length, taps):
    x, f = normal(2, length, 3), normal(taps, 3, seed=1)
    pull = torch.ones(2, length, 3, dtype=torch.float64)
    got, wanted = fft_long_conv(x, f), naive_long_conv(x, f)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(y, (x, f), pull) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_fft_keeps_the_dtype_of_its_input(dtype, tolerance):
    x, f = normal(2, 65, 3, dtype=dtype).detach(), normal(65, 3, dtype=dtype, seed=1).detach()
    y = fft_long_conv(x, f)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), naive_long_conv(x.double(), f.double()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("taps", [4, 12, 30])
def test_the_newest_output_alone_is_the_last_of_all(taps):
    x, f = normal(2, 12, 3).detach(), normal(taps, 3, seed=1).detach()
    torch.testing.assert_close(long_conv_step(x, f), naive_long_conv(x, f)[:, -1:], rtol=1e-12, atol=1e-12)


def sum_over_taps(x, weight, history):
    padded = torch.cat([history, x], dim=1)
    taps = weight.shape[1]
    return sum(padded[:, j : j + x.shape[1]] * weight[:, j] for j in range(taps))


@pytest.mark.parametrize("length", [1, 2, 5, 64, 65])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
def test_short_convolution_equals_the_sum_in_outputs_and_gradients(length, taps):
    inputs = normal(2, length, 5), normal(5, taps, seed=1), normal(2, taps - 1, 5, seed=2)
    y, _ = causal_conv(*inputs)
    wanted = sum_over_taps(*inputs)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    pull = normal(2, length, 5, seed=3).detach()
    for a, b in zip(*(torch.autograd.grad(z, inputs, pull) for z in (y, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parts", [[20], [1] * 20, [3, 1, 16], [19, 1]])
def test_short_convolution_continues_from_its_history(parts):
    x, weight = normal(2, 20, 5).detach(), normal(5, 4, seed=1).detach()
    whole, end = causal_conv(x, weight)
    history, outputs = None, []
    for part in x.split(parts, dim=1):
        y, history = causal_conv(part, weight, history)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(history, end)


def test_a_history_holds_its_own_few_tokens_and_not_the_prompt():
    _, history = causal_conv(normal(2, 1000, 5), normal(5, 4, seed=1))
    assert history.untyped_storage().nbytes() == 2 * 3 * 5 * 8


@pytest.mark.parametrize("convolve", [
    lambda x: fft_long_conv(x, normal(20, 5, seed=1).detach()),
    lambda x: causal_conv(x, normal(5, 4, seed=1).detach())[0],
], ids=["long", "short"])  # fmt: skip
def test_the_future_cannot_be_seen(convolve):
    x = normal(2, 20, 5).detach()
    changed = x.clone()
    changed[:, 13:] += 1.0
    torch.testing.assert_close(convolve(changed)[:, :13], convolve(x)[:, :13], rtol=1e-12, atol=1e-12)
