"""Tensors in, tensors out: the arithmetic under the operators, each kernel beside its specification.

    rmsnorm/            RMSNorm, alone or with the residual addition before it; Triton forward and backward
    linear_recurrence/  S_t = decay S_{t-1} + k^T v: linear attention, RetNet, Mamba-2
    gated_linear/       the same with a decay for every key channel: Gated Linear Attention, Liger
    gated_delta/        S_t = decay S_{t-1} + k^T v with the delta rule: Gated DeltaNet, DeltaNet
    selective_scan/     a decay per channel and state: Mamba
    wkv/                a softmax over a past that fades by channel: RWKV
    neural_memory/      networks trained while they read: Titans, Atlas
    legendre/           the last tokens as coefficients of polynomials: the Legendre memory unit
    long_conv/          a causal filter as long as the sequence, or a filter as large as a grid: Hyena
    short_conv/         a causal filter of a few taps, with its history
    benchmark.py        milliseconds of each on this machine: `python -m bodyplan.kernels.benchmark`

Every folder has the same files. `naive.py` is the specification: short, any device, any dtype, so that float64 is a
truth to test against. `chunked.py`, `fft.py`, `grid.py` are the same function fast, on any device, in torch alone; exported
models carry their source, so their functions call torch and each other and nothing else. `triton.py` is for NVIDIA
GPUs, in its interpreter too, and only its own folder imports it, on first use.

Layout is [B, T, H, D], arguments after q, k, v are keywords, decays are natural logarithms and at most 0, states are
[B, H, K, V] and float32 (float64 for float64 inputs). Whole = prefill in parts = step by step.
"""
