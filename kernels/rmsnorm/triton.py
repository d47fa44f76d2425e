"""RMSNorm in Triton: forward and backward, with an optional residual addition fused into both.

A program holds a tile of ROWS_PER_PROGRAM whole rows. The backward programs walk over tiles with a stride, each adding
up its share of the weight gradient in float32; a second step sums the shares in a fixed order, so that two runs agree
bit for bit (atomic additions would not). Every load is widened at once: half-precision sums are wrong on a GPU and
garbage in Triton's interpreter. Runs with Triton 3.6 to 3.9: plain offsets and masks, no block pointers, no autotuning.

Importing this module imports triton; `rms_norm` in the folder above does so on first use.
"""

# Triton's language has no types, and torch.cuda.device_of none either:
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["MAX_WIDTH", "add_rms_norm", "rms_norm", "runs_on_cpu", "tile"]

MAX_WIDTH = 16384  # a row lives in the registers of one program; twice that would spill a kilobyte a thread

ACC_DTYPES = {torch.float64: tl.float64}  # tl.float32 for all others


@triton.jit
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, rstd_ptr,
    num_rows, x_stride, residual_stride,
    WIDTH: tl.constexpr, EPS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y = norm(x [+ residual]) * weight; total = x + residual; rstd, one per row, for the backward."""
    rows = tl.program_id(0).to(tl.int64) * ROWS_PER_PROGRAM + tl.arange(0, ROWS_PER_PROGRAM)
    columns = tl.arange(0, BLOCK)
    row_mask = rows < num_rows
    column_mask = columns < WIDTH
    mask = row_mask[:, None] & column_mask[None, :]
    out = rows[:, None] * WIDTH + columns[None, :]

    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(ACC)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + rows[:, None] * residual_stride + columns[None, :], mask=mask, other=0.0)
        total = (x + residual.to(ACC)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + out, total, mask=mask)
        x = total.to(ACC)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / WIDTH + EPS)
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(ACC)
    y = x * rstd[:, None] * weight[None, :]
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(rstd_ptr + rows, rstd, mask=row_mask)


@triton.jit
def backward_kernel(
    dy_ptr, dtotal_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, dweight_ptr,
    num_rows, num_tiles, dy_stride, dtotal_stride, x_stride,
    WIDTH: tl.constexpr, HAS_DTOTAL: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx = rstd * (dy w - xhat mean(dy w xhat)) [+ dtotal], and this program's row of the shares of dweight."""
    first = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    column_mask = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0).to(ACC)
    dweight = tl.zeros([BLOCK], dtype=ACC)
    for tile_index in range(first, num_tiles, tl.num_programs(0)):
        rows = (tile_index * ROWS_PER_PROGRAM + tl.arange(0, ROWS_PER_PROGRAM)).to(tl.int64)
        row_mask = rows < num_rows
        mask = row_mask[:, None] & column_mask[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + columns[None, :], mask=mask, other=0.0).to(ACC)
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(ACC)
        rstd = tl.load(rstd_ptr + rows, mask=row_mask, other=0.0).to(ACC)
        xhat = x * rstd[:, None]
        dweight += tl.sum(dy * xhat, axis=0)
        dxhat = dy * weight[None, :]
        dx = rstd[:, None] * (dxhat - xhat * (tl.sum(dxhat * xhat, axis=1) / WIDTH)[:, None])
        if HAS_DTOTAL:
            dtotal = tl.load(dtotal_ptr + rows[:, None] * dtotal_stride + columns[None, :], mask=mask, other=0.0)
            dx += dtotal.to(ACC)
        out = rows[:, None] * WIDTH + columns[None, :]
        tl.store(dx_ptr + out, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dweight_ptr + first.to(tl.int64) * WIDTH + columns, dweight, mask=column_mask)


