"""Every operator measured alone on a device: what a person looks at before choosing what to put into a
space.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..space.operator import Operator
from ..space.operators.attention import Attention
from ..space.operators.gated_delta import GatedDeltaNet
from ..space.operators.hyena import Hyena
from ..space.operators.mamba2 import Mamba2
from ..space.operators.mlp import MLP
from ..space.operators.short_conv import ShortConv
from ..space.operators.swiglu import SwiGLU
from .devices import check_device, device_fingerprint, on_threads
from .latency import measure
from .objectives import Estimate

__all__ = ["profile_lines", "profile_operator"]

EXAMPLES: tuple[Operator, ...] = (
    Attention(heads=4, kv_heads=2), Attention(heads=4, kv_heads=2, window=64), GatedDeltaNet(heads=2),
    Mamba2(state=32, head_dim=32), ShortConv(kernel=4), Hyena(), SwiGLU(ratio=2), MLP(ratio=4))


def profile_operator(config: Operator, width: int, length: int, device: str) -> tuple[Estimate, Estimate | None]:
    """Milliseconds of a prefill of `length` tokens, and of one more token (None where the operator has no
    state).

    Batch 1, fp32, random weights; the interval is the bootstrap 95 % interval of the median.
    """
    target = check_device(device)
    module: Any = copy.deepcopy(config.build(width)).to(target).eval()
    x_BTD = torch.randn(1, length, width, generator=torch.Generator().manual_seed(0)).to(target)
    with on_threads(1):
        prefill = measure(lambda: module(x_BTD), device=device)
        if not hasattr(module, "step"):
            return prefill, None
        with torch.inference_mode():
            _, state = module.step(x_BTD, module.init_state(1, device=target))
        return prefill, measure(lambda: module.step(x_BTD[:, -1:], state), device=device)


def profile_lines(device: str, width: int = 128, length: int = 256) -> list[str]:
    """The table that `bodyplan profile` prints. Raises ValueError for a device that is not there."""
    check_device(device)
    lines = [f"{key}: {value}" for key, value in device_fingerprint(device).items()]
    lines += [f"width {width}, {length} tokens, batch 1, float32, one thread; milliseconds, median [95 % interval]", "",
              f"{'operator':<44}{'prefill':>26}{'one more token':>28}"]
    for config in EXAMPLES:
        config.check(width, "profile")
        prefill, decode = profile_operator(config, width, length, device)
        lines.append(f"{_label(config):<44}{_text(prefill):>26}{_text(decode):>28}")
    return lines


def _label(config: Operator) -> str:
    from dataclasses import fields

    given: list[tuple[str, Any]] = [(f.name, getattr(config, f.name)) for f in fields(config)]       # type: ignore[arg-type]
    return f"{type(config).__name__}({', '.join(f'{k}={v}' for k, v in given[:3] if v is not None)})"


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
