"""Modules without values, made once and lent to every subnet that runs through them.

Making a network's modules on the meta device takes longer than taking its weights, and a training step makes several. A
leaf depends on its operator and width alone, so networks of one supernet share leaves; only what holds them together is
made anew, and whole networks are remembered by genome. That is safe because a skeleton has no values: while it runs, its
parameters are the weights taken for it, and nobody else runs it. Skeletons of one supernet are for one thread.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from ..operator import lending

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["Skeleton", "Skeletons"]

Slot = tuple[dict[str, Any], str]           # the dictionary of a module's parameters, and a name in it


class Skeleton(NamedTuple):
    """A network on the meta device: where each of its parameters goes, and all its modules."""

    module: SequenceModel
    slots: dict[str, Slot]
    modules: list[nn.Module]

    def run(self, weights: Mapping[str, Tensor], inputs: tuple[Any, ...], is_training: bool) -> Tensor:
        """The network's output with `weights` for its parameters, by name; they are put in and taken out again."""
        for module in self.modules:
            module.__dict__["training"] = is_training
        own = [slots[key] for slots, key in self.slots.values()]
        try:
            for name, tensor in weights.items():
                slots, key = self.slots[name]
                slots[key] = tensor
            output: Tensor = self.module(*inputs)
        finally:
            for (slots, key), parameter in zip(self.slots.values(), own, strict=True):
                slots[key] = parameter
        return output


class Skeletons:
    """The skeletons of one supernet: up to `most` networks by genome, and the leaves they are made of."""

    def __init__(self, most: int = 64, most_leaves: int = 4096):
        self.most, self.most_leaves = most, most_leaves
        self.networks: OrderedDict[Any, Skeleton] = OrderedDict()
        self.leaves: dict[Any, list[nn.Module]] = {}
        self.num_leaves = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Skeletons, (self.most, self.most_leaves)    # copies of a supernet make their own

    def of(self, architecture: Architecture) -> Skeleton:
        """The skeleton of an architecture; the last used are remembered."""
        key = architecture.genome
        if key in self.networks:
            self.networks.move_to_end(key)
            return self.networks[key]
        if self.num_leaves > self.most_leaves:
            self.leaves, self.num_leaves = {}, 0
        with lending(self._lender()):
            module = architecture.build(device="meta")
        made = self.networks[key] = _made(module)
        if len(self.networks) > self.most:
            self.networks.popitem(last=False)
        return made

    def _lender(self) -> Callable[[Any, Callable[[], nn.Module]], nn.Module]:
        """Gives each leaf of one network out once: equal layers need a module each."""
        given: Counter[Any] = Counter()

        def lend(key: Any, make: Callable[[], nn.Module]) -> nn.Module:
            try:
                held = self.leaves.setdefault(key, [])
            except TypeError:                              # a config that cannot be hashed
                return make()
            given[key] += 1
            if given[key] > len(held):
                held.append(make())
                self.num_leaves += 1
            return held[given[key] - 1]

        return lend


def _made(module: SequenceModel) -> Skeleton:
    slots: dict[str, Slot] = {}
    modules: list[nn.Module] = []
    ahead: list[tuple[str, nn.Module]] = [("", module)]
    while ahead:
        prefix, part = ahead.pop()
        modules.append(part)
        slots.update((prefix + key, (part._parameters, key)) for key, p in part._parameters.items() if p is not None)
        ahead.extend((f"{prefix}{name}.", child) for name, child in part._modules.items() if child is not None)
    return Skeleton(module, slots, modules)