def runs_on_cpu() -> bool:
    """Whether the kernels were decorated for Triton's interpreter (TRITON_INTERPRET=1 before triton's import)."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def tile(width: int) -> dict[str, int]:
    """BLOCK, ROWS_PER_PROGRAM and num_warps of a launch: about 4,096 elements a program, 32 a thread.

    A fixed rule instead of autotuning, which needs a GPU at import and makes results depend on timing. The
    interpreter pays per program and operation, not per element: there a program takes up to 64 rows.
    """
    block = triton.next_power_of_2(width)
    if runs_on_cpu():
        return {"BLOCK": block, "ROWS_PER_PROGRAM": max(1, min(64, 65536 // block)), "num_warps": 4}
    rows = max(1, min(16, 4096 // block))
    return {"BLOCK": block, "ROWS_PER_PROGRAM": rows, "num_warps": min(16, max(4, block * rows // 1024))}


def _rows(x: Tensor) -> Tensor:
    """x as [rows, width] with adjacent columns; a copy only where strides leave no other way."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _launch_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = _rows(x)
    added = rows if residual is None else _rows(residual)
    num_rows, width = rows.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = y if residual is None else torch.empty_like(y)
    acc = torch.promote_types(x.dtype, torch.float32)
    rstd = torch.empty(num_rows, dtype=acc, device=x.device)
    config = tile(width)
    grid = (triton.cdiv(num_rows, config["ROWS_PER_PROGRAM"]),)
    if num_rows:
        with torch.cuda.device_of(x):
            forward_kernel[grid](
                rows, added, weight.contiguous(), y, total, rstd, num_rows, rows.stride(0), added.stride(0),
                WIDTH=width, EPS=eps, HAS_RESIDUAL=residual is not None, ACC=ACC_DTYPES.get(acc, tl.float32),
                **config,
            )  # fmt: skip
    return y, total, rstd


def _num_programs(device: torch.device) -> int:
    """Backward programs at most: four to a multiprocessor; two in the interpreter, enough to test the second step."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@torch.library.custom_op("bodyplan::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, _, rstd = _launch_forward(x, None, weight, eps)
    return y, rstd


@torch.library.custom_op("bodyplan::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _launch_forward(x, residual, weight, eps)


@torch.library.custom_op("bodyplan::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    dy_rows, x_rows = _rows(dy), _rows(x)
    dtotal_rows = dy_rows if dtotal is None else _rows(dtotal)
    num_rows, width = x_rows.shape
    config = tile(width)
    num_tiles = triton.cdiv(num_rows, config["ROWS_PER_PROGRAM"])
    num_programs = max(1, min(num_tiles, _num_programs(x.device)))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shares = torch.empty(num_programs, width, dtype=rstd.dtype, device=x.device)
    with torch.cuda.device_of(x):
        backward_kernel[(num_programs,)](
            dy_rows, dtotal_rows, x_rows, weight.contiguous(), rstd, dx, shares, num_rows, num_tiles,
            dy_rows.stride(0), dtotal_rows.stride(0), x_rows.stride(0),
            WIDTH=width, HAS_DTOTAL=dtotal is not None, ACC=ACC_DTYPES.get(rstd.dtype, tl.float32), **config,
        )  # fmt: skip
    return dx, shares.sum(dim=0).to(weight.dtype)


def _fake_rstd(x: Tensor) -> Tensor:
    num_rows = x.numel() // x.shape[-1]
    return x.new_empty(num_rows, dtype=torch.promote_types(x.dtype, torch.float32))


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _fake_rstd(x)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_rstd(x)


@_rms_norm_backward.register_fake
def _(dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])


def _keep_total(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _ = inputs
    _, total, rstd = output
    ctx.save_for_backward(total, weight, rstd)


def _pull(ctx: Any, dy: Tensor, drstd: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = _rms_norm_backward(dy, None, x, weight, rstd)
    return dx, dweight, None


def _pull_total(
    ctx: Any, dy: Tensor, dtotal: Tensor, drstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, None]:
    total, weight, rstd = ctx.saved_tensors
    dx, dweight = _rms_norm_backward(dy, dtotal, total, weight, rstd)
    return dx, dx, dweight, None


_rms_norm.register_autograd(_pull, setup_context=_keep)
_add_rms_norm.register_autograd(_pull_total, setup_context=_keep_total)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`naive_rms_norm` in one kernel; differentiable once, usable under torch.compile."""
    y: Tensor = _rms_norm(x, weight, eps)[0]
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`naive_add_rms_norm` in one kernel: 4 instead of 5 passes over memory."""
    y, total, _ = _add_rms_norm(x, residual, weight, eps)
    return y, total
