"""Milliseconds of the chunked kernels on this machine, forward and forward with backward.

    python -m bodyplan.kernels.benchmark [THREADS]

The sizes are those of a small supernet in training: batch 16, 128 tokens, 2 heads, keys 32 and values 64 wide. Rows of
one table take turns, so that a busy machine slows all of them alike; the figure is the median. Two rows are the ways
not taken: the short convolution by conv1d, the long one transformed along a strided dimension.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from .gated_delta import chunked_gated_delta
from .linear_recurrence import chunked_linear_recurrence
from .long_conv import fft_long_conv
from .short_conv import causal_conv

BATCH, LENGTH, HEADS, KEY, VALUE, TAPS = 16, 128, 2, 32, 64, 4
ROUNDS = 40


def conv1d(x_BTD: Tensor, weight_DW: Tensor) -> Tensor:
    padded_BDT = F.pad(x_BTD.transpose(1, 2), (weight_DW.shape[1] - 1, 0))
    return F.conv1d(padded_BDT, weight_DW[:, None], groups=x_BTD.shape[2]).transpose(1, 2)


def strided_fft(x_BTD: Tensor, filter_LD: Tensor) -> Tensor:
    length = x_BTD.shape[1]
    x_BFD = torch.fft.rfft(x_BTD, n=2 * length, dim=1)
    filter_FD = torch.fft.rfft(filter_LD, n=2 * length, dim=0)
    y_BTD: Tensor = torch.fft.irfft(x_BFD * filter_FD, n=2 * length, dim=1)[:, :length]
    return y_BTD


def rows() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Name to function and inputs, every input a leaf that wants its gradient."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape)

    q = normal(BATCH, LENGTH, HEADS, KEY)
    k = F.normalize(normal(BATCH, LENGTH, HEADS, KEY), dim=-1)
    v = normal(BATCH, LENGTH, HEADS, VALUE)
    decay, beta = -torch.rand(BATCH, LENGTH, HEADS), torch.rand(BATCH, LENGTH, HEADS)
    channels = HEADS * VALUE
    x, taps, long = normal(BATCH, LENGTH, channels), normal(channels, TAPS), normal(LENGTH, channels)

    def recurrence(chunk: int) -> Callable[..., Tensor]:
        return lambda q, k, v, g: chunked_linear_recurrence(q, k, v, log_decay_BTH=g, chunk=chunk)[0]

    def delta(chunk: int) -> Callable[..., Tensor]:
        return lambda q, k, v, g, b: chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=b, chunk=chunk)[0]

    chunks = (16, 32, 64, 128)
    table: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {}
    table |= {f"linear recurrence, chunk {c}": (recurrence(c), [q, k, v, decay]) for c in chunks}
    table |= {f"gated delta rule, chunk {c}": (delta(c), [q, k, v, decay, beta]) for c in chunks}
    table["short convolution"] = lambda x, w: causal_conv(x, w)[0], [x, taps]
    table["short convolution by conv1d"] = conv1d, [x, taps]
    table["long convolution"] = fft_long_conv, [x, long]
    table["long convolution, strided"] = strided_fft, [x, long]
    return {name: (f, [x.clone().requires_grad_() for x in inputs]) for name, (f, inputs) in table.items()}


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(threads: int = 1) -> dict[str, tuple[float, float]]:
    """Name to median milliseconds (forward without gradients, forward and backward)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = rows()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in table}
    for turn in range(ROUNDS + 3):
        for name, (function, inputs) in table.items():
            with torch.no_grad():
                forward = milliseconds(lambda f=function, x=inputs: f(*x))  # type: ignore[misc]
            both = milliseconds(lambda f=function, x=inputs: f(*x).sum().backward())  # type: ignore[misc]
            if turn >= 3:
                times[name][0].append(forward)
                times[name][1].append(both)
    return {name: (median(forward), median(both)) for name, (forward, both) in times.items()}


if __name__ == "__main__":
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(f"torch {torch.__version__}, {threads} thread(s), median of {ROUNDS}, ms")
    print(f"{'':36}{'forward':>10}{'with backward':>16}")
    for name, (forward, both) in measure(threads).items():
        print(f"{name:36}{forward:10.2f}{both:16.2f}")
