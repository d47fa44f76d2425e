"""One tensor per parameter at the largest sizes of the space; a subnet is a set of takes from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architecture import Architecture
from ..axes import flat_indices, take
from ..model import SequenceModel, initialise
from .held import held_parameters
from .skeletons import Skeletons
from .taking import Take, taker, union_mask

if TYPE_CHECKING:
    import numpy as np

    from ..space import Space

__all__ = ["Subnet", "Supernet", "held_parameters", "touch_masks"]


class Supernet(nn.Module):
    """The shared weights of every architecture of `space`.

    `tensors` maps a weight address (slot / candidate operator / parameter) to one `nn.Parameter` at the per-axis
    maximum over all reachable sizes. Slimmable networks (Yu et al., 2019) and once-for-all (Cai et al., 2020), with
    every axis named instead of every layer rewritten.
    """

    def __init__(self, space: Space, seed: int = 0):
        super().__init__()
        self.space = space
        self.held = held_parameters(space)
        self.skeletons = Skeletons()
        self.tensors: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for index, (address, declared) in enumerate(self.held.items()):
            tensor = nn.Parameter(torch.empty(declared.shape), requires_grad=not declared.statistic)
            initialise(tensor.data, declared, generator)
            self.register_parameter(f"shared_{index}", tensor)
            self.tensors[address] = tensor

    @classmethod
    def from_model(cls, space: Space, model: nn.Module, order: str | None = None, batches: Iterable[Any] = (),
                   seed: int = 0) -> Supernet:
        """A supernet that starts from a trained model, which is the largest architecture of `space`.

        Its largest subnet computes what `model` does. Weights the model does not have (other candidates of a choice)
        start from `seed`; tensors that exist once per size start as parts of the model's.

        Args:
            model: built from an architecture of this space, or with the parameters of the space's largest one.
            order: "weight", "activation" or "gradient" puts the most important entries first, so that smaller subnets
                start as good as they can (see `ordering.order_axes`); None takes the model as it is.
            batches: (inputs, targets) for the last two.

        Raises:
            ValueError: the model is another architecture.
        """
        from .ordering import inherit_own, order_axes

        net, architecture = cls(space, seed), _architecture_of(model, space)
        net._write(architecture, dict(model.named_parameters()))
        inherit_own(net, architecture)
        if order is not None:
            order_axes(net, order, batches, architecture=architecture)
        return net

    def subnet(self, architecture: Architecture) -> Subnet:
        """A module over views of the shared tensors: training it trains them."""
        return Subnet(self, architecture)

    def extract(self, architecture: Architecture) -> SequenceModel:
        """A standalone module with its own packed copies; forward and gradient are bit-identical to a packed subnet."""
        model = architecture.build(device="meta").to_empty(device=self._device())
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in self.taken(architecture):
                parameters[name].copy_(tensor)
        return model

    def taken(self, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, view or copy) of every parameter of `architecture`."""
        declared = architecture.parameters
        for name, address in architecture.weight_addresses.items():
            yield name, take(self.tensors[address], self.held[address], declared[name])

    def absorb(self, model: SequenceModel) -> None:
        """Write a standalone module's weights back to where its architecture takes them from."""
        assert model.architecture is not None, "only modules built from an architecture know their addresses"
        self._write(model.architecture, dict(model.named_parameters()))

    @torch.no_grad()
    def _write(self, architecture: Architecture, source: Mapping[str, Tensor]) -> None:
        for name, address in architecture.weight_addresses.items():
            index = flat_indices(self.held[address], architecture.parameters[name])
            self.tensors[address].view(-1)[index.to(self._device())] = source[name].flatten().to(self._device())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as safetensors, keyed by address; appears by rename, never half-written."""
        from safetensors.torch import save_file

        target = Path(path)
        temporary = target.with_name(target.name + ".partial")
        save_file({a: t.detach().contiguous() for a, t in self.tensors.items()}, str(temporary),
                  metadata={"format": "pt", "space": self.space.hash})
        os.replace(temporary, target)

    @classmethod
    def load(cls, space: Space, path: str | os.PathLike[str]) -> Supernet:
        """Read what `save` wrote. Raises ValueError when the file is of another space."""
        from safetensors import safe_open

        with safe_open(str(path), "pt") as stored:
            found = (stored.metadata() or {}).get("space")
            if found != space.hash:
                raise ValueError(f"supernet weights belong to one space: {path} is of {str(found)[:8]}, "
                                 f"the space is {space.hash[:8]}; train a supernet for this space")
            net = cls(space)
            net._fill({address: stored.get_tensor(address) for address in stored.keys()})  # noqa: SIM118 - no mapping
        return net

    def state_numpy(self) -> dict[str, np.ndarray]:
        """The weights as arrays by address, for sending to other processes."""
        return {address: tensor.detach().cpu().numpy() for address, tensor in self.tensors.items()}

    def load_numpy(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the weights of `state_numpy`."""
        self._fill({address: torch.from_numpy(array.copy()) for address, array in arrays.items()})

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        if weights.keys() != self.tensors.keys():
            odd = sorted(weights.keys() ^ self.tensors.keys())[0]
            raise ValueError(f"weights must have exactly this supernet's addresses: {odd!r} stands in one only")
        with torch.no_grad():
            for address, tensor in weights.items():
                self.tensors[address].copy_(tensor)

    def _device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def extra_repr(self) -> str:
        total = sum(t.numel() for t in self.tensors.values())
        return f"{len(self.tensors)} tensors, {total:,} parameters, space {self.space.hash[:8]}"


