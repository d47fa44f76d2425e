"""Full attention by a factorisation: near tokens directly, far ones through the regions they lie in.

Legend: B batch, T tokens, D width, H heads, P head_dim, C blocks or rows, N places of a block or row, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param
from ..operator import Operator, Source
from .checks import require_whole
from .gathered import cut
from .windows import check_heads, head_size, projections

__all__ = ["AxialCombiner", "BlockCombiner", "Combiner", "LogCombiner"]

PATTERNS = ("fixed", "logsparse", "axial")


def abstraction(q_BHCNP: Tensor, k_BHCNP: Tensor, v_BHCNP: Tensor) -> tuple[Tensor, Tensor]:
    """A key and a value for each region, [B, H, C, P]: the largest entries of its keys, and its values weighed by the
    softmax of the largest entries of its queries with its keys."""
    query_BHC1P = q_BHCNP.amax(3, keepdim=True) / math.sqrt(q_BHCNP.shape[-1])
    return k_BHCNP.amax(3), ((query_BHC1P @ k_BHCNP.transpose(3, 4)).softmax(-1) @ v_BHCNP)[:, :, :, 0]


class Factorised(nn.Module):
    """`o_i = (sum over near j of exp(q_i . k_j) v_j + sum over regions r of exp(q_i . k_r) v_r) / the same sum without v`."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.projected(x_BTD)
        y_BTD: Tensor = self.out(self.mixed(q, k, v).transpose(1, 2).flatten(2))
        return y_BTD

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(x_BTD).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
                     for project in (self.query, self.key, self.value))

    def mixed(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define mixed(q, k, v)")


class BlockCombiner(Factorised):
    """Near are the tokens of the own block; the regions are the blocks before. The state keeps the block that has begun, and
    of the others their abstractions."""

    def __init__(self, width: int, heads: int, head_dim: int, block: int):
        super().__init__(width, heads, head_dim)
        self.block = block

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, self.heads, 0, self.head_dim, dtype=dtype, device=device)
        return {name: empty for name in ("query", "key", "value", "region_key", "region_value")}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next T tokens, with the begun block before them."""
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        names = ("query", "key", "value")
        q, k, v = (torch.cat([state[name], part], dim=2) for name, part in zip(names, self.projected(x_BTD), strict=True))
        full, new = q.shape[2] // self.block, x_BTD.shape[1]
        region_k, region_v = state["region_key"], state["region_value"]
        if full:
            made_k, made_v = abstraction(*(cut(part[:, :, :full * self.block], self.block) for part in (q, k, v)))
            region_k, region_v = torch.cat([region_k, made_k], dim=2), torch.cat([region_v, made_v], dim=2)
        before = state["region_key"].shape[2]
        y_BHTP = (self.one(q, k, v, region_k[:, :, :before], region_v[:, :, :before]) if new == 1 else
                  self.many(q, k, v, region_k, region_v, before)[:, :, -new:])
        kept = {name: part[:, :, full * self.block:] for name, part in zip(names, (q, k, v), strict=True)}
        return self.out(y_BHTP.transpose(1, 2).flatten(2)), kept | {"region_key": region_k, "region_value": region_v}

    def one(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor, region_k: Tensor, region_v: Tensor) -> Tensor:
        """The newest token alone."""
        q_BH1P = q_BHTP[:, :, -1:] / math.sqrt(self.head_dim)
        weights = (q_BH1P @ torch.cat([region_k, k_BHTP], dim=2).transpose(2, 3)).softmax(-1)
        y_BH1P: Tensor = weights @ torch.cat([region_v, v_BHTP], dim=2)
        return y_BH1P

    def many(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor, region_k: Tensor, region_v: Tensor,
             before: int) -> Tensor:
        """Tokens from the start of a block on, which `before` regions precede."""
        length, device = q_BHTP.shape[2], q_BHTP.device
        q_BHCNP, k_BHCNP, v_BHCNP = (cut(part, self.block) for part in (q_BHTP, k_BHTP, v_BHTP))
        q_BHCNP = q_BHCNP / math.sqrt(self.head_dim)
        place_N, region_R = torch.arange(self.block, device=device), torch.arange(region_k.shape[2], device=device)
        own_C11 = before + torch.arange(q_BHCNP.shape[2], device=device)[:, None, None]
        far_BHCNR = (q_BHCNP @ region_k[:, :, None].transpose(3, 4)).masked_fill(region_R >= own_C11, -torch.inf)
        near_BHCNN = (q_BHCNP @ k_BHCNP.transpose(3, 4)).masked_fill(place_N > place_N[:, None], -torch.inf)
        weights = torch.cat([far_BHCNR, near_BHCNN], dim=-1).softmax(-1)
        far_BHCNR, near_BHCNN = weights[..., :len(region_R)], weights[..., len(region_R):]
        return (far_BHCNR @ region_v[:, :, None] + near_BHCNN @ v_BHCNP).flatten(2, 3)[:, :, :length]


class LogCombiner(Factorised):
    """Near is the token itself; the regions are the blocks of 2^l tokens that the ones in the binary digits of its place
    stand for: 13 = 8 + 4 + 1 has [0, 8), [8, 12) and [12, 13)."""

    def mixed(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor) -> Tensor:
        length = q_BHTP.shape[2]
        place_T = torch.arange(length, device=q_BHTP.device)
        keys, values, seen = [k_BHTP], [v_BHTP], [torch.ones_like(place_T, dtype=torch.bool)]
        for level in range((length - 1).bit_length()):
            whole = length >> level << level
            k_BHCP, v_BHCP = abstraction(*(cut(part[:, :, :whole], 1 << level) for part in (q_BHTP, k_BHTP, v_BHTP)))
            index_T = ((place_T >> level) - 1).clamp_min(0)
            keys.append(k_BHCP[:, :, index_T])
            values.append(v_BHCP[:, :, index_T])
            seen.append((place_T >> level) % 2 == 1)
        logits_BHTL = (torch.stack(keys, 3) @ q_BHTP[..., None])[..., 0] / math.sqrt(self.head_dim)
        weights_BHTL = logits_BHTL.masked_fill(~torch.stack(seen, 1), -torch.inf).softmax(-1)
        y_BHTP: Tensor = (weights_BHTL[..., None, :] @ torch.stack(values, 3))[..., 0, :]
        return y_BHTP


class AxialCombiner(Factorised):
    """The sequence lies in rows of `block` tokens. Near are the tokens of the own row; the regions are the columns above it,
    each from the first row on."""

    def __init__(self, width: int, heads: int, head_dim: int, block: int):
        super().__init__(width, heads, head_dim)
        self.block = block

    def mixed(self, q_BHTP: Tensor, k_BHTP: Tensor, v_BHTP: Tensor) -> Tensor:
        q_BHCNP, k_BHCNP, v_BHCNP = (cut(part, self.block) for part in (q_BHTP, k_BHTP, v_BHTP))
        region_k, region_v = self.columns(*(part[:, :, :-1].transpose(2, 3) for part in (q_BHCNP, k_BHCNP, v_BHCNP)))
        q_BHCNP = q_BHCNP / math.sqrt(self.head_dim)
        place_N = torch.arange(self.block, device=q_BHTP.device)
        is_first_C11 = torch.arange(q_BHCNP.shape[2], device=q_BHTP.device)[:, None, None] == 0
        far_BHCNN = (q_BHCNP @ region_k.transpose(3, 4)).masked_fill(is_first_C11, -torch.inf)
        near_BHCNN = (q_BHCNP @ k_BHCNP.transpose(3, 4)).masked_fill(place_N > place_N[:, None], -torch.inf)
        far_BHCNN, near_BHCNN = torch.cat([far_BHCNN, near_BHCNN], dim=-1).softmax(-1).chunk(2, dim=-1)
        return (far_BHCNN @ region_v + near_BHCNN @ v_BHCNP).flatten(2, 3)[:, :, :q_BHTP.shape[2]]

    def columns(self, q_BHNCP: Tensor, k_BHNCP: Tensor, v_BHNCP: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns above every row, [B, H, C + 1, N, P]; zeros above the first row."""
        row_C = torch.arange(q_BHNCP.shape[3], device=q_BHNCP.device)
        if len(row_C):
            q_BHNCP = q_BHNCP.cummax(3).values / math.sqrt(self.head_dim)
            inside_BHNCC = (q_BHNCP @ k_BHNCP.transpose(3, 4)).masked_fill(row_C > row_C[:, None], -torch.inf)
            k_BHNCP, v_BHNCP = k_BHNCP.cummax(3).values, inside_BHNCC.softmax(-1) @ v_BHNCP
        return (F.pad(k_BHNCP.transpose(2, 3), (0, 0, 0, 0, 1, 0)),
                F.pad(v_BHNCP.transpose(2, 3), (0, 0, 0, 0, 1, 0)))


