"""What an exported model inlines must stand alone: torch, and functions of the same file."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from bodyplan.kernels.gated_delta import chunked as gated_delta
from bodyplan.kernels.gated_linear import chunked as gated_linear
from bodyplan.kernels.linear_recurrence import chunked as linear_recurrence
from bodyplan.kernels.long_conv import fft
from bodyplan.kernels.selective_scan import chunked as selective_scan
from bodyplan.kernels.short_conv import naive as short_conv
from bodyplan.kernels.wkv import chunked as wkv

INLINED = [linear_recurrence, gated_linear, gated_delta, fft, short_conv]


@pytest.mark.parametrize("module", INLINED, ids=lambda module: module.__name__)
def test_the_functions_run_from_their_source_with_torch_alone(module):
    namespace = {"torch": torch, "Tensor": torch.Tensor, "F": torch.nn.functional, "math": math}
    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction)]
    assert all(f.__module__ == module.__name__ for f in functions)
    exec("from __future__ import annotations\n" + "\n\n".join(map(inspect.getsource, functions)), namespace)
    given = {"q_BTGK": (1, 9, 1, 2), "k_BTGK": (1, 9, 1, 2), "v_BTHV": (1, 9, 1, 3), "x_BTD": (1, 9, 2),
             "filter_LD": (9, 2), "history_BTD": (1, 9, 2), "weight_DW": (2, 4), "log_decay_BTH": (1, 9, 1),
             "beta_BTH": (1, 9, 1), "q_BTHK": (1, 9, 1, 2), "k_BTHK": (1, 9, 1, 2),
             "log_decay_BTHK": (1, 9, 1, 2)}  # fmt: skip
    for name in module.__all__:
        function, state = getattr(module, name), {}
        wanted = {p for p in inspect.signature(function).parameters if p in given}
        if name.endswith("_step") and "state_BHKV" in inspect.signature(function).parameters:
            state = {"state_BHKV": torch.zeros(1, 1, 2, 3)}
        inputs = {p: -torch.rand(given[p]) for p in wanted} | state
        got, expected = namespace[name](**inputs), function(**inputs)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["to_chunks", "from_chunks"])
def test_functions_of_one_name_have_one_source(name):
    sources = {inspect.getsource(getattr(module, name)) for module in (linear_recurrence, gated_linear, gated_delta)}
    assert len(sources) == 1


def test_scans_cut_time_into_chunks_by_one_source():
    assert inspect.getsource(selective_scan.chunk_tokens) == inspect.getsource(wkv.chunk_tokens)
