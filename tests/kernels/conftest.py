"""Puts Triton into its interpreter where there is no GPU, so that the kernels run on the CPU.

Triton reads TRITON_INTERPRET when it is imported, hence here, before any test module is. The tests that need the
compiler instead start a process of their own without it. Beside a GPU the variable is left alone, as it would send
every other test of the process through the interpreter too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def interpreter() -> None:
    """Skips where the kernels cannot be interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed (Linux only): pip install 'bodyplan[dev]'")
    from bodyplan.kernels.rmsnorm import triton as kernels

    if not kernels.runs_on_cpu():
        pytest.skip("Triton compiles in this process: run `make test-kernels`, which sets TRITON_INTERPRET=1 first")


@pytest.fixture
def compiled() -> Callable[[str], str]:
    """Runs `python ARGUMENTS` here, in a process where Triton compiles; returns what it printed or fails with it."""
    pytest.importorskip("triton", reason="Triton is not installed (Linux only): pip install 'bodyplan[dev]'")

    def run(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_DEFAULT_FP_FUSION"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, *arguments]
        here = Path(__file__).parent
        done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
