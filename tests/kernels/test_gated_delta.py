"""The chunked gated delta rule is the step-by-step rule: outputs, gradients, states, splits, one-token steps."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.gated_delta import (
    chunked_gated_delta,
    gated_delta_step,
    naive_gated_delta,
)

LENGTHS = [1, 5, 63, 64, 65, 130]


def example(length, *, batch=2, heads=4, groups=4, decay=None, dtype=torch.float64, seed=0):
    """q, unit keys, v, log decay, beta and a state, all leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    q, k, v = (normal(batch, length, n, d) for n, d in ((groups, 3), (groups, 3), (heads, 5)))
    k = torch.nn.functional.normalize(k.detach().double(), dim=-1).to(dtype).requires_grad_()
    beta = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    g = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    g = -g if decay is None else torch.full_like(g, decay)
    return q, k, v, g.to(dtype).requires_grad_(), beta, normal(batch, heads, 3, 5)


def results_and_gradients(function, inputs, **options):
    q, k, v, g, beta, state = inputs
    o, end = function(q, k, v, log_decay_BTH=g, beta_BTH=beta, state_BHKV=state, **options)
    generator = torch.Generator().manual_seed(9)
    pull = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (o, end)]
    return [o, end, *torch.autograd.grad([o, end], list(inputs), pull)]


def assert_same(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("decay", [None, 0.0, -0.01, -5.0, -50.0])
def test_chunked_equals_naive_in_outputs_state_and_gradients(length, decay):
    inputs = example(length, decay=decay)
    options = dict(scale=0.3)
    wanted = results_and_gradients(naive_gated_delta, inputs, **options)
    assert_same(results_and_gradients(chunked_gated_delta, inputs, **options), wanted, 1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 64, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    inputs = example(65)
    wanted = results_and_gradients(naive_gated_delta, inputs)
    assert_same(results_and_gradients(chunked_gated_delta, inputs, chunk=chunk), wanted, 1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_share_the_queries_and_keys_of_their_group(groups):
    inputs = example(37, groups=groups)
    wanted = results_and_gradients(naive_gated_delta, inputs)
    assert_same(results_and_gradients(chunked_gated_delta, inputs), wanted, 1e-12)


def test_one_row_of_decays_serves_every_sequence():
    q, k, v, g, beta, state = (x.detach() for x in example(70, batch=3))
    wanted = naive_gated_delta(q, k, v, log_decay_BTH=g[:1], beta_BTH=beta, state_BHKV=state)
    assert_same(chunked_gated_delta(q, k, v, log_decay_BTH=g[:1], beta_BTH=beta, state_BHKV=state), wanted, 1e-12)


def test_no_state_means_zeros():
    q, k, v, g, beta, state = (x.detach() for x in example(40))
    wanted = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta, state_BHKV=torch.zeros_like(state))
    assert_same(chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta), wanted, 0.0)
    assert_same(naive_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta), wanted, 1e-12)


@pytest.mark.parametrize("split", [1, 31, 64, 99])
def test_two_prefills_equal_one(split):
    q, k, v, g, beta, state = (x.detach() for x in example(100))
    whole = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta, state_BHKV=state)
    outputs = []
    for part in (slice(0, split), slice(split, 100)):
        o, state = chunked_gated_delta(
            q[:, part], k[:, part], v[:, part], log_decay_BTH=g[:, part], beta_BTH=beta[:, part], state_BHKV=state
        )
        outputs.append(o)
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-12)


@pytest.mark.parametrize("groups", [4, 2])
def test_steps_equal_the_whole_and_leave_the_state_they_got_alone(groups):
    q, k, v, g, beta, state = (x.detach() for x in example(9, groups=groups))
    whole = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta, scale=0.5, state_BHKV=state)
    outputs = []
    for t in range(9):
        now, before = slice(t, t + 1), state.clone()
        o, after = gated_delta_step(
            q[:, now], k[:, now], v[:, now], log_decay_BTH=g[:, now], beta_BTH=beta[:, now], scale=0.5, state_BHKV=state
        )
        assert torch.equal(state, before)
        outputs.append(o)
        state = after
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-12)


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_repeated_keys_written_at_full_strength_stay_exact(chunk, dtype, tolerance):
    q, k, v, g, beta, state = example(130, decay=0.0)
    k = k[:, :1].detach().expand(-1, 130, -1, -1).clone().requires_grad_()
    inputs = (q, k, v, g, torch.ones_like(beta, requires_grad=True), state)
    wanted = results_and_gradients(naive_gated_delta, inputs)
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in inputs)
    got = results_and_gradients(chunked_gated_delta, inputs, chunk=chunk)
    assert_same([x.double() for x in got], wanted, tolerance)


def test_a_key_written_at_full_strength_reads_back_its_value():
    q, k, v, g, beta, _ = (x.detach() for x in example(20, decay=0.0))
    o, _ = chunked_gated_delta(k, k, v, log_decay_BTH=g, beta_BTH=torch.ones_like(beta))
    torch.testing.assert_close(o, v, rtol=1e-12, atol=1e-12)


def test_the_future_cannot_be_seen():
    q, k, v, g, beta, _ = (x.detach() for x in example(70))
    o, _ = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta)
    v[:, 50:], k[:, 50:] = 1e30, -k[:, 50:]
    changed, _ = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta)
    assert torch.equal(changed[:, :50], o[:, :50])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_low_precision_inputs_keep_a_float32_state(dtype, tolerance):
    inputs = [x.detach() for x in example(130, dtype=dtype)]
    q, k, v, g, beta, state = inputs
    o, end = chunked_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta, state_BHKV=state)
    assert (o.dtype, end.dtype) == (dtype, torch.float32)
    q, k, v, g, beta, state = (x.double() for x in inputs)
    wanted = naive_gated_delta(q, k, v, log_decay_BTH=g, beta_BTH=beta, state_BHKV=state)
    assert_same([o.double(), end.double()], wanted, tolerance)


def test_strong_decays_make_no_denormal_numbers_and_no_nan():
    inputs = example(130, decay=-3.0, dtype=torch.float32)
    for x in results_and_gradients(chunked_gated_delta, inputs):
        assert x.isfinite().all()
        assert not ((x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)).any()