def _architecture_of(model: nn.Module, space: Space) -> Architecture:
    """The architecture of `space` that `model` is: its own, else the largest, which must have its parameters."""
    own = getattr(model, "architecture", None)
    if own is not None and own.space.hash == space.hash:
        return own                                                                    # type: ignore[no-any-return]
    largest = space.architecture(space.largest())
    wanted = {name: declared.shape for name, declared in largest.parameters.items()}
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))[0][0]
        raise ValueError(f"a supernet starts from a model of its space's largest architecture: {odd} is "
                         f"{found.get(odd, 'missing')} in the model and {wanted.get(odd, 'missing')} in the space; give the "
                         "space the model's sizes as its largest")
    if own is not None and own.hash != largest.hash:
        raise ValueError(f"a supernet starts from a model of its space's largest architecture: got {own.short}, the largest "
                         f"is {largest.short}; they differ in {own.diff(largest)}")
    return largest


class Subnet(nn.Module):
    """An architecture over the shared tensors. Its `state_dict` is empty: the weights are the supernet's."""

    def __init__(self, net: Supernet, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.training = net.training
        self._hidden = (net, net.skeletons.of(architecture))        # a tuple, so that nothing registers as a child
        declared = architecture.parameters
        self.takes = [(name, address, taker(net.held[address], declared[name]))
                      for name, address in architecture.weight_addresses.items()]

    @property
    def net(self) -> Supernet:
        return self._hidden[0]

    @property
    def module(self) -> SequenceModel:
        """The small module on the meta device that the takes are run through; other subnets may share parts of it."""
        return self._hidden[1].module

    def forward(self, *inputs: Tensor) -> Tensor:
        tensors = self.net.tensors
        weights = {name: taken(tensors[address]) for name, address, taken in self.takes}
        return self._hidden[1].run(weights, inputs, self.training)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The shared tensors this architecture touches."""
        for address in dict.fromkeys(self.architecture.weight_addresses.values()):
            yield self.net.tensors[address]

    def touched(self) -> dict[str, Tensor]:
        """Which entries of which shared tensors this architecture uses, as flat indices by address."""
        found: dict[str, list[Tensor]] = {}
        declared = self.architecture.parameters
        for name, address in self.architecture.weight_addresses.items():
            found.setdefault(address, []).append(flat_indices(self.net.held[address], declared[name]))
        return {address: torch.unique(torch.cat(parts)) if len(parts) > 1 else parts[0] for address, parts in found.items()}


def touch_masks(subnets: Iterable[Subnet]) -> dict[str, Tensor | None]:
    """The union of what `subnets` of one supernet use: a mask per shared tensor, None where that is all of it.

    The masks may be remembered ones; do not write to them.
    """
    used: dict[str, set[Take]] = {}
    tensors: dict[str, nn.Parameter] = {}
    for subnet in subnets:
        tensors = subnet.net.tensors
        for _, address, take_part in subnet.takes:
            used.setdefault(address, set()).add(take_part)
    return {address: union_mask(frozenset(takes), tensors[address].device) for address, takes in used.items()}
