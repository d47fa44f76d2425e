"""Checks of this folder: `python test_export.py`, or pytest. Needs torch and safetensors alone."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


def machine() -> dict[str, str]:
    """What the last bits of a result depend on, beside the number of threads (always 1 here)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor() or platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def load() -> Any:
    """The model of this folder with its weights, on one thread."""
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("exported_model", HERE / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Model.from_pretrained(HERE)


def tolerance(outputs: torch.Tensor) -> float:
    """How far results may lie apart, relative to the largest."""
    return 1e-5 if outputs.dtype in (torch.float32, torch.float64) else 2e-2


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest wanted value."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def test_weights_have_the_names_and_shapes_of_the_model() -> None:
    weights = load_file(HERE / "model.safetensors")
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in load().state_dict().items()}


@torch.no_grad()
def test_outputs_are_those_of_the_trained_model() -> None:
    """Bit for bit on the machine that wrote them, to 1e-5 elsewhere."""
    with safe_open(HERE / "expected.safetensors", "pt") as stored:
        inputs, wanted = stored.get_tensor("inputs"), stored.get_tensor("outputs")
        written_on = json.loads(stored.metadata()["machine"])
    got = load()(inputs)
    if written_on == machine():
        assert torch.equal(got, wanted), f"largest relative difference {difference(got, wanted)}"
    assert difference(got, wanted) <= tolerance(wanted)


@torch.no_grad()
def test_step_by_step_decoding_gives_the_same_logits() -> None:
    model, ids_BT = load(), load_file(HERE / "expected.safetensors")["inputs"]
    state, logits = model.init_state(len(ids_BT), dtype=next(model.parameters()).dtype), []
    for t in range(ids_BT.shape[1]):
        logits_B1V, state = model.step(ids_BT[:, t:t + 1], state)
        logits.append(logits_B1V)
    assert difference(torch.cat(logits, dim=1), model(ids_BT)) <= tolerance(logits_B1V)


def test_generation_repeats_with_a_seed() -> None:
    model, ids_BT = load(), load_file(HERE / "expected.safetensors")["inputs"][:, :4]
    first, second = (model.generate(ids_BT, 12, temperature=0.8, top_k=40, seed=0) for _ in range(2))
    assert first.shape == (len(ids_BT), 16) and torch.equal(first, second)


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("test_"):
            check()
            print(f"passed: {name.removeprefix('test_').replace('_', ' ')}")
