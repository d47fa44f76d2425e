"""The Triton kernels of RMSNorm compiled: for Hopper on any machine, and run where there is a GPU."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.kernels


def test_kernels_compile_for_hopper_without_spilling_registers(compiled):
    facts = json.loads(compiled("compile_for_hopper.py"))
    assert len(facts) == 20
    for fact in facts:
        assert fact["STACK"] == 0, fact
        assert fact["REG"] <= 255, fact
        assert fact["shared_bytes"] <= 227 * 1024, fact


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_kernels_agree_with_the_plain_form_on_a_gpu_twice_over(compiled):
    assert compiled("run_on_gpu.py").strip() == "agrees"
