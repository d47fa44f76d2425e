"""Which parameter of a small network stands for which of a larger one of the same kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..axes import Axis, Dim, Param
from ..operator import Operator
from ..operators.add import Add
from ..operators.custom import Custom
from ..tree import Placed, axes_of
from .scaling import PATTERNS, SCALED_FIELDS, layer_order

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["Twin", "twins"]

Tree = dict[str, Any]           # module prefixes by their parts; the operator stands under ""


@dataclass(frozen=True)
class Twin:
    """A parameter as it is declared here and in the base.

    prefix, key: of its operator in the model, and its name in the operator. width: of the stream there. matrix: for the
    low-rank pair of a loop, the name of the matrix it is added to; then key is "A" or "B".
    """

    prefix: str
    key: str
    operator: Operator
    width: int
    here: Param
    base: Param
    matrix: str | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies activations as a matrix; tables of positions, filters and gains do not.

        A random start whose spread follows the number of inputs gives away a matrix that is declared by its spread.
        """
        kind, dims = self.here.init.kind, len(self.here.dims)
        if self.operator.kind == "embedding":
            return kind == "linear"
        follows = self.here.init != self.base.init or isinstance(self.operator, Custom)
        return dims > 1 and (kind in ("linear", "last", "zeros") or follows)

    @property
    def spread(self) -> float:
        """How much smaller than in the base the random starting values are, 1 without any."""
        return _spread(self.here) / _spread(self.base)

    @property
    def inputs(self) -> tuple[int, int]:
        """The inputs of each output, here and in the base."""
        return self._fan(self.here)[0], self._fan(self.base)[0]

    @property
    def outputs(self) -> tuple[int, int]:
        """The outputs, here and in the base."""
        return self._fan(self.here)[1], self._fan(self.base)[1]

    @property
    def writes(self) -> bool:
        """Whether its outputs are the entries of the stream."""
        dim = self.here.dims[-2 if _is_stack(self.here) else 0]
        return is_stream(dim) or isinstance(self.operator, Custom) and dim.size == self.width

    def _fan(self, declared: Param) -> tuple[int, int]:
        shape = declared.shape
        if not _is_stack(declared):
            return math.prod(shape[1:]), shape[0]
        streams = [dim.size for dim in declared.dims if is_stream(dim)]
        if declared.init.kind == "zeros" and streams and self.matrix is None:
            return streams[0], shape[-1]                    # a stack of matrices that read the stream
        return shape[-1], shape[-2]


def is_stream(dim: Dim) -> bool:
    """Whether a dimension is the width of the stream and nothing else."""
    return [axis.name for axis in dim.axes()] == ["width"]


def _is_stack(declared: Param) -> bool:
    """Whether it is several matrices in one tensor, the last two dimensions of each its outputs and inputs."""
    return len(declared.dims) > 2 and declared.init.kind in ("last", "zeros")


def _spread(declared: Param) -> float:
    init, shape = declared.init, declared.shape
    if init.kind in ("linear", "last"):
        return init.gain / math.sqrt(math.prod(shape[1:]) if init.kind == "linear" else shape[-1])
    return {"normal": init.gain, "uniform": init.high}.get(init.kind, 1.0)


def twins(architecture: Architecture, base: Architecture) -> dict[str, Twin]:
    """Every parameter of `architecture` by name, with the one that stands for it in `base`.

    Layers are matched one by one at equal depth, else as `layer_order` repeats them, by the pattern that fits best.

    Raises:
        ValueError: embedding, head or final norm differ, or the layers are not of the same kinds.
    """
    for name in ("embed", "head", "norm"):
        ours, theirs = getattr(architecture.plan, name), getattr(base.plan, name)
        if ours != theirs:
            raise ValueError(f"the base differs in width and depth alone at {name}: got {ours!r} and {theirs!r}; use one "
                             f"{name} for both")
    order, known = _module_order(architecture, base), _Known(base)
    found: dict[str, Twin] = {}
    for place in architecture.placed:
        for key in axes_of(place.operator, place.width):
            here = architecture.parameters[f"{place.name}.{key}"]
            small = known.like(f"{order[place.name]}.{key}", key, place, here)
            found[f"{place.name}.{key}"] = Twin(place.name, key, place.operator, place.width, here, small)
    for name, here in architecture.parameters.items():
        if name not in found:
            found[name] = _low_rank(name, here, found)
    return found