@dataclass(frozen=True)
class Combiner(Operator):
    """Combiner: Full Attention Transformer with Sparse Computation Cost (Ren et al., 2021), causal.

    pattern: which tokens are read directly, and the regions through which all others are. "fixed": the own block of `block`
    tokens, and the blocks before; "logsparse": the token, and blocks of powers of two (`block` is not used); "axial": the own
    row of `block` tokens, and the columns above it (the paper's axial-vertical). With `block` near the square root of the
    length, fixed and axial cost T^1.5, logsparse T log T. A region's abstraction is the maximum over its keys, and over
    its queries for the weights inside it. head_dim defaults to width / heads.

    In "logsparse" the paper also reads the first token after each block directly; here a token belongs to one block alone, so
    that the weights are a distribution over all tokens. Streams with "fixed"; in the other patterns regions change with
    every token, and with every row, so that a state would keep the queries, keys and values of all tokens.
    """

    heads: Any = 4
    pattern: Any = "fixed"
    block: Any = 64
    head_dim: Any = None
    keeps_zero: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Combiner: Full Attention Transformer with Sparse Computation Cost", 2021,
                                      systems=("S042",))

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return bool(self.pattern == "fixed")

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        require_whole("block", self.block, where)
        if self.pattern not in PATTERNS:
            raise ValueError(f"{unknown('pattern', self.pattern, PATTERNS)} (at {where})")

    def axes(self, width: int) -> dict[str, Param]:
        return projections(width, self.heads, head_size(self, width))

    def build(self, width: int) -> nn.Module:
        sizes = (width, self.heads, head_size(self, width))
        if self.pattern == "logsparse":
            return LogCombiner(*sizes)
        return (BlockCombiner if self.pattern == "fixed" else AxialCombiner)(*sizes, self.block)

    def _products(self, length: int) -> int:
        """Products of a head dimension: pairs read, regions read, and what abstractions take."""
        full, rest = divmod(length, self.block)
        if self.pattern == "fixed":
            near = full * self.block * (self.block + 1) // 2 + rest * (rest + 1) // 2
            far = self.block * full * (full - 1) // 2 + rest * full
            return int(2 * (near + far + full * self.block))
        if self.pattern == "logsparse":
            levels = (length - 1).bit_length()
            return 2 * (sum(length >> level << level for level in range(levels)) + length * (levels + 1))
        rows = -(-length // self.block)
        return int(2 * (self.block * (rows - 1) ** 2 + 2 * rows * self.block**2))

    def macs(self, width: int, length: int) -> float:
        """Projections, direct pairs, regions and their abstractions."""
        return float(length * self.matrix_numel(width) + self.heads * head_size(self, width) * self._products(length))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token, with a block's abstraction where it completes one; a whole pass where nothing streams."""
        if self.pattern != "fixed":
            return self.macs(width, length + 1)
        return self.macs(width, length + 1) - self.macs(width, length)

    def state_numel(self, width: int, length: int) -> int:
        if self.pattern != "fixed":
            return 0
        full, rest = divmod(length, self.block)
        return int((3 * rest + 2 * full) * self.heads * head_size(self, width))
