"""A feed-forward layer over a part of the channels, which each token chooses.

Legend: B batch, T tokens, N tokens of all sequences, D width, S shared channels, G groups, P channels of a group,
K groups per token, M tokens that chose a group, F hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_whole
from .mlp import check_ratio, hidden_size

__all__ = ["HiddenMixture", "MoHD", "check_groups", "chosen_groups", "group_sizes", "read_active", "write_active"]


class HiddenMixture(nn.Module):
    """`down(silu(gate(x)) * up(x))` reading and writing the shared channels and the groups that a router picks."""

    def __init__(self, width: int, hidden: int, shared: int, groups: int, top_k: int):
        super().__init__()
        self.shared, self.groups, self.top_k = shared, groups, top_k
        self.router = nn.Linear(width, groups, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.fusion = nn.Parameter(torch.empty(groups, groups))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, -2)
        weight_NG, members = self.route(x_ND)
        # Channels that are left out take their share of the norm with them.
        size = (x_ND.shape[1] - self.shared) // self.groups
        scale = (x_ND.shape[1] / (self.shared + self.top_k * size)) ** 0.5
        scaled_ND = scale * x_ND
        h_NF = F.silu(self.read(scaled_ND, members, self.gate.weight)) * self.read(scaled_ND, members, self.up.weight)
        return self.write(scale * h_NF, weight_NG, members).view(x_BTD.shape)

    def route(self, x_ND: Tensor) -> tuple[Tensor, list[Tensor]]:
        return chosen_groups(self.router(x_ND), self.top_k)

    def read(self, x_ND: Tensor, members: list[Tensor], weight_FD: Tensor) -> Tensor:
        return read_active(x_ND, members, weight_FD, self.shared)

    def write(self, h_NF: Tensor, weight_NG: Tensor, members: list[Tensor]) -> Tensor:
        return write_active(h_NF, weight_NG, members, self.down.weight, self.fusion, self.shared)


def chosen_groups(score_NG: Tensor, top_k: int) -> tuple[Tensor, list[Tensor]]:
    """Weights of all groups, 1 where the router has no preference, and for each group the tokens that chose it."""
    chosen_NK = score_NG.topk(top_k, dim=-1).indices
    chosen_NG = torch.zeros_like(score_NG, dtype=torch.bool).scatter(-1, chosen_NK, True)
    members = [rows_N.nonzero().squeeze(-1) for rows_N in chosen_NG.unbind(-1)]
    return score_NG.shape[1] * F.softmax(score_NG, -1), members


def read_active(x_ND: Tensor, members: list[Tensor], weight_FD: Tensor, shared: int) -> Tensor:
    """`weight @ x` over the active channels."""
    y_NF = F.linear(x_ND[:, :shared], weight_FD[:, :shared])
    x_NGP, weight_FGP = (torch.unflatten(part[:, shared:], 1, (len(members), -1)) for part in (x_ND, weight_FD))
    for group, rows_M in enumerate(members):
        y_NF = y_NF.index_add(0, rows_M, F.linear(x_NGP[rows_M, group], weight_FGP[:, group]))
    return y_NF


def write_active(h_NF: Tensor, weight_NG: Tensor, members: list[Tensor], weight_DF: Tensor, fusion_GG: Tensor,
                 shared: int) -> Tensor:
    """`weight @ h` in the active channels; to all groups the fusion adds a mixture of the active ones."""
    shared_NS = F.linear(h_NF, weight_DF[:shared])
    weight_GPF = torch.unflatten(weight_DF[shared:], 0, (len(members), -1))
    written = []
    for group, rows_M in enumerate(members):
        part_MP = F.linear(h_NF[rows_M], weight_GPF[group]) * weight_NG[rows_M, group, None]
        written.append(h_NF.new_zeros(len(h_NF), part_MP.shape[1]).index_copy(0, rows_M, part_MP))
    y_NPG = torch.stack(written, -1)
    y_NPG = y_NPG + F.linear(y_NPG, fusion_GG)
    return torch.cat([shared_NS, y_NPG.transpose(1, 2).flatten(1)], 1)


def group_sizes(config: Any, width: int) -> tuple[int, int]:
    """Shared channels and channels of a group."""
    size = round((1 - config.shared) * width / config.groups)
    return width - config.groups * size, size


def check_groups(config: Any, width: int, where: str) -> None:
    """Raise ValueError for shared, groups or top_k that cannot be built."""
    require_whole("groups", config.groups, where)
    require_whole("top_k", config.top_k, where)
    if isinstance(config.shared, bool) or not isinstance(config.shared, (int, float)) or not 0 <= config.shared < 1:
        raise ValueError(f"shared must be a share of the width below 1 at {where}: got {config.shared!r}; use 0.5, or "
                         f"{config.dense} for a layer over all channels")
    if config.top_k > config.groups:
        raise ValueError(f"top_k must not exceed groups at {where}: got {config.top_k} of {config.groups}; use at most "
                         f"{config.groups}")
    if config.shared == 0:
        require_divisor("groups", config.groups, "width", width, where)
    if min(group_sizes(config, width)) < 0 or group_sizes(config, width)[1] < 1:
        raise ValueError(f"groups must not exceed the channels that are not shared at {where}: got {config.groups} and "
                         f"{round((1 - config.shared) * width)}; use fewer groups or a smaller share")


@dataclass(frozen=True)
class MoHD(Operator):
    """Mixture of Hidden-Dimensions (Chen et al., 2024) around a SwiGLU layer: a token reads and writes the shared
    channels and `top_k` of `groups` groups of the others.

    shared: channels that are always active over width, rounded so that the groups divide the rest. ratio: hidden size over
    width, rounded up to a multiple of 8.

    `MoHDAttention` is the same around attention; the paper has both in a layer. The formulas taken for what it describes:
    what a group writes is weighed by its router probability times the number of groups, so that a router without preference
    changes nothing; activation scaling multiplies what is read and what is written by the root of width over active width,
    which keeps the norm; group fusion adds to every group, channel by channel, a learned mixture of the active groups,
    which starts at none. With all groups on and a flat router the layer is `SwiGLU`.
    """

    shared: Any = 0.5
    groups: Any = 8
    top_k: Any = 2
    ratio: Any = 3
    kind: ClassVar[str] = "channel"
    dense: ClassVar[str] = "SwiGLU"
    chooses: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    causal_to_the_bit: ClassVar[bool] = False      # the rows of a group are multiplied together, later ones included
    fixed: ClassVar[Mapping[str, str]] = {
        "width": "channels are in groups", "groups": "groups follow one another in the width",
        "fused": "groups follow one another in the width"}
    source: ClassVar[Source] = Source("Mixture of Hidden-Dimensions Transformer", 2024, systems=("S179",))

    def sizes(self, width: int) -> tuple[int, int]:
        """Shared channels and channels of a group."""
        return group_sizes(self, width)

    def check(self, width: int, where: str) -> None:
        check_groups(self, width, where)
        check_ratio(self.ratio, where)

    def axes(self, width: int) -> dict[str, Param]:
        d, f, g = axis("width", width), axis("hidden", hidden_size(self.ratio, width)), axis("groups", self.groups)
        mixed = param(axis("fused", self.groups), axis("groups", self.groups), share="own", init="zeros")
        return {"router.weight": param(g, d), "gate.weight": param(f, d), "up.weight": param(f, d),
                "down.weight": param(d, f), "fusion": mixed}

    def build(self, width: int) -> nn.Module:
        return HiddenMixture(width, hidden_size(self.ratio, width), self.sizes(width)[0], self.groups, self.top_k)

    def macs(self, width: int, length: Length) -> float:                              # type: ignore[override]
        return tokens_of(length) * self.decode_macs(width, 0)

    def decode_macs(self, width: int, length: Length) -> float:                       # type: ignore[override]
        """The router, three matrices over the active channels, and the fusion of groups."""
        shared, size = self.sizes(width)
        active = 3 * (shared + self.top_k * size) * hidden_size(self.ratio, width)
        return float(width * self.groups + active + self.groups**2 * size)