class _Known:
    """The parameters of the base, by name, or by operator and key where its layers lack what ours have.

    A residual topology gives some layers parameters that others do not have: the first attention computes keys, a later
    one uses them.
    """

    def __init__(self, base: Architecture):
        self.parameters = base.parameters
        self.kinds: dict[tuple[type, str], list[Param]] = {}
        for place in base.placed:
            for key, declared in axes_of(place.operator, place.width).items():
                self.kinds.setdefault((type(place.operator), key), []).append(declared)

    def like(self, name: str, key: str, place: Placed, here: Param) -> Param:
        same = [self.parameters[name]] if name in self.parameters else []
        for declared in [*same, *self.kinds.get((type(place.operator), key), [])]:
            if [_names_of(dim) for dim in declared.dims] == [_names_of(dim) for dim in here.dims]:
                return declared
        if len(here.dims) == 1:
            return here
        raise ValueError(f"the base has the same matrices, at other sizes, at {place.name}.{key}: got none like {here}")


def _low_rank(name: str, here: Param, found: Mapping[str, Twin]) -> Twin:
    """The low-rank pair that a loop adds to a matrix: the rows or columns are the matrix's, rank and times the same."""
    outer, _, rest = name.rpartition("lora.")
    flat, side = rest.split(".")
    matrix = next(other for other in found if other.startswith(outer) and other[len(outer):].replace(".", "_") == flat)
    twin = found[matrix]
    sizes = dict(zip(twin.here.dims, twin.base.dims, strict=True))
    small = replace(here, dims=tuple(sizes.get(dim, dim) for dim in here.dims))
    return Twin(twin.prefix, side, twin.operator, twin.width, here, small, matrix)


def _names_of(part: Dim | Axis) -> Any:
    """The names of the axes as they are nested, without sizes."""
    if isinstance(part, Axis):
        return part.name
    return [[_names_of(factor) for factor in segment] for segment in part.segments]


def _module_order(architecture: Architecture, base: Architecture) -> dict[str, str]:
    """The base's module for every module, under the pattern of repetition that fits best."""
    fitting, odd = [], None
    for pattern in PATTERNS:
        matched = list(_match(_tree(architecture), _tree(base), pattern))
        misfit = next((entry for entry in matched if type(entry[2]) is not type(entry[3])), None)
        odd = odd or misfit
        if misfit is None:
            fitting.append((sum(_plain(ours) != _plain(theirs) for _, _, ours, theirs in matched), matched))
    if not fitting:
        assert odd is not None
        raise ValueError(f"the base has layers of the same kinds, repeated as a whole or one by one, at {odd[0] or odd[1]}: "
                         f"got {odd[2]!r} here and {odd[3]!r} there; make one from the other with architecture.scale")
    return {ours: theirs for ours, theirs, _, _ in min(fitting, key=lambda entry: entry[0])[1]}


def _tree(architecture: Architecture) -> Tree:
    """Module prefixes as a tree; an operator stands under the empty name. Plain sums count as nothing, scaled or not."""
    root: Tree = {}
    for prefix, operator in architecture.modules:
        if isinstance(operator, Add):
            continue
        node = root
        for part in prefix.split("."):
            node = node.setdefault(part, {})
        node[""] = operator
    return root


def _match(ours: Tree, theirs: Tree, pattern: str, at: str = "", there: str = "") -> Iterator[tuple[str, str, Any, Any]]:
    """(prefix here, prefix there, operator here, operator there) of every module; None where one is missing."""
    if "" in ours or "" in theirs:
        yield at, there, ours.get(""), theirs.get("")
    for name, other in _layer_pairs(ours, theirs, pattern):
        yield from _match(ours.get(name, {}), theirs.get(other, {}), pattern, f"{at}.{name}".strip("."),
                          f"{there}.{other}".strip("."))


def _layer_pairs(ours: Tree, theirs: Tree, pattern: str) -> list[tuple[str, str]]:
    """Names below two nodes, side by side: equal names, or the layers of runs that `scale` has grown."""
    mine, others = [name for name in ours if name], [name for name in theirs if name]
    runs = [(list(a), list(b)) for (nested, a), (also, b) in zip(_groups(ours, mine), _groups(theirs, others), strict=False)
            if nested == also]
    whole = sum(len(a) for a, _ in runs) == len(mine) and sum(len(b) for _, b in runs) == len(others)
    if mine == others or not whole or not all(name.isdigit() for name in mine + others):
        return [(name, name) for name in dict.fromkeys(mine + others)]
    return [(name, b[i]) for a, b in runs for name, i in zip(a, layer_order(len(b), len(a), pattern), strict=True)]


def _groups(tree: Tree, names: list[str]) -> list[tuple[bool, list[str]]]:
    """Neighbours that are all layers, or all macros that hold layers, in order."""
    return [(nested, list(group)) for nested, group in
            groupby(names, key=lambda name: bool(getattr(tree[name].get(""), "streams", ())))]


def _plain(operator: Operator) -> dict[str, Any]:
    """The fields that do not grow with the width."""
    return {field.name: getattr(operator, field.name) for field in fields(operator)             # type: ignore[arg-type]
            if field.name not in (*SCALED_FIELDS, *getattr(operator, "holds", ()))}
