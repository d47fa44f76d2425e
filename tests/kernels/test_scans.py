"""Scans by chunks are their step-by-step specifications: outputs, states, gradients, splits, one-token steps."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.legendre import (
    fft_legendre,
    legendre_step,
    legendre_system,
    naive_legendre,
    naive_legendre_system,
)
from bodyplan.kernels.linear_recurrence import naive_linear_recurrence
from bodyplan.kernels.long_conv import fft_grid_conv, naive_long_conv
from bodyplan.kernels.neural_memory import naive_newton_schulz, newton_schulz
from bodyplan.kernels.selective_scan import chunked_selective_scan, naive_selective_scan, selective_scan_step
from bodyplan.kernels.wkv import chunked_wkv, naive_wkv, wkv_step

torch.set_num_threads(1)
LENGTHS = [1, 2, 5, 63, 64, 100]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scan_inputs(length, *, channels=3, states=2):
    return {"x_BTD": random(2, length, channels), "dt_BTD": random(2, length, channels, seed=1).exp(),
            "A_DN": -random(channels, states, seed=2).exp(), "b_BTN": random(2, length, states, seed=3),
            "c_BTN": random(2, length, states, seed=4), "state_BDN": random(2, channels, states, seed=5)}


def scanned(function, inputs):
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    y, state = function(leaves["x_BTD"],
                        **{k: v for k, v in leaves.items() if k != "x_BTD"})
    pull = [random(*y.shape, seed=8), random(*state.shape, seed=9)]
    return [y, state, *torch.autograd.grad([y, state], list(leaves.values()), pull)]


def assert_same(got, wanted, tolerance=1e-11):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_selective_scan_equals_its_specification_with_gradients(length):
    inputs = scan_inputs(length)
    assert_same(scanned(chunked_selective_scan, inputs), scanned(naive_selective_scan, inputs))


@pytest.mark.parametrize("split", [1, 31, 64, 99])
def test_two_selective_scans_equal_one(split):
    inputs = scan_inputs(100)
    state, rest = inputs.pop("state_BDN"), {name: inputs.pop(name) for name in ("A_DN",)}
    whole = chunked_selective_scan(**inputs, **rest, state_BDN=state)
    outputs = []
    for part in (slice(0, split), slice(split, 100)):
        y, state = chunked_selective_scan(**{name: value[:, part] for name, value in inputs.items()}, **rest,
                                          state_BDN=state)
        outputs.append(y)
    assert_same([torch.cat(outputs, 1), state], whole)


def test_a_selective_step_is_a_scan_of_one_token_and_leaves_its_state():
    inputs = scan_inputs(1)
    before = inputs["state_BDN"].clone()
    assert_same(selective_scan_step(**inputs), naive_selective_scan(**inputs))
    assert torch.equal(inputs["state_BDN"], before)


def test_with_one_rate_for_all_states_the_selective_scan_is_mamba_2s_recurrence():
    inputs = scan_inputs(63)
    inputs["A_DN"] = torch.full_like(inputs["A_DN"], -0.7)
    y, state = chunked_selective_scan(**inputs)
    q, k = inputs["c_BTN"][:, :, None], inputs["b_BTN"][:, :, None]
    written = (inputs["dt_BTD"] * inputs["x_BTD"])[..., None]
    wanted, end = naive_linear_recurrence(q, k, written, log_decay_BTH=-0.7 * inputs["dt_BTD"],
                                          state_BHKV=inputs["state_BDN"][..., None])
    assert_same([y, state], [wanted[..., 0], end[..., 0]])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("changes", [True, False])
def test_weighted_key_values_equal_all_pairs_with_gradients(length, changes):
    leaves = [random(2, length, 3, seed=n).requires_grad_() for n in range(2)]
    decay = -random(*((2, length, 3) if changes else (1, 1, 3)), seed=2).exp()
    leaves += [decay.requires_grad_(), random(3, seed=3).requires_grad_()]
    results = []
    for function in (naive_wkv, lambda *a, **k: chunked_wkv(*a, **k)[0]):
        y = function(leaves[0], leaves[1], log_decay_BTD=leaves[2], bonus_D=leaves[3])
        results.append([y, *torch.autograd.grad(y, leaves, random(*y.shape, seed=4), allow_unused=True,
                                                materialize_grads=True)])
    assert_same(results[1], results[0])


def test_weighted_key_values_in_parts_and_in_steps_equal_the_whole():
    k, v, g, bonus = random(2, 70, 3), random(2, 70, 3, seed=1), -random(2, 70, 3, seed=2).exp(), random(3, seed=3)
    whole, end = chunked_wkv(k, v, log_decay_BTD=g, bonus_D=bonus)
    y, state = chunked_wkv(k[:, :40], v[:, :40], log_decay_BTD=g[:, :40], bonus_D=bonus)
    rows = [y]
    for t in range(40, 70):
        now = slice(t, t + 1)
        y, state = wkv_step(k[:, now], v[:, now], log_decay_BTD=g[:, now], bonus_D=bonus, state_BSD=state)
        rows.append(y)
    assert_same([torch.cat(rows, 1)], [whole])
    assert_same([state[:, :2] * state[:, 2:].exp()], [end[:, :2] * end[:, 2:].exp()])


def test_keys_of_a_thousand_overflow_nothing():
    k = 1000 * random(1, 63, 3).float()
    y, _ = chunked_wkv(k, random(1, 63, 3, seed=1).float(), log_decay_BTD=torch.full((1, 1, 3), -0.1), bonus_D=torch.zeros(3))
    assert y.isfinite().all()


@pytest.mark.parametrize("order, theta", [(1, 5.0), (6, 20.0), (16, 128.0), (32, 40.0)])
def test_the_legendre_matrices_are_those_of_a_series(order, theta):
    ours = legendre_system(order, theta, torch.float64, torch.device("cpu"))
    assert_same([ours], [naive_legendre_system(order, theta)], 1e-8)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_legendre_memory_by_transforms_is_its_recurrence(length):
    u, system, state = random(2, length, 3), naive_legendre_system(6, 20.0), random(2, 3, 6, seed=1)
    assert_same(fft_legendre(u, system, state), naive_legendre(u, system, state))
    assert_same(legendre_step(u[:, :1], system, state), naive_legendre(u[:, :1], system, state))


@pytest.mark.parametrize("delay", [0.0, 0.25, 0.5, 1.0])
def test_the_legendre_memory_holds_the_last_theta_tokens(delay):
    theta, order, length = 100.0, 10, 400
    signal = torch.sin(torch.arange(length, dtype=torch.float64) / 30)
    memory, _ = fft_legendre(signal[None, :, None], legendre_system(order, theta, torch.float64, torch.device("cpu")))
    points = torch.special.legendre_polynomial_p(torch.tensor(2 * delay - 1), torch.arange(order)).double()
    read = (memory[0, -1, 0] * points).sum()
    assert abs(read - signal[-1 - round(delay * theta)]) < 0.05


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 9), (9, 1), (5, 7)])
def test_a_grid_filter_of_a_product_is_two_filters_in_turn(rows, columns):
    x, down, across = random(2, rows, columns, 3), random(rows, 3, seed=1), random(columns, 3, seed=2)
    y = fft_grid_conv(x, down[:, None] * across)
    by_rows = naive_long_conv(x.flatten(0, 1), across).view(x.shape)
    wanted = naive_long_conv(by_rows.transpose(1, 2).flatten(0, 1), down).view(2, columns, rows, 3).transpose(1, 2)
    assert_same([y], [wanted])


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 7, 3), (2, 3, 7)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    x = random(*shape)
    assert_same([newton_schulz(x)], [naive_newton_schulz(x)], 1e-8)
    values = torch.linalg.svdvals(newton_schulz(x, steps=8))
    assert values.min() > 0.6 and values.max() < 1.3
