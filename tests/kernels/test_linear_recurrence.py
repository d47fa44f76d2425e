"""The chunked linear recurrence is the step-by-step recurrence: outputs, gradients, states, splits, one-token steps."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.linear_recurrence import (
    chunked_linear_recurrence,
    linear_recurrence_step,
    naive_linear_recurrence,
)

LENGTHS = [1, 5, 63, 64, 65, 130]


def example(length, *, batch=2, heads=4, groups=4, decay=None, dtype=torch.float64, seed=0):
    """q, k, v, log decay and a state, all leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    q, k, v = (normal(batch, length, n, d) for n, d in ((groups, 3), (groups, 3), (heads, 5)))
    g = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    g = -g if decay is None else torch.full_like(g, decay)
    return q, k, v, g.to(dtype).requires_grad_(), normal(batch, heads, 3, 5)


def results_and_gradients(function, inputs, **options):
    q, k, v, g, state = inputs
    o, end = function(q, k, v, log_decay_BTH=g, state_BHKV=state, **options)
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
    wanted = results_and_gradients(naive_linear_recurrence, inputs, **options)
    assert_same(results_and_gradients(chunked_linear_recurrence, inputs, **options), wanted, 1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 64, 1000])
def test_the_chunk_size_changes_nothing(chunk):
    inputs = example(65)
    wanted = results_and_gradients(naive_linear_recurrence, inputs)
    assert_same(results_and_gradients(chunked_linear_recurrence, inputs, chunk=chunk), wanted, 1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_share_the_queries_and_keys_of_their_group(groups):
    inputs = example(37, groups=groups)
    wanted = results_and_gradients(naive_linear_recurrence, inputs)
    assert_same(results_and_gradients(chunked_linear_recurrence, inputs), wanted, 1e-12)


def test_one_row_of_decays_serves_every_sequence():
    q, k, v, g, state = (x.detach() for x in example(70, batch=3))
    wanted = naive_linear_recurrence(q, k, v, log_decay_BTH=g[:1], state_BHKV=state)
    assert_same(chunked_linear_recurrence(q, k, v, log_decay_BTH=g[:1], state_BHKV=state), wanted, 1e-12)


def test_no_state_means_zeros():
    q, k, v, g, state = (x.detach() for x in example(40))
    wanted = chunked_linear_recurrence(q, k, v, log_decay_BTH=g, state_BHKV=torch.zeros_like(state))
    assert_same(chunked_linear_recurrence(q, k, v, log_decay_BTH=g), wanted, 0.0)
    assert_same(naive_linear_recurrence(q, k, v, log_decay_BTH=g), wanted, 1e-12)


@pytest.mark.parametrize("split", [1, 31, 64, 99])
def test_two_prefills_equal_one(split):
    q, k, v, g, state = (x.detach() for x in example(100))
    whole = chunked_linear_recurrence(q, k, v, log_decay_BTH=g, state_BHKV=state)
    outputs = []
    for part in (slice(0, split), slice(split, 100)):
        o, state = chunked_linear_recurrence(
            q[:, part], k[:, part], v[:, part], log_decay_BTH=g[:, part], state_BHKV=state
        )
        outputs.append(o)
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-12)


@pytest.mark.parametrize("groups", [4, 2])
def test_steps_equal_the_whole_and_leave_the_state_they_got_alone(groups):
    q, k, v, g, state = (x.detach() for x in example(9, groups=groups))
    whole = chunked_linear_recurrence(q, k, v, log_decay_BTH=g, scale=0.5, state_BHKV=state)
    outputs = []
    for t in range(9):
        now, before = slice(t, t + 1), state.clone()
        o, after = linear_recurrence_step(
            q[:, now], k[:, now], v[:, now], log_decay_BTH=g[:, now], scale=0.5, state_BHKV=state
        )
        assert torch.equal(state, before)
        outputs.append(o)
        state = after
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-12)


def test_the_future_cannot_be_seen():
    q, k, v, g, _ = (x.detach() for x in example(70))
    o, _ = chunked_linear_recurrence(q, k, v, log_decay_BTH=g)
    v[:, 50:], k[:, 50:] = 1e30, -1e30
    changed, _ = chunked_linear_recurrence(q, k, v, log_decay_BTH=g)
    assert torch.equal(changed[:, :50], o[:, :50])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_low_precision_inputs_keep_a_float32_state(dtype, tolerance):
    inputs = [x.detach() for x in example(130, dtype=dtype)]
    q, k, v, g, state = inputs
    o, end = chunked_linear_recurrence(q, k, v, log_decay_BTH=g, state_BHKV=state)
    assert (o.dtype, end.dtype) == (dtype, torch.float32)
    q, k, v, g, state = (x.double() for x in inputs)
    wanted = naive_linear_recurrence(q, k, v, log_decay_BTH=g, state_BHKV=state)
    assert_same([o.double(), end.double()], wanted, tolerance)


def test_strong_decays_make_no_denormal_numbers_and_no_nan():
    inputs = example(130, decay=-3.0, dtype=torch.float32)
    for x in results_and_gradients(chunked_linear_recurrence, inputs):
        assert x.isfinite().all()
        assert not ((x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)).any()
