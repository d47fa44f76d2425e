"""What linear-time mixers have in common: feature maps, decays of heads, sizes and costs.

Legend: B batch, T tokens, H heads, P head_dim, F features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import unknown
from .checks import require_divisor, require_whole

__all__ = ["CHUNK", "FEATURES", "POSITIVE", "check_decays", "check_heads", "features", "gated_macs", "log_decays",
           "num_features", "recurrence_macs"]

CHUNK = 32
FEATURES = ("elu", "relu", "silu", "softmax", "taylor", "identity")
POSITIVE = ("elu", "relu", "softmax", "taylor")
SCHEDULES = ("retnet", "linear", "geometric")


def features(x_BTHP: Tensor, kind: str) -> Tensor:
    """The feature map of queries and keys, [B, T, H, F], in float32 at least.

    taylor: products of two are 1 + s + s^2 / 2 with s = q . k / sqrt(P), the beginning of exp(s).
    """
    x_BTHP = x_BTHP.to(torch.promote_types(x_BTHP.dtype, torch.float32))
    if kind == "elu":
        return F.elu(x_BTHP) + 1
    if kind == "relu":
        return F.relu(x_BTHP)
    if kind == "silu":
        return F.silu(x_BTHP)
    if kind == "softmax":
        return x_BTHP.softmax(-1)
    if kind == "taylor":
        x_BTHP = x_BTHP * x_BTHP.shape[-1] ** -0.25
        squares_BTHF = (x_BTHP[..., :, None] * x_BTHP[..., None, :]).flatten(-2)
        return torch.cat([torch.ones_like(x_BTHP[..., :1]), x_BTHP, squares_BTHF * 0.5**0.5], dim=-1)
    return x_BTHP


def num_features(kind: str, head_dim: int) -> int:
    """F, the features of a head."""
    return 1 + head_dim + head_dim**2 if kind == "taylor" else head_dim


def log_decays(decay: str | Sequence[float], heads: int, scale: float = 1.0) -> tuple[float, ...]:
    """The log decay of each head, times `scale`.

    retnet: log(1 - 2^(-5 - h)), the same for head h however many there are. linear: -8 h / H. geometric: the slopes of
    ALiBi, -2^(-8 (h + 1) / H). Numbers are decays themselves, in (0, 1].
    """
    if not isinstance(decay, str):
        return tuple(scale * math.log(each) for each in decay)
    if decay == "retnet":
        return tuple(scale * math.log1p(-(2.0 ** (-5 - h))) for h in range(heads))
    if decay == "linear":
        return tuple(scale * -8 * h / heads for h in range(heads))
    return tuple(scale * -(2.0 ** (-8 * (h + 1) / heads)) for h in range(heads))


def check_decays(decay: Any, heads: int, scale: float, where: str) -> None:
    """Raise ValueError unless `log_decays` can give one decay for each head."""
    if isinstance(decay, str):
        if decay not in SCHEDULES:
            raise ValueError(f"{unknown('decay', decay, SCHEDULES)} (at {where})")
    elif len(decay) != heads or not all(0 < each <= 1 for each in decay):
        raise ValueError(f"decay must be a schedule or one number in (0, 1] for each head at {where}: got {decay} for "
                         f"{heads} heads; use one of {', '.join(SCHEDULES)}")
    if not 0 <= scale <= 1:
        raise ValueError(f"decay_scale must be a number from 0 to 1 at {where}: got {scale}; use 1 - l / L in layer l of L")


def check_heads(heads: Any, head_dim: Any, width: int, where: str) -> None:
    """Raise ValueError unless there are whole heads of a whole size."""
    require_whole("heads", heads, where)
    if head_dim is None:
        require_divisor("heads", heads, "width", width, where)
    else:
        require_whole("head_dim", head_dim, where)


def recurrence_macs(length: int, heads: int, keys: int, values: int) -> float:
    """Multiply-adds of `chunked_linear_recurrence`: the products of the chunks a sequence is cut into."""
    chunks = -(-length // CHUNK)
    size = -(-length // chunks)
    return float(chunks * heads * size * (size * (keys + values) + 2 * keys * values))


def gated_macs(length: int, heads: int, keys: int, values: int) -> float:
    """Multiply-adds of `chunked_gated_linear`: pairs of different tokens inside chunks, and the states between."""
    size = min(CHUNK, 1 << (length - 1).bit_length())
    chunks = -(-length // size)
    return float(chunks * heads * size * ((size - 1) / 2 * (keys + values) + 2 * keys * values))
