"""What a supernet stores: the declaration of every shared tensor of a space, by weight address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..architecture import weight_address
from ..axes import Param, largest
from ..plan import Loop
from ..tree import axes_of, lora_params
from .layout import Site

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["held_parameters"]

Members = dict[str, list[Param]]


def held_parameters(space: Space) -> dict[str, Param]:
    """The declaration of every shared tensor: the per-axis maximum over reachable configs, by address."""
    members: Members = {}
    for site in space.sites():
        _add(site, members)
    for home, loops, inside in space.loops():
        for loop in loops:
            if loop.lora_rank:
                _add_lora(home, loop, inside, members)
    return {address: largest(list(dict.fromkeys(found))) for address, found in members.items()}


def _add(site: Site, members: Members) -> None:
    for op, width in site.pairs():
        for key, declared in axes_of(op, width).items():
            members.setdefault(weight_address(site.address, key, declared), []).append(declared)


def _add_lora(home: str, loop: Loop, inside: Iterable[Site], members: Members) -> None:
    """The pairs of one loop with LoRA, for every matrix it repeats."""
    matrices: Members = {}
    for site in inside:
        _add(site, matrices)
    for address, found in matrices.items():
        for matrix in dict.fromkeys(found):
            if matrix.is_matrix:
                for side, declared in lora_params(matrix, loop.times, loop.lora_rank).items():
                    members.setdefault(f"{home}/{address}/{side}", []).append(declared)
