"""A genome resolved: the plan, its graph and hash, its declared parameters and costs, and the module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .axes import Param
from .elastic.layout import addresses
from .genome import Genome
from .operator import Length, Operator, tokens_of
from .plan import flow
from .stored.versions import ARCHITECTURE, upgraded
from .tree import Placed, axes_of, lora_params, placed, tally, tally_items

if TYPE_CHECKING:
    import networkx as nx

    from .model import SequenceModel
    from .space import Space

__all__ = ["Architecture", "Cost"]


@dataclass(frozen=True)
class Cost:
    """Costs from declarations, exact, without building a module.

    parameters: stored numbers, tied weights once. macs: multiply-adds of a whole prefill of `length` tokens, batch 1.
    decode_macs: multiply-adds of the next token. state_bytes: fp32 bytes of caches and states after `length` tokens.
    weight_bytes: fp32 bytes of the parameters.
    """

    length: int
    parameters: int
    macs: float
    decode_macs: float
    state_bytes: int

    @property
    def weight_bytes(self) -> int:
        return 4 * self.parameters

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "weight_bytes": self.weight_bytes}


class Architecture:
    """One candidate of a space. Built by `space.sample`, `space.architecture`, or `Architecture.from_json`."""

    def __init__(self, space: Space, genome: Genome):
        self.space = space
        self.genome = space.canonical(genome)
        self.plan, self._homes = space.plan(self.genome)

    def __repr__(self) -> str:
        return f"Architecture({self.short}: width {self.plan.width}, {len(self.plan.layers)} layers)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonically labelled, rewritten graph: equal for networks equal up to the listed rewrites."""
        from .graph import architecture_hash

        return architecture_hash(self.plan)

    @property
    def short(self) -> str:
        """The first eight hexadecimal digits of the hash."""
        return self.hash[:8]

    @cached_property
    def graph(self) -> nx.MultiDiGraph:
        """The rewritten graph: nodes are operators with every number fixed, edges are tensors."""
        from .graph import build_graph, to_networkx

        return to_networkx(build_graph(self.plan))

    @cached_property
    def addresses(self) -> dict[str, str]:
        """The weight address of every module prefix; `lora` stands for a recursion's own."""
        parts, layers, where = self._homes
        return addresses(parts, layers, where, self.plan.width)

    @cached_property
    def placed(self) -> list[Placed]:
        """Every operator with its prefix in the module's state_dict and what reaches it, in order."""
        plan = self.plan
        width, length = flow(plan.layers, plan.width, self.default_length)
        ends = [Placed(name, op, width, tokens_of(length)) for name, op in (("norm", plan.norm), ("head", plan.head))]
        start = Placed("embed", plan.embed, plan.width, tokens_of(self.default_length))
        return [start, *placed(plan.layers, plan.width, self.default_length), *ends]

    @cached_property
    def modules(self) -> list[tuple[str, Operator]]:
        """Every operator with its prefix in the module's state_dict, in order."""
        return [(place.name, place.operator) for place in self.placed]

    @property
    def default_length(self) -> Length:
        """Tokens that costs are counted for: those of an image, (height, width) of a grid, else 256."""
        return getattr(self.plan.embed, "length", 256)

    @cached_property
    def parameters(self) -> dict[str, Param]:
        """The declared axes of every parameter, by its name in the module's state_dict."""
        return {name: declared for name, _, declared in self._declared}

    @cached_property
    def weight_addresses(self) -> dict[str, str]:
        """Where a supernet keeps every parameter, by its name in the module's state_dict."""
        return {name: address for name, address, _ in self._declared}

    @cached_property
    def _declared(self) -> list[tuple[str, str, Param]]:
        """(name, address, declaration) of every parameter in the order of the modules, the loops' own last."""
        found = [(f"{place.name}.{key}", weight_address(self.addresses[place.name], key, declared), declared)
                 for place in self.placed for key, declared in axes_of(place.operator, place.width).items()]
        found_loops = ((f"{place.name}.", getattr(place.operator, "recursion", None)) for place in self.placed)
        loops = [(prefix, recursion) for prefix, recursion in found_loops if recursion is not None]
        return found + [entry for prefix, recursion in [*loops, ("", self.plan.recursion)] if recursion.lora_rank
                        for entry in self._lora(prefix, recursion, found)]

    def _lora(self, prefix: str, recursion: Any, declared: list[tuple[str, str, Param]]) -> list[tuple[str, str, Param]]:
        made, home, inside = [], self.addresses[f"{prefix}lora"], f"{prefix}layers."
        for name, address, matrix in declared:
            if name.startswith(inside) and matrix.is_matrix:
                key = name[len(prefix):].replace(".", "_")
                for side, own in lora_params(matrix, recursion.times, recursion.lora_rank).items():
                    made.append((f"{prefix}lora.{key}.{side}", f"{home}/{address}/{side}", own))
        return made

    def cost(self, length: Length | None = None) -> Cost:
        """Parameters, multiply-adds and state size from the declarations alone.

        length: tokens of a sequence, or (height, width) of a grid; by default those of the images, or 256.
        """
        plan, length = self.plan, self.default_length if length is None else length
        body = tally_items(plan.layers, plan.recursion, plan.width, length)
        width, leaving = flow(plan.layers, plan.width, length)
        ends = [tally(plan.embed, plan.width, tokens_of(length)), tally(plan.norm, width, tokens_of(leaving)),
                tally(plan.head, width, tokens_of(leaving))]
        for end in ends:
            body = body.plus(end)
        return Cost(tokens_of(length), body.parameters, body.macs, body.decode_macs, 4 * body.state)

    def build(self, seed: int = 0, device: Any = None) -> SequenceModel:
        """The module, initialised from `seed` in a fixed order; on the meta device it has no values."""
        import torch

        from .model import SequenceModel, initialise

        with torch.device("meta"):
            model = SequenceModel(self.plan)
        model.architecture = self
        if device is not None and torch.device(device).type == "meta":
            return model
        model = model.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        tensors = dict(model.named_parameters())
        for name, declared in self.parameters.items():
            initialise(tensors[name].data, declared, generator)
        return model if device is None else model.to(device)

    def draw(self, format: str = "text") -> str:
        """The architecture as a text tree or as an SVG picture."""
        from . import drawing

        if format not in ("text", "svg"):
            raise ValueError(f"format must be 'text' or 'svg': got {format!r}")
        sizes = {name: declared.numel for name, declared in self.parameters.items() if not declared.statistic}
        return drawing.draw_text(self.plan, sizes) if format == "text" else drawing.draw_svg(self.plan, sizes)

    def diff(self, other: Architecture) -> str:
        """What differs between two architectures, layer by layer."""
        from .drawing import diff_text

        return diff_text(self.plan, other.plan)

    def scale(self, width: int | None = None, depth: int | None = None, pattern: str = "stack") -> Architecture:
        """The layers found here in a wider or deeper network, the one member of a space of its own (`scaling.scale`).

        pattern: "stack" repeats their sequence, "stretch" repeats each in place. Heads keep their size. Raises ValueError
        where sizes do not come out whole. `mup` says how the larger network starts and learns.
        """
        from .scaling.scaling import scale

        return scale(self, width, depth, pattern)

    def to_json(self) -> dict[str, Any]:
        """Genome, space hash and graph hash; `Architecture.from_json(stored, space)` gives it back."""
        return {"schema_version": ARCHITECTURE, "genome": self.genome.to_json(), "space_hash": self.space.hash,
                "hash": self.hash}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], space: Space) -> Architecture:
        """Read what `to_json` wrote. Raises ValueError for another schema or another space."""
        stored = upgraded(stored, "architecture")
        if stored["space_hash"] not in (space.hash, None):
            raise ValueError(f"an architecture is read with its own space: got space hash {stored['space_hash'][:8]} "
                             f"and a space with {space.hash[:8]}; load the space it was found in")
        genome = Genome.from_json(stored["genome"])
        space.validate(genome)
        made = cls(space, genome)
        if stored["space_hash"] is None and made.hash != stored["hash"]:
            raise ValueError(f"an architecture of schema_version 1 is known by its network: got {stored['hash'][:8]} "
                             f"and {made.short} in this space; load the space it was found in")
        return made


def weight_address(home: str, key: str, declared: Param) -> str:
    """Slot and candidate, parameter, and for parameters with one tensor per size that size."""
    own = f"@{'x'.join(map(str, declared.shape))}" if declared.share == "own" else ""
    return f"{home}/{key}{own}"
