"""A genome resolved: the plan, its graph and hash, its declared parameters and costs, and the module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from .axes import Axis, Init, Param, param
from .genome import Genome
from .operator import Operator

if TYPE_CHECKING:
    import networkx as nx

    from .model import SequenceModel
    from .space import Space

__all__ = ["Architecture", "Cost"]

SCHEMA_VERSION = 1


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
        self.plan, self.addresses = space.plan(self.genome)

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
    def modules(self) -> list[tuple[str, Operator]]:
        """Every operator with its prefix in the module's state_dict, in order."""
        found: list[tuple[str, Operator]] = [("embed", self.plan.embed)]
        for i, block in enumerate(self.plan.layers):
            for name, op in block.sublayers():
                found += [(f"layers.{i}.{name}.norm", block.norm), (f"layers.{i}.{name}.op", op)]
        return [*found, ("norm", self.plan.norm), ("head", self.plan.head)]

    @cached_property
    def parameters(self) -> dict[str, Param]:
        """The declared axes of every parameter, by its name in the module's state_dict."""
        return {name: declared for name, _, declared in self._declared()}

    @cached_property
    def weight_addresses(self) -> dict[str, str]:
        """Where a supernet keeps every parameter, by its name in the module's state_dict."""
        return {name: address for name, address, _ in self._declared()}

    def _declared(self) -> list[tuple[str, str, Param]]:
        found, width = [], self.plan.width
        for prefix, op in self.modules:
            for key, declared in axes_of(op, width).items():
                found.append((f"{prefix}.{key}", weight_address(self.addresses[prefix], key, declared), declared))
        if self.plan.recursion.lora_rank:
            found += self._lora(found)
        return found

    def _lora(self, declared: list[tuple[str, str, Param]]) -> list[tuple[str, str, Param]]:
        made = []
        recursion, home = self.plan.recursion, self.addresses["lora"]
        for name, address, matrix in declared:
            if name.startswith("layers.") and ".op." in name and matrix.is_matrix:
                pair = lora_params(matrix, recursion.times, recursion.lora_rank)
                for side, own in pair.items():
                    made.append((f"lora.{name.replace('.', '_')}.{side}", f"{home}/{address}/{side}", own))
        return made

    def cost(self, length: int = 256) -> Cost:
        """Parameters, multiply-adds and state size for sequences of `length` tokens, from the declarations alone."""
        plan = self.plan
        parameters = sum(_numel(op, plan.width) for _, op in self.modules)
        macs, decode, state = 0.0, 0.0, 0
        for block in plan.layers:
            for _, op in block.sublayers():
                m, d, s = _costs(op, plan.width, length)
                macs, decode, state = macs + m, decode + d, state + s
        times = plan.recursion.times
        merge = 0
        if plan.recursion.lora_rank:
            parameters += sum(p.numel for name, p in self.parameters.items() if name.startswith("lora."))
            merge = self._merge_macs()
        ends = [_costs(op, plan.width, length) for op in (plan.embed, plan.head)]
        return Cost(length, parameters, times * macs + merge + sum(e[0] for e in ends),
                    times * decode + merge + sum(e[1] for e in ends), 4 * times * state)

    def _merge_macs(self) -> int:
        """Every iteration forms W + B A once, whatever the number of tokens."""
        recursion = self.plan.recursion
        return sum(p.numel * recursion.lora_rank * recursion.times for n, _, p in self._declared()
                   if n.startswith("layers.") and ".op." in n and p.is_matrix)

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
        sizes = {name: declared.numel for name, declared in self.parameters.items()}
        return drawing.draw_text(self.plan, sizes) if format == "text" else drawing.draw_svg(self.plan, sizes)

    def diff(self, other: Architecture) -> str:
        """What differs between two architectures, layer by layer."""
        from .drawing import diff_text

        return diff_text(self.plan, other.plan)

    def to_json(self) -> dict[str, Any]:
        """Genome, space hash and graph hash; `Architecture.from_json(stored, space)` gives it back."""
        return {"schema_version": SCHEMA_VERSION, "genome": self.genome.to_json(), "space_hash": self.space.hash,
                "hash": self.hash}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], space: Space) -> Architecture:
        """Read what `to_json` wrote. Raises ValueError for another schema or another space."""
        if stored.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"an architecture of schema_version {SCHEMA_VERSION} is needed: got "
                             f"{stored.get('schema_version')!r}")
        if stored["space_hash"] != space.hash:
            raise ValueError(f"an architecture is read with its own space: got space hash {stored['space_hash'][:8]} "
                             f"and a space with {space.hash[:8]}; load the space it was found in")
        genome = Genome.from_json(stored["genome"])
        space.validate(genome)
        return cls(space, genome)


def weight_address(home: str, key: str, declared: Param) -> str:
    """Slot and candidate, parameter, and for parameters with one tensor per size that size."""
    own = f"@{'x'.join(map(str, declared.shape))}" if declared.share == "own" else ""
    return f"{home}/{key}{own}"


def lora_params(matrix: Param, times: int, rank: int) -> dict[str, Param]:
    """The declared pair of one matrix: A starts random, B at zero, one pair per iteration."""
    loops, ranks = Axis("iteration", times), Axis("rank", rank)
    rows, columns = matrix.dims
    return {"A": param(loops, ranks, columns, init=Init("last")), "B": param(loops, rows, ranks, init="zeros")}


@lru_cache(maxsize=65536)
def _axes_cached(op: Operator, width: int) -> dict[str, Param]:
    return op.axes(width)


def axes_of(op: Operator, width: int) -> dict[str, Param]:
    """The operator's declarations, remembered where its config is hashable."""
    try:
        return _axes_cached(op, width)
    except TypeError:
        return op.axes(width)


def _numel(op: Operator, width: int) -> int:
    return sum(p.numel for p in axes_of(op, width).values())


@lru_cache(maxsize=65536)
def _costs_cached(op: Operator, width: int, length: int) -> tuple[float, float, int]:
    return op.macs(width, length), op.decode_macs(width, length), op.state_numel(width, length)


def _costs(op: Operator, width: int, length: int) -> tuple[float, float, int]:
    try:
        return _costs_cached(op, width, length)
    except TypeError:
        return op.macs(width, length), op.decode_macs(width, length), op.state_numel(width, length)
