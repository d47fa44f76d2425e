"""Operations and bytes of single calls, against counts by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter
from bodyplan.evaluators.costing import Counted, counted


def of(call, *shapes, device="meta"):
    given = [torch.randn(*shape, device=device) for shape in shapes]
    return counted(lambda: call(*given))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_product_reads_both_sides_and_writes_one(device):
    found = of(torch.mm, (3, 5), (5, 7), device=device)
    assert found == Counted(products=105, read=4 * (15 + 35), written=4 * 21, peak=4 * 21)


def test_elementwise_work_is_what_comes_out():
    assert of(lambda x: F.relu(x) + 1, (4, 6)) == Counted(elementwise=48, read=192, written=192, peak=192)
    assert of(lambda x, y: x * y, (4, 6), (6,)).elementwise == 24


def test_what_is_expanded_is_read_once():
    found = counted(lambda: torch.empty(1, 8, device="meta").expand(16, 8) * 1.0)
    assert (found.read, found.written, found.elementwise) == (32, 512, 128)


def test_views_move_nothing():
    assert of(lambda x: x.view(2, 12).t()[:, :1].unflatten(0, (3, 4)), (4, 6)) == Counted()


def test_reductions_and_norms_read_every_number():
    assert of(lambda x: x.sum(-1), (4, 6)).elementwise == 24
    assert of(lambda x: x.softmax(-1), (4, 6)).elementwise == 24
    assert of(lambda x: F.layer_norm(x, (6,)), (4, 6)).elementwise == 24


def test_scans_are_a_column_of_their_own():
    found = of(lambda x: x.cumsum(-1), (4, 6))
    assert (found.scans, found.elementwise) == (24, 0)


def test_transforms_are_a_column_of_their_own():
    real = of(torch.fft.rfft, (3, 64))
    assert real.transforms == 3 * 2.5 * 64 * 6 and real.products == 0
    assert of(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=64), (3, 64)).transforms == 2 * 3 * 2.5 * 64 * 6
    assert of(torch.fft.fft, (3, 64)).transforms >= 3 * 2.5 * 64 * 6


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_one_operation_with_all_its_pairs(device, causal):
    found = of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), (1, 2, 5, 4), (1, 2, 5, 4),
               (1, 2, 5, 4), device=device)
    assert found == Counted(products=2 * 25 * 8, elementwise=50, read=4 * 120, written=4 * 40, peak=4 * 40)


def test_a_triangular_solve_takes_half_a_square():
    found = of(lambda a, b: torch.linalg.solve_triangular(a, b, upper=False), (6, 6), (6, 3))
    assert found.products == 6 * 6 * 3 / 2


def test_the_peak_is_what_lives_at_once():
    def chain(x):
        for _ in range(10):
            x = x + 1
        return x

    assert of(chain, (16,)).peak == 2 * 64                          # an input of the next, and what it makes
    assert of(lambda x: torch.stack([x + i for i in range(4)]), (16,)).peak == 2 * 4 * 64


def test_products_agree_with_the_counter_of_flops():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(8 * 8, 5))
    x = torch.randn(2, 4, 10)
    assert counted(lambda: model(x)).products == macs_flop_counter(model, x)
    assert math.isclose(counted(lambda: model(x)).read, 4 * (80 + 96 + 8 + 128 + 128 + 320 + 5), rel_tol=0.5)


def test_a_linear_layer_over_a_sequence_copies_nothing():
    layer = torch.nn.Linear(8, 16, bias=False, device="meta")
    found = of(lambda x: layer(x), (2, 5, 8))
    assert (found.products, found.read, found.written) == (2 * 5 * 128, 4 * (80 + 128), 4 * 160)
