"""One tensor per parameter at the largest sizes of the space; a subnet is a set of takes from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .architecture import Architecture, axes_of, lora_params, weight_address
from .axes import Param, flat_indices, largest, take, take_steps
from .model import SequenceModel, initialise
from .plan import Loop
from .spec import variants

if TYPE_CHECKING:
    import numpy as np

    from .space import Space

__all__ = ["Subnet", "Supernet", "held_parameters"]


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
        self.tensors: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for index, (address, declared) in enumerate(self.held.items()):
            tensor = nn.Parameter(torch.empty(declared.shape))
            initialise(tensor.data, declared, generator)
            self.register_parameter(f"shared_{index}", tensor)
            self.tensors[address] = tensor

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
        source = dict(model.named_parameters())
        with torch.no_grad():
            for name, address in model.architecture.weight_addresses.items():
                index = flat_indices(self.held[address], model.architecture.parameters[name])
                self.tensors[address].view(-1)[index] = source[name].flatten()

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


class Subnet(nn.Module):
    """An architecture over the shared tensors. Its `state_dict` is empty: the weights are the supernet's."""

    def __init__(self, net: Supernet, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self._hidden = (net, architecture.build(device="meta"))     # a tuple, so that nothing registers as a child
        declared = architecture.parameters
        self._takes = [(name, net.tensors[address], take_steps(net.held[address], declared[name]))
                       for name, address in architecture.weight_addresses.items()]

    @property
    def net(self) -> Supernet:
        return self._hidden[0]

    @property
    def module(self) -> SequenceModel:
        """The small module on the meta device that the takes are run through."""
        return self._hidden[1]

    def forward(self, *inputs: Tensor) -> Tensor:
        weights: dict[str, Tensor] = {}
        for name, tensor, steps in self._takes:
            taken: Tensor = tensor
            for step in steps:
                taken = step(taken)
            weights[name] = taken
        return functional_call(self.module, weights, inputs, tie_weights=False)         # type: ignore[no-any-return]

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


def held_parameters(space: Space) -> dict[str, Param]:
    """The declaration of every shared tensor: the per-axis maximum over reachable configs, by address."""
    members: dict[str, list[Param]] = {}
    for home, found in space.operators():
        for op in found:
            for width in space.widths():
                for key, declared in axes_of(op, width).items():
                    members.setdefault(weight_address(home, key, declared), []).append(declared)
    _add_lora(space, members)
    return {address: largest(list(dict.fromkeys(found))) for address, found in members.items()}


def _add_lora(space: Space, members: dict[str, list[Param]]) -> None:
    """The pairs of every loop with LoRA, for every matrix of every layer."""
    matrices = {a: ps for a, ps in members.items() if a.startswith("body") and "|" not in a and ps[0].is_matrix}
    for home, loops in _loops(space):
        for loop in loops:
            if not loop.lora_rank:
                continue
            for address, found in matrices.items():
                for matrix in dict.fromkeys(found):
                    for side, declared in lora_params(matrix, loop.times, loop.lora_rank).items():
                        members.setdefault(f"{home}/{address}/{side}", []).append(declared)


def _loops(space: Space) -> Iterator[tuple[str, list[Loop]]]:
    from .layout import walk
    from .spec import Fixed, RecordNode

    for node in walk(space.node("recursion")):
        if isinstance(node, RecordNode):
            yield node.path, list(variants(node, 4096))
        elif isinstance(node, Fixed) and isinstance(node.value, Loop):
            yield node.address[""], [node.value]
