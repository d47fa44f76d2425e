"""Order of importance: a trained network permuted so that the leading entries of every axis matter most.

The network computes what it did before, but its leading parts are now its best smaller networks, so that it can start
a supernet without loss at full size (Minitron, Muralidharan et al., 2024; NViT, Yang et al., 2021; LightHuBERT, Wang
et al., 2022). What is permuted follows from the named axes alone; see `permuting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..architecture import Architecture
from ..axes import Param, take
from ..tree import axes_of
from .importance import Loss, importance, prediction_loss
from .permuting import AxisGroup, Traits, Weight, axis_groups, permute, traits_of

if TYPE_CHECKING:
    from .supernet import Supernet

__all__ = ["OrderedAxis", "inherit_own", "order_axes"]

TOLERANCE = 1e-8            # of the largest output, in float64


class OrderedAxis(NamedTuple):
    """One group of axes: where ("" for the residual stream), its name and size, and why it was left as it is, if so."""

    place: str
    axis: str
    size: int
    kept: str


def order_axes(model: nn.Module | Supernet, criteria: str = "weight", batches: Iterable[Any] = (),
               loss: Loss = prediction_loss, architecture: Architecture | None = None) -> list[OrderedAxis]:
    """Permute a model's axes in place, most important entries first; its outputs stay the same.

    Hidden units, heads and the queries of each key, head entries, experts, states, channels, ranks and the residual
    width are ordered wherever the operators' declarations allow; `kept` of what is returned says why the rest is not.
    Outputs are compared before and after, in float64. Of a supernet every shared tensor is ordered; its largest
    architecture computes what it did, smaller ones become other parts of it, and tensors that exist once per size are
    taken anew from the largest.

    Args:
        model: built from an architecture, or a supernet.
        criteria: "weight", "activation" or "gradient", see `importance`.
        batches: (inputs, targets) for the last two, of which `activation` reads the inputs only.
        loss: of (outputs, targets), for "gradient".
        architecture: of a supernet, the one whose outputs stay; default its largest.

    Raises:
        ValueError: an unknown criterion, missing batches, scores that are not finite, or an operator whose axes turn
            out not to be permutable; the weights are then as they were.
    """
    subject = _supernet_subject(model, architecture) if hasattr(model, "held") else _subject(model)
    groups = axis_groups(subject.weights, subject.present)
    for group in groups:
        group.kept = group.kept or subject.kept(group)
    chosen = [group for group in groups if not group.kept]
    batches = list(batches)
    scores = importance(chosen, criteria, subject.weights, subject.model, batches, loss)
    orders = [score.argsort(dim=-1, descending=True, stable=True) for score in scores]
    _apply(subject, chosen, orders, _example(subject.architecture, batches))
    subject.finish()
    return [OrderedAxis(group.owner, group.name, group.size, group.kept) for group in groups]


class _Subject(NamedTuple):
    """What is ordered: its weights, everything in it with its width, and how it is run."""

    architecture: Architecture
    weights: list[Weight]
    present: list[tuple[Traits, int]]
    model: Any
    net: Supernet | None = None
    partial: frozenset[tuple[str, str]] = frozenset()       # (weight, axis) that the architecture takes a part of

    def kept(self, group: AxisGroup) -> str:
        """Why a group of this subject must stay, beyond what its operators say."""
        if any((o.weight.name, o.placed.axis.name) in self.partial for o in group.occurrences):
            return "the largest architecture leaves entries of it out"
        return ""

    def exact(self, inputs: Any) -> Tensor:
        """Outputs in float64."""
        doubled = {name: tensor.detach().double() for name, tensor in self.parameters()}
        module = self.model if self.net is None else self.model.module
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        with torch.no_grad():
            outputs: Tensor = functional_call(module, doubled, (inputs,), tie_weights=False)
        return outputs

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The architecture's parameters by their names in its module."""
        yield from self.model.named_parameters() if self.net is None else self.net.taken(self.architecture)

    def finish(self) -> None:
        if self.net is not None:
            inherit_own(self.net, self.architecture)


def _apply(subject: _Subject, groups: list[AxisGroup], orders: list[Tensor], inputs: Any) -> None:
    """Permute all groups; puts the weights back and raises when the outputs move."""
    before = [(weight.tensor, weight.tensor.detach().clone()) for weight in subject.weights]
    wanted = subject.exact(inputs)
    for group, order in zip(groups, orders, strict=True):
        permute(group, order)
    if _moved(subject.exact(inputs), wanted) <= TOLERANCE:
        return
    for group, order in zip(groups, orders, strict=True):          # which of them was it
        _restore(before)
        permute(group, order)
        moved = _moved(subject.exact(inputs), wanted)
        if moved > TOLERANCE:
            break
    _restore(before)
    raise ValueError(f"permuting an axis leaves outputs as they are: {group.name!r} of {group.owner or 'the stream'} moved "
                     f"them by {moved:.1e}; say fixed = {{{group.name!r}: why}} in its operator")


