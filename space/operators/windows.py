"""Windows over a grid: which places each one holds, the gather that cuts them out, and what attention in them shares.

A window is described along each dimension by itself: an index [windows, places] of the places it holds, clamped to the
grid, and which of those are really there. Blocks, blocks with a halo, every n-th place and the nearest neighbours of each
place are then the same gather, linear in the number of tokens.

Legend: B batch, H and W rows and columns of tokens, E any features, R and C windows down and across, A places of a window
in one dimension, K heads, N queries and M keys of a window, P head_dim, V head_dim of the values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..axes import Param, axis, param
from .checks import require_divisor, require_whole
from .spatial import rounded_up

__all__ = ["attend_windows", "block_side", "blocks", "check_heads", "gather_windows", "grid_of_interleaved",
           "grid_of_windows", "head_size", "interleaved", "neighbours", "projections", "seen_in_windows", "split_heads"]


def blocks(size: int, block: int, halo: int, device: torch.device) -> Tensor:
    """Places of consecutive blocks with `halo` places more at both ends, [R, block + 2 halo]; not clamped."""
    start_R1 = torch.arange(0, rounded_up(size, block), block, device=device)[:, None]
    return start_R1 + torch.arange(-halo, block + halo, device=device)


def interleaved(size: int, window: int, device: torch.device) -> Tensor:
    """`window` places as far apart as there are windows, [R, A]; from `size` on where that does not come out even."""
    side = min(window, max(size, 1))
    windows = -(-size // side)
    return torch.arange(windows, device=device)[:, None] + windows * torch.arange(side, device=device)


def neighbours(size: int, kernel: int, dilation: int, device: torch.device) -> Tensor:
    """The `kernel` nearest places of every place among those a multiple of `dilation` away, [size, A]; not clamped.

    Near an end the neighbourhood moves inward, so that all places have equally many. Where there are fewer than `kernel`,
    all are neighbours; numbers from `size` on fill up the rest.
    """
    place_S = torch.arange(size, device=device)
    first_S, step_S = place_S % dilation, torch.div(place_S, dilation, rounding_mode="floor")
    count_S = torch.div(size - first_S + dilation - 1, dilation, rounding_mode="floor")
    start_S = torch.minimum(step_S - kernel // 2, count_S - kernel).clamp(min=0)
    steps_SA = start_S[:, None] + torch.arange(min(kernel, -(-size // dilation)), device=device)
    return first_S[:, None] + dilation * steps_SA


def gather_windows(x_BHWE: Tensor, rows_RA: Tensor, columns_CA: Tensor) -> Tensor:
    """The places of all windows, [B, R, C, A * A, E]; places off the grid give the nearest one on it."""
    _, height, width, _ = x_BHWE.shape
    down, across = rows_RA.clamp(0, height - 1), columns_CA.clamp(0, width - 1)
    x_BRAWE = torch.unflatten(x_BHWE.index_select(1, down.flatten()), 1, down.shape)
    x_BRACAE = torch.unflatten(x_BRAWE.index_select(3, across.flatten()), 3, across.shape)
    return x_BRACAE.transpose(2, 3).flatten(3, 4)


def seen_in_windows(height: int, width: int, rows_RA: Tensor, columns_CA: Tensor) -> Tensor:
    """Which places of all windows are on the grid, [R, C, A * A]."""
    down = (rows_RA >= 0) & (rows_RA < height)
    across = (columns_CA >= 0) & (columns_CA < width)
    return (down[:, None, :, None] & across[None, :, None, :]).flatten(2)


def split_heads(x_BRCNE: Tensor, heads: int) -> Tensor:
    """[B, R, C, K, N, P]."""
    return torch.unflatten(x_BRCNE, -1, (heads, x_BRCNE.shape[-1] // heads)).transpose(-2, -3)


def attend_windows(logits_BRCKNM: Tensor, v_BRCKMV: Tensor, seen_RCM: Tensor | None) -> Tensor:
    """Softmax over the keys that are there, times the values: [B, R, C, N, K * V]."""
    if seen_RCM is not None:
        logits_BRCKNM = logits_BRCKNM.masked_fill(~seen_RCM[:, :, None, None, :], -torch.inf)
    return (logits_BRCKNM.softmax(-1) @ v_BRCKMV).transpose(-2, -3).flatten(-2)


def grid_of_windows(y_BRCNE: Tensor, sides: tuple[int, int], height: int, width: int) -> Tensor:
    """Windows that lie side by side as a grid again, [B, H, W, E], without what filled up the last ones."""
    y_BRACAE = torch.unflatten(y_BRCNE, 3, sides).transpose(2, 3)
    return y_BRACAE.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def grid_of_interleaved(y_BRCNE: Tensor, sides: tuple[int, int], height: int, width: int) -> Tensor:
    """The windows of `interleaved` places as a grid again, [B, H, W, E]."""
    y_BARACE = torch.unflatten(y_BRCNE, 3, sides).permute(0, 3, 1, 4, 2, 5)
    return y_BARACE.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def block_side(block: int, halo: int, size: int) -> tuple[int, int]:
    """(block, halo) along a dimension of `size` places: one block over all of it has nothing around it."""
    return (block, halo) if block < size else (max(size, 1), 0)


def head_size(config: Any, width: int) -> int:
    """head_dim, by default width / heads."""
    return int(config.head_dim or width // config.heads)


def check_heads(config: Any, width: int, where: str) -> None:
    """Raise ValueError unless heads and head_dim can be built at this width."""
    require_whole("heads", config.heads, where)
    if config.head_dim is None:
        require_divisor("heads", config.heads, "width", width, where)
    else:
        require_whole("head_dim", config.head_dim, where)


def projections(width: int, heads: int, head_dim: int) -> dict[str, Param]:
    """Matrices to queries, keys and values, and back to the width."""
    d, inner = axis("width", width), axis("heads", heads) * axis("head_dim", head_dim)
    return {"query.weight": param(inner, d), "key.weight": param(inner, d), "value.weight": param(inner, d),
            "out.weight": param(d, inner)}
