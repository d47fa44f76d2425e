"""The chunked vector-decay recurrence is the step-by-step recurrence: outputs, gradients, states, splits, steps."""

from __future__ import annotations

import pytest
import torch
from bodyplan.kernels.gated_linear import chunked_gated_linear, gated_linear_step, naive_gated_linear
from bodyplan.kernels.linear_recurrence import chunked_linear_recurrence

LENGTHS = [1, 2, 5, 31, 32, 33, 63, 100]


def example(length, *, batch=2, heads=2, key=3, value=5, decay=None, dtype=torch.float64, seed=0):
    """q, k, v, log decay and a state, all leaves with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    q, k, v = (normal(batch, length, heads, d) for d in (key, key, value))
    g = -torch.rand(batch, length, heads, key, generator=generator, dtype=torch.float64)
    g = g if decay is None else torch.full_like(g, decay)
    return q, k, v, g.to(dtype).requires_grad_(), normal(batch, heads, key, value)


def results_and_gradients(function, inputs, **options):
    q, k, v, g, state = inputs
    o, end = function(q, k, v, log_decay_BTHK=g, state_BHKV=state, **options)
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
    wanted = results_and_gradients(naive_gated_linear, inputs, scale=0.3)
    assert_same(results_and_gradients(chunked_gated_linear, inputs, scale=0.3), wanted, 1e-11)


@pytest.mark.parametrize("chunk", [1, 2, 8, 64])
def test_the_chunk_size_changes_nothing(chunk):
    inputs = example(65)
    wanted = results_and_gradients(naive_gated_linear, inputs)
    assert_same(results_and_gradients(chunked_gated_linear, inputs, chunk=chunk), wanted, 1e-11)


@pytest.mark.parametrize("width", [24, 64])
def test_one_decay_for_all_channels_is_the_scalar_recurrence(width):
    q, k, v, g, state = (x.detach() for x in example(63, key=width, value=width))
    wanted = chunked_linear_recurrence(q, k, v, log_decay_BTH=g[..., 0], state_BHKV=state)
    assert_same(chunked_gated_linear(q, k, v, log_decay_BTHK=g[..., :1].expand_as(g), state_BHKV=state), wanted, 1e-11)


@pytest.mark.parametrize("split", [1, 32, 99])
def test_two_prefills_equal_one(split):
    q, k, v, g, state = (x.detach() for x in example(100))
    whole = chunked_gated_linear(q, k, v, log_decay_BTHK=g, state_BHKV=state)
    outputs = []
    for part in (slice(0, split), slice(split, 100)):
        o, state = chunked_gated_linear(q[:, part], k[:, part], v[:, part], log_decay_BTHK=g[:, part], state_BHKV=state)
        outputs.append(o)
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-11)


def test_steps_equal_the_whole_and_leave_the_state_they_got_alone():
    q, k, v, g, state = (x.detach() for x in example(9))
    whole = chunked_gated_linear(q, k, v, log_decay_BTHK=g, scale=0.5, state_BHKV=state)
    outputs = []
    for t in range(9):
        now, before = slice(t, t + 1), state.clone()
        o, after = gated_linear_step(q[:, now], k[:, now], v[:, now], log_decay_BTHK=g[:, now], scale=0.5,
                                     state_BHKV=state)
        assert torch.equal(state, before)
        outputs.append(o)
        state = after
    assert_same([torch.cat(outputs, dim=1), state], whole, 1e-11)


def test_the_future_cannot_be_seen():
    q, k, v, g, _ = (x.detach() for x in example(70))
    o, _ = chunked_gated_linear(q, k, v, log_decay_BTHK=g)
    v[:, 50:], k[:, 50:], g[:, 50:] = 1e30, -1e30, -1e3
    changed, _ = chunked_gated_linear(q, k, v, log_decay_BTHK=g)
    assert torch.equal(changed[:, :50], o[:, :50])


@pytest.mark.parametrize("decay", [-0.1, -30.0, -1e4])
def test_strong_decays_overflow_nothing_in_outputs_and_gradients(decay):
    for x in results_and_gradients(chunked_gated_linear, example(130, decay=decay, dtype=torch.float32)):
        assert x.isfinite().all()


def test_channels_of_very_different_decay_stay_exact_in_float32():
    inputs = [x.detach() for x in example(100, key=4, dtype=torch.float32)]
    inputs[3] = torch.tensor([0.0, -1e-3, -8.0, -200.0]).expand_as(inputs[3])
    got = chunked_gated_linear(*inputs[:3], log_decay_BTHK=inputs[3], state_BHKV=inputs[4])
    q, k, v, g, state = (x.double() for x in inputs)
    wanted = naive_gated_linear(q, k, v, log_decay_BTHK=g, state_BHKV=state)
    assert_same([x.double() for x in got], wanted, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_keep_a_float32_state(dtype):
    inputs = [x.detach() for x in example(100, dtype=dtype)]
    o, end = chunked_gated_linear(*inputs[:3], log_decay_BTHK=inputs[3], state_BHKV=inputs[4])
    assert (o.dtype, end.dtype) == (dtype, torch.float32) and o.isfinite().all()