@torch.no_grad()
def _restore(before: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, values in before:
        tensor.copy_(values)


def _moved(ours: Tensor, wanted: Tensor) -> float:
    return (ours - wanted).abs().max().item() / max(wanted.abs().max().item(), 1e-30)


def _example(architecture: Architecture, batches: list[Any]) -> Any:
    """Inputs to compare outputs on: those of the first batch, or random ones that the embedding accepts."""
    if batches:
        first = batches[0]
        return first.inputs if hasattr(first, "inputs") else first[0] if isinstance(first, (tuple, list)) else first
    embed: Any = architecture.plan.embed
    generator = torch.Generator().manual_seed(0)
    if hasattr(embed, "vocab"):
        return torch.randint(embed.vocab, (2, 16), generator=generator)
    if hasattr(embed, "sides"):
        return torch.randn(2, embed.channels, *embed.sides, generator=generator)
    if hasattr(embed, "steps"):
        return torch.randn(2, embed.steps, 4, generator=generator)
    if hasattr(embed, "features"):
        return torch.randn(2, 4 * embed.stack, embed.features, generator=generator)
    raise ValueError(f"outputs are compared before and after: {type(embed).__name__} does not say what it takes; give "
                     "batches")


# -- models ------------------------------------------------------------------------------------------------------------

def _subject(model: Any) -> _Subject:
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Architecture):
        raise ValueError(f"axes are ordered by their declarations: got {type(model).__name__}, which was not built from an "
                         "architecture; use architecture.build()")
    tensors = dict(model.named_parameters())
    owners = _owners(architecture)
    weights = [Weight(name, tensors[name], declared, *owners[name]) for name, declared in architecture.parameters.items()]
    present = [(traits_of([place.operator]), place.width) for place in architecture.placed]
    return _Subject(architecture, weights, present, model)


def _owners(architecture: Architecture) -> dict[str, tuple[str, Traits]]:
    """(place, what its operator says) of every parameter; a low-rank pair belongs to the operator of its matrix."""
    owners = {f"{place.name}.{key}": (place.name, traits_of([place.operator]))
              for place in architecture.placed for key in axes_of(place.operator, place.width)}
    keys = {(prefix, name[len(prefix):].replace(".", "_")): owner for name, owner in owners.items()
            for prefix in _prefixes(name)}
    for name in architecture.parameters:
        if name not in owners:
            prefix, _, rest = name.rpartition("lora.")
            owners[name] = keys[prefix, rest.rpartition(".")[0]]
    return owners


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:n]) for n in range(len(parts))]


# -- supernets ---------------------------------------------------------------------------------------------------------

def _supernet_subject(net: Any, architecture: Architecture | None) -> _Subject:
    architecture = architecture or net.space.architecture(net.space.largest())
    used = {address: architecture.parameters[name] for name, address in architecture.weight_addresses.items()}
    own = {address: declared for address, declared in used.items() if declared.share == "own"}
    held = {**net.held, **own}            # tensors that exist once per size divide their entries as the architecture does
    owners, chosen = _supernet_owners(net), _representatives(net, architecture)
    weights = [Weight(address, net.tensors[address], held[address], *owner) for address, owner in owners.items()
               if address in chosen]
    present = [(traits_of(site.operators), width) for site in net.space.sites() for width in site.widths]
    partial = frozenset((address, have.name) for address, declared in used.items()
                        for have, want in zip(_axes(held[address]), _axes(declared), strict=True) if have.size != want.size)
    return _Subject(architecture, weights, present, net.subnet(architecture), net, partial)


def _axes(declared: Param) -> list[Any]:
    return [axis for dim in declared.dims for axis in dim.axes()]


def _supernet_owners(net: Supernet) -> dict[str, tuple[str, Traits]]:
    owners: dict[str, tuple[str, Traits]] = {}
    traits = {site.address: traits_of(site.operators) for site in net.space.sites()}
    for address in net.held:
        home = address.rpartition("/")[0]
        if home in traits:
            owners[address] = home, traits[home]
    for home, _, _ in net.space.loops():
        for address, owner in list(owners.items()):
            owners |= {f"{home}/{address}/{side}": owner for side in "AB" if f"{home}/{address}/{side}" in net.held}
    return owners


def _representatives(net: Supernet, architecture: Architecture) -> dict[str, str]:
    """Every address but those of tensors that exist once per size, of which one stands for all: address -> family."""
    used = set(architecture.weight_addresses.values())
    chosen: dict[str, str] = {}
    for address, declared in net.held.items():
        family = address.partition("@")[0] if declared.share == "own" else address
        held = chosen.get(family)
        if held is None or (address in used, declared.numel) > (held in used, net.held[held].numel):
            chosen[family] = address
    return {address: family for family, address in chosen.items()}


@torch.no_grad()
def inherit_own(net: Supernet, architecture: Architecture) -> None:
    """Fill tensors that exist once per size from the one `architecture` uses, where they are a part of it."""
    families: Mapping[str, str] = {family: address for address, family in _representatives(net, architecture).items()}
    for address, declared in net.held.items():
        source = families.get(address.partition("@")[0], address)
        if source != address and _is_part(net.held[source], declared):
            nested = Param(declared.dims)
            net.tensors[address].copy_(take(net.tensors[source], Param(net.held[source].dims), nested))


def _is_part(held: Param, wanted: Param) -> bool:
    have, want = _axes(held), _axes(wanted)
    return len(have) == len(want) and all(h.name == w.name and w.size <= h.size for h, w in zip(have, want, strict=True))
