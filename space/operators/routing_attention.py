"""Attention among tokens that lie nearest to the same centroid, beside heads that read a window.

Legend: B batch, T new tokens, S tokens so far, D width, H heads, J routing heads, L local heads, P head_dim, K clusters, W
members of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Init, Param, axis, param
from ..operator import Operator, Source
from .bucketed import newest_members, sorted_members, window_pairs
from .checks import require_whole
from .gathered import window_around, window_behind
from .windows import check_heads, head_size

__all__ = ["BalancedClusters", "CausalClusters", "RoutingAttention"]


class Clusters(nn.Module):
    """Routing heads come first, then local heads. A routing head has one vector per token for query, key and routing, set to
    mean 0 and variance 1; a cluster's affinity to it is its product with the centroid at length 1.

    The choice of clusters has no gradient. Centroids get one as if the log of the softmax over affinities had been added to
    the log of a cluster's outputs.
    """

    def __init__(self, width: int, routing_heads: int, local_heads: int, head_dim: int, clusters: int, members: int,
                 window: int):
        super().__init__()
        self.routing_heads, self.local_heads, self.head_dim = routing_heads, local_heads, head_dim
        self.members, self.window = members, window
        heads = routing_heads + local_heads
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, local_heads * head_dim, bias=False) if local_heads else None
        self.value = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.centroids = nn.Parameter(torch.empty(routing_heads, clusters, head_dim))

    def projected(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Vectors of routing and queries of local heads, [B, H, T, P]; values; keys of local heads."""
        q, v = (project(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for project in (self.query, self.value))
        k = None if self.key is None else self.key(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        routed = F.layer_norm(q[:, :self.routing_heads], (self.head_dim,))
        return torch.cat([routed, q[:, self.routing_heads:]], dim=1), v, k

    def affinity(self, x_BJTP: Tensor) -> Tensor:
        """[B, J, T, K], in float32 at least."""
        dtype = torch.promote_types(x_BJTP.dtype, torch.float32)
        return x_BJTP.to(dtype) @ F.normalize(self.centroids.to(dtype), dim=-1).transpose(1, 2)

    def moved(self, x_BTD: Tensor, decay: float = 0.999) -> Tensor:
        """The authors' update of the centroids by an exponential average of the vectors nearest to each, [J, K, P]; those
        without any stay. For training them so: `centroids.data = moved(x)` after each step."""
        x_BJTP = self.projected(x_BTD)[0][:, :self.routing_heads]
        nearest_BJTK = F.one_hot(self.affinity(x_BJTP).argmax(-1), self.centroids.shape[1]).to(x_BJTP.dtype)
        sums_JKP = torch.einsum("bjtk,bjtp->jkp", nearest_BJTK, x_BJTP)
        count_JK1 = nearest_BJTK.sum((0, 2))[..., None]
        means_JKP = torch.where(count_JK1 > 0, sums_JKP / count_JK1.clamp_min(1), self.centroids)
        return (decay * self.centroids + (1 - decay) * means_JKP).detach()


def as_if_weighed(log_weight: Tensor) -> Tensor:
    """1, with the gradient of a factor's log."""
    return 1 + (log_weight - log_weight.detach())


class CausalClusters(Clusters):
    """A token belongs to the cluster nearest to it, and reads the `members` newest of it. The cache keeps vectors, values and
    clusters of routing heads, and the last of a window for local heads."""

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        empty = torch.zeros(batch, self.routing_heads, 0, self.head_dim, dtype=dtype, device=device)
        bucket = torch.zeros(batch, self.routing_heads, 1, 0, dtype=torch.int64, device=device)
        local = torch.zeros(batch, self.local_heads, 0, self.head_dim, dtype=dtype, device=device)
        return {"query": empty, "value": empty, "cluster": bucket, "local_key": local, "local_value": local}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next T tokens."""
        state = state or self.init_state(len(x_BTD), x_BTD.dtype, x_BTD.device)
        q_BHTP, v_BHTP, k_BLTP = self.projected(x_BTD)
        first, new = self.routing_heads, x_BTD.shape[1]
        y_BJTP, routed = self.routed(q_BHTP[:, :first], v_BHTP[:, :first], state, new)
        if k_BLTP is None:
            y_BHTP, local = y_BJTP, {name: state[name] for name in ("local_key", "local_value")}
        else:
            y_BLTP, local = self.near(q_BHTP[:, first:], k_BLTP, v_BHTP[:, first:], state)
            y_BHTP = torch.cat([y_BJTP, y_BLTP], dim=1)
        return self.out(y_BHTP.transpose(1, 2).flatten(2)), routed | local

    def routed(self, x_BJTP: Tensor, v_BJTP: Tensor, state: dict[str, Tensor], new: int) -> tuple[Tensor, dict[str, Tensor]]:
        log_BJTK = self.affinity(x_BJTP).log_softmax(-1)
        nearest_BJT1 = log_BJTK.argmax(-1, keepdim=True)
        q, v = torch.cat([state["query"], x_BJTP], dim=2), torch.cat([state["value"], v_BJTP], dim=2)
        bucket = torch.cat([state["cluster"], nearest_BJT1.transpose(2, 3)], dim=3)
        y_BJTP = (newest_members(q[:, :, -1:], q, v, bucket, self.members, False) if new == 1 else
                  sorted_members(q, q, v, bucket, self.members, False)[:, :, -new:])
        y_BJTP = y_BJTP * as_if_weighed(log_BJTK.gather(3, nearest_BJT1)).to(y_BJTP.dtype)
        return y_BJTP, {"query": q, "value": v, "cluster": bucket}

    def near(self, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        new = q.shape[2]
        k, v = torch.cat([state["local_key"], k], dim=2), torch.cat([state["local_value"], v], dim=2)
        if new == 1:
            y = (q @ k.transpose(2, 3) * self.head_dim**-0.5).softmax(-1) @ v
        else:
            y = window_behind(F.pad(q, (0, 0, k.shape[2] - new, 0)), k, v, self.window)[:, :, -new:]
        first = max(k.shape[2] - self.window + 1, 0)
        return y, {"local_key": k[:, :, first:], "local_value": v[:, :, first:]}


class BalancedClusters(Clusters):
    """Every cluster takes the `members` tokens nearest to it, which read each other; a token in several clusters gets the
    mean of what it finds there, one in none nothing. Local heads look both ways."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTP, v_BHTP, k_BLTP = self.projected(x_BTD)
        first = self.routing_heads
        y_BHTP = self.routed(q_BHTP[:, :first], v_BHTP[:, :first])
        if k_BLTP is not None:
            near_BLTP = window_around(q_BHTP[:, first:], k_BLTP, v_BHTP[:, first:], self.window)
            y_BHTP = torch.cat([y_BHTP, near_BLTP], dim=1)
        y_BTD: Tensor = self.out(y_BHTP.transpose(1, 2).flatten(2))
        return y_BTD

    def routed(self, x_BJTP: Tensor, v_BJTP: Tensor) -> Tensor:
        affinity_BJTK = self.affinity(x_BJTP)
        index_BJKW = affinity_BJTK.transpose(2, 3).topk(min(self.members, x_BJTP.shape[2]), dim=-1).indices
        index_BJEP = index_BJKW.flatten(2)[..., None].expand(-1, -1, -1, self.head_dim)
        q, v = (torch.unflatten(part.gather(2, index_BJEP), 2, index_BJKW.shape[2:]) for part in (x_BJTP, v_BJTP))
        y = (q @ q.transpose(3, 4) * self.head_dim**-0.5).softmax(-1) @ v
        log_BJKW = affinity_BJTK.log_softmax(-1).transpose(2, 3).gather(3, index_BJKW)
        y = (y * as_if_weighed(log_BJKW)[..., None].to(y.dtype)).flatten(2, 3)
        index_BJE = index_BJKW.flatten(2)
        total_BJTP = torch.zeros_like(v_BJTP).scatter_add(2, index_BJE[..., None].expand_as(y), y)
        times_BJT = torch.zeros_like(v_BJTP[..., 0]).scatter_add(2, index_BJE, torch.ones_like(y[..., 0]))
        return total_BJTP / times_BJT.clamp_min(1)[..., None]


@dataclass(frozen=True)
class RoutingAttention(Operator):
    """Efficient Content-Based Sparse Attention with Routing Transformers (Roy et al., 2021).

    heads, of which the last `local_heads` (default: half) read a `window` and the others their cluster. clusters, best near
    the square root of the length, and the members of one that a token reads. head_dim defaults to width / heads. Queries
    are keys in routing heads, as in the authors' decoders.

    bidirectional: every cluster takes the tokens nearest to it out of the whole sequence, as the authors do. Causally that
    would look ahead, since tokens to come push others out; there a token belongs to its nearest cluster, and reads its newest
    members. Centroids are parameters that are trained with the rest; `moved` of the module is the authors' moving average.
    """

    heads: Any = 4
    local_heads: Any = None
    clusters: Any = 16
    members: Any = 128
    window: Any = 128
    head_dim: Any = None
    bidirectional: Any = False
    causal_to_the_bit: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    source: ClassVar[Source] = Source("Efficient Content-Based Sparse Attention with Routing Transformers", 2021,
                                      systems=("S400",))

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return not self.bidirectional

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return not self.bidirectional

    def _split(self) -> tuple[int, int]:
        """(routing heads, local heads)."""
        local = self.heads // 2 if self.local_heads is None else self.local_heads
        return self.heads - local, local

    def check(self, width: int, where: str) -> None:
        check_heads(self, width, where)
        for name in ("clusters", "members", "window"):
            require_whole(name, getattr(self, name), where)
        if self.local_heads is not None:
            require_whole("local_heads", self.local_heads, where, low=0)
        if self._split()[0] < 1:
            raise ValueError(f"at least one head must route at {where}: got {self.heads} heads with local_heads="
                             f"{self.local_heads}; use at most {self.heads - 1}")

    def axes(self, width: int) -> dict[str, Param]:
        routing, local = self._split()
        d, size = axis("width", width), head_size(self, width)
        j, near, p = axis("routing_heads", routing), axis("local_heads", local), axis("head_dim", size)
        inner = j * p + near * p if local else j * p
        key = {"key.weight": param(near * p, d)} if local else {}
        return {"query.weight": param(inner, d), "value.weight": param(inner, d), "out.weight": param(d, inner), **key,
                "centroids": param(j, axis("clusters", self.clusters), p, init=Init("normal", gain=1.0))}

    def build(self, width: int) -> nn.Module:
        kind = BalancedClusters if self.bidirectional else CausalClusters
        return kind(width, *self._split(), head_size(self, width), self.clusters, self.members, self.window)

    def macs(self, width: int, length: int) -> float:
        """Projections, affinities, and scores and values of what is read in clusters and windows."""
        (routing, local), size = self._split(), head_size(self, width)
        near = window_pairs(length, self.window)
        if self.bidirectional:
            near = 2 * near - length
            reads = routing * self.clusters * min(self.members, length) ** 2
        else:
            reads = routing * window_pairs(length, self.members)
        return float(length * (self.matrix_numel(width) + routing * self.clusters * size) + 2 * size * (reads + local * near))

    def decode_macs(self, width: int, length: int) -> float:
        """The next token; a whole pass where tokens look both ways."""
        if self.bidirectional:
            return self.macs(width, length + 1)
        return self.macs(width, length + 1) - self.macs(width, length)

    def state_numel(self, width: int, length: int) -> int:
        if self.bidirectional:
            return 0
        (routing, local), size = self._split(), head_size(self, width)
        return int(length * routing * (2 * size + 1) + 2 * local * size * min(length, self.window - 1))
