"""Which tensors are the same parameter of one layer after another, told by their names.

Names of a module count layers as `layers.3.mixer.op.query`, addresses of a supernet as `body[3].mixer/query`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from ...space.elastic.supernet import Supernet

__all__ = ["LayerGroup", "layer_groups", "named_tensors"]

REPEATED = re.compile(r"\[(\d+)\]")
PLACED = re.compile(r"(?<=\.)(\d+)(?=\.)")


@dataclass(frozen=True)
class LayerGroup:
    """One parameter through the layers. `members` are the tensors by the number of their layer, from 0.

    prefix: the name before the number. depth: how many layers there are under this prefix, with this parameter or
    not.
    """

    prefix: str
    depth: int
    members: dict[int, Tensor]


def named_tensors(model: nn.Module | Supernet) -> dict[str, Tensor]:
    """The trained tensors of a module by name, of a supernet by address."""
    named: Any = model.tensors if hasattr(model, "subnet") else dict(model.named_parameters())
    return {name: tensor for name, tensor in named.items() if tensor.requires_grad}


def layer_groups(tensors: Mapping[str, Tensor]) -> dict[str, LayerGroup]:
    """Tensors of equal shape whose names differ in the number of the layer alone, by the name with a star for it.

    The first repeat in a name counts the layers, without one the first place in a tuple or a module list: what is
    repeated inside a layer belongs to it.
    """
    found: dict[tuple[str, str, tuple[int, ...]], dict[int, Tensor]] = {}
    depths: dict[str, int] = {}
    for name, tensor in tensors.items():
        match = REPEATED.search(name) or PLACED.search(name)
        if match is None:
            continue
        number = int(match[1])
        prefix, rest = name[:match.start()], name[match.end():]
        found.setdefault((prefix, rest, tuple(tensor.shape)), {})[number] = tensor
        depths[prefix] = max(depths.get(prefix, 0), number + 1)
    return {f"{prefix}*{rest} {shape}": LayerGroup(prefix, depths[prefix], members)
            for (prefix, rest, shape), members in found.items()}
