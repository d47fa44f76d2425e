"""RMSNorm, alone or fused with the residual addition before it.

    naive.py    plain torch, any device and dtype: the specification
    triton.py   forward and backward kernels for NVIDIA GPUs

`impl` says which: "auto" takes Triton for CUDA tensors and plain torch elsewhere. Nothing falls back silently: where
the chosen one cannot run, the call raises and says what to do.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from torch import Tensor

from .naive import naive_add_rms_norm, naive_rms_norm

__all__ = ["Implementation", "add_rms_norm", "naive_add_rms_norm", "naive_rms_norm", "rms_norm"]

Implementation = Literal["auto", "naive", "triton"]


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, impl: Implementation = "auto") -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once to the dtype of x.

    Args:
        x: any shape [..., D], any strides.
        weight: [D], floating point of any width.
        impl: "auto", "naive" or "triton".

    Raises:
        ValueError: shapes, devices or `impl` do not fit; Triton is asked for on a CPU outside its interpreter.
        ImportError: Triton is needed and not installed.
    """
    _check(x, weight, impl)
    if _takes_triton(x, impl):
        y: Tensor = _kernels(x).rms_norm(x, weight, eps)
        return y
    return naive_rms_norm(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, impl: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """The norm of x + residual and the sum itself: the step between two pre-norm sublayers, in one kernel.

    The sum is rounded to the dtype of x before the norm sees it. Arguments and errors as in `rms_norm`; x and
    residual have one shape, dtype and device.
    """
    _check(x, weight, impl)
    if (x.shape, x.dtype, x.device) != (residual.shape, residual.dtype, residual.device):
        raise ValueError(
            "x and residual must have one shape, dtype and device: got "
            f"{list(x.shape)} {x.dtype} {x.device} and {list(residual.shape)} {residual.dtype} {residual.device}"
        )
    if _takes_triton(x, impl):
        both: tuple[Tensor, Tensor] = _kernels(x).add_rms_norm(x, residual, weight, eps)
        return both
    return naive_add_rms_norm(x, residual, weight, eps)


def _takes_triton(x: Tensor, impl: str) -> bool:
    return impl == "triton" or (impl == "auto" and x.is_cuda)


def _check(x: Tensor, weight: Tensor, impl: str) -> None:
    if impl not in ("auto", "naive", "triton"):
        raise ValueError(f"impl must be 'auto', 'naive' or 'triton': got {impl!r}")
    if not (x.is_floating_point() and weight.is_floating_point()):
        raise ValueError(f"x and weight must be floating point: got {x.dtype} and {weight.dtype}")
    if x.ndim == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must have the last dimension of x: got {list(weight.shape)} for x {list(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"x and weight must be on one device: got {x.device} and {weight.device}")


def _kernels(x: Tensor) -> ModuleType:
    """The Triton module, or the reason why it cannot take x."""
    try:
        from . import triton as kernels
    except ImportError as error:
        raise ImportError(
            f"rms_norm of a {x.device.type} tensor needs Triton, which cannot be imported ({error}); "
            "install it (pip install 'bodyplan[triton]') or pass impl='naive'"
        ) from error
    if not x.is_cuda and not kernels.runs_on_cpu():
        raise ValueError(
            f"impl='triton' needs a CUDA tensor: got one on {x.device}; pass impl='auto' or 'naive', or set "
            "TRITON_INTERPRET=1 in the environment before Python starts to run the kernels in Triton's interpreter"
        )
    if x.shape[-1] > kernels.MAX_WIDTH:
        raise ValueError(
            f"the Triton kernel holds a row in registers, at most {kernels.MAX_WIDTH} wide: got {x.shape[-1]}; "
            "pass impl='naive'"
        )
    return kernels
