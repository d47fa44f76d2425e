"""What every operator of an architecture does and moves: from formulas, and from a count of each distinct operator.

Products, parameters and states are the operators' own formulas. What is run besides, such as transforms, scans, element-wise
work and the bytes that eager operations move, is counted once for each distinct operator, width and length on the meta
device, without values, and remembered; so another architecture of the same operators costs a few look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ...space.graph import operator_label
from ...space.macros.base import Macro
from ...space.operator import Length, tokens_of
from ...space.plan import Block
from ...space.tree import axes_of, matrices_of
from ..latency.runs import Run, layers_of, runs_below
from .single import counts_of, lasting_numel, macro_peak

if TYPE_CHECKING:
    from ...space.architecture import Architecture

__all__ = ["ITEM_BYTES", "OperatorCost", "Workload", "workload"]

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
MOST = 65_536           # distinct operators that are remembered


class OperatorCost(NamedTuple):
    """One operator of an architecture, all of its `times` runs together, for a whole batch.

    macs: multiply-adds of what is asked for. hidden: those that full squares, chunks and padding compute besides, of pairs
    that a mask hides. transforms, scans, elementwise: see `Counted`. weights: bytes of parameters, once a run. stream: bytes
    of what goes in and comes out. state: bytes of cache or state, read and, where it is constant, written. eager: bytes that
    torch's operations read and write one by one. peak: bytes that live at once inside. lasting: numbers of state that stay in
    float32 whatever the dtype. Columns that cannot be counted are None: of look-ups, of macros' own products and of operators
    that read a second stream.
    """

    place: str
    label: str
    times: float
    macs: float
    hidden: float | None
    transforms: float | None
    scans: float | None
    elementwise: float | None
    weights: float
    stream: float
    state: float
    eager: float | None
    peak: float | None
    lasting: float

    @property
    def least(self) -> float:
        """Bytes that no implementation can do without: weights, input, output and state, each once."""
        return self.weights + self.stream + self.state

    @property
    def intensity(self) -> float:
        """Operations, two for a multiply-add, per byte that has to be moved (Op/B)."""
        return 2 * self.macs / max(self.least, 1.0)

    @property
    def passes(self) -> float | None:
        """Eager bytes over the bytes that have to be moved: how many times over the data is read and written."""
        return None if self.eager is None else self.eager / max(self.least, 1.0)


SUMMED = ("macs", "hidden", "transforms", "scans", "elementwise", "weights", "stream", "state", "eager")


class Group(NamedTuple):
    """The operators of one layer, their places seen from it, with the sums of their columns."""

    rows: tuple[OperatorCost, ...]
    sums: Mapping[str, float]
    peak: float


@dataclass(frozen=True)
class Workload:
    """All operators of an architecture in a phase, layer by layer."""

    groups: tuple[tuple[str, Group], ...]
    phase: str
    batch: int
    length: Length
    dtype: str
    architecture: Architecture = field(repr=False, compare=False)

    @property
    def rows(self) -> tuple[OperatorCost, ...]:
        """The operators in the order they run."""
        return tuple(row._replace(place=f"{place}{row.place}") for place, group in self.groups for row in group.rows)

    def total(self, column: str) -> float:
        """The sum of a column of `OperatorCost` over the operators that have it, such as "macs" or "weights"."""
        if column not in SUMMED:
            raise ValueError(f"a total is of one of {', '.join(SUMMED)}: got {column!r}")
        return sum(group.sums[column] for _, group in self.groups)

    @property
    def least(self) -> float:
        """Bytes that no implementation can do without, see `OperatorCost`."""
        return sum(self.total(column) for column in ("weights", "stream", "state"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters in `dtype`, tied ones once; `total("weights")` are those that are read, in every loop."""
        return ITEM_BYTES[self.dtype] * self.architecture.cost(self.length).parameters

    @property
    def state_bytes(self) -> float:
        """Bytes of caches and states after `length` tokens in `dtype`. What recurrences sum up stays in float32."""
        item = ITEM_BYTES[self.dtype]
        held = workload(self.architecture, self.length, "prefill", self.batch, self.dtype)
        lasting = sum(row.lasting for _, group in held.groups for row in group.rows)
        return self.batch * item * self.architecture.cost(self.length).state_bytes / 4 + (4 - item) * lasting

    @property
    def uncounted(self) -> list[str]:
        """Places of which only formulas are known."""
        return [row.place for row in self.rows if row.eager is None]

    @property
    def peak_bytes(self) -> float:
        """The most bytes beyond weights and states that live at once: the largest inside of an operator, and the stream
        that waits beside it."""
        return max(group.peak for _, group in self.groups)


def workload(architecture: Architecture, length: Length | None = None, phase: str = "prefill", batch: int = 1,
             dtype: str = "float32") -> Workload:
    """What an architecture does in a prefill of `length` tokens, or for one more token after them ("decode").

    dtype: what weights, stream and states are kept in.

    Raises:
        ValueError: an unknown phase or dtype, or a batch below 1.
    """
    if phase not in ("prefill", "decode"):
        raise ValueError(f"a workload is of 'prefill' or 'decode': got {phase!r}")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype is one of {', '.join(ITEM_BYTES)}: got {dtype!r}")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch is a whole number of at least 1: got {batch!r}")
    seen, item = architecture.default_length if length is None else length, ITEM_BYTES[dtype]
    merges = bool(architecture.plan.recursion.lora_rank)
    groups = tuple((place, _group(part, width, at, times, phase, batch, item, merges and place.startswith("layers")))
                   for place, part, width, at, times in layers_of(architecture, length))
    return Workload(groups, phase, batch, seen, dtype, architecture)


@lru_cache(maxsize=MOST)
def _group(part: Any, width: int, length: Length, times: float, phase: str, batch: int, item: int, merges: bool) -> Group:
    rows = tuple(_row(run, batch, item) for run in runs_below("", part, width, length, times, phase))
    sums = {name: float(sum(value for row in rows if (value := getattr(row, name)) is not None)) for name in SUMMED}
    peak = max((_beside(row, rows) for row in rows), default=0.0)
    if isinstance(part, Macro) and not isinstance(part, Block) and phase == "prefill":
        peak = item * (macro_peak(part, width, length, batch) or 0.0) or peak
    if merges:                                      # the layer's own matrices of this iteration
        peak += item * sum(matrix.numel for _, matrix in matrices_of((part,), width))
    return Group(rows, sums, peak)


def _beside(row: OperatorCost, rows: tuple[OperatorCost, ...]) -> float:
    """Bytes that live at once while an operator runs: those inside it, the stream that it adds to, its normalised input, and
    behind another sublayer what entered the layer."""
    if row.place == "":                                                 # an embedding's input is there already
        return row.peak or row.stream
    block, _, part = row.place.rpartition(".channel.")
    norm = f"{row.place.removesuffix('op')}norm"
    normed = row.place.endswith(".op") and any(other.place == norm and other.eager for other in rows)
    waiting = 1 + normed + (bool(part) and any(other.place == f"{block}.mixer.op" for other in rows))
    each = row.stream / max(row.times, 1e-9)
    return (row.peak or each) + waiting * each / 2


def _row(run: Run, batch: int, item: int) -> OperatorCost:
    each = _each(run.operator, run.width, run.length, run.phase, batch)
    scaled = [None if value is None else run.times * value for value in each[:5]]
    macs, hidden, transforms, scans, elementwise = scaled
    assert macs is not None
    weights, stream, state, eager, peak = (None if value is None else item * value for value in each[5:10])
    lasting = each[10]
    assert weights is not None and stream is not None and state is not None and lasting is not None
    state += (4 - item) * lasting
    return OperatorCost(run.place, _label(run.operator), run.times, macs, hidden, transforms, scans, elementwise,
                        run.times * weights, run.times * stream, run.times * state,
                        None if eager is None else run.times * eager, peak, run.times * lasting)


@lru_cache(maxsize=MOST)
def _label(config: Any) -> str:
    return operator_label(config)


@lru_cache(maxsize=MOST)
def _each(config: Any, width: int, length: Length, phase: str, batch: int) -> tuple[float | None, ...]:
    """Of one run: the five counts of operations, then numbers (not bytes) of weights, stream, state, eager and peak, and of
    the state those that are kept in float32."""
    tokens = 1 if phase == "decode" else tokens_of(length)
    is_decoding = phase == "decode"
    macs = batch * (config.decode_macs(width, length) if is_decoding else config.macs(width, length))
    own = sum(p.numel for p in axes_of(config, width).values())
    kind = config.kind
    if kind == "embedding":
        weights, stream = min(own, batch * tokens * width) if hasattr(config, "vocab") else own, batch * tokens * width
    else:                                           # a tied head reads the weights of the embedding
        weights = max(own, macs / (batch * tokens)) if kind == "head" else own
        stream = (3 if kind == "join" else 2) * batch * tokens * width
    kept = 0 if isinstance(config, Macro) else batch * config.state_numel(width, length)
    grows = kept and config.state_numel(width, 2 * length) > config.state_numel(width, length)
    moves = 1 if grows or not is_decoding else 2                    # a constant state is read and written for every token
    state, lasting = moves * kept, moves * batch * lasting_numel(config, width) if kept else 0
    found = None if isinstance(config, Macro) else counts_of(config, width, length, phase, batch)
    if found is None:
        return macs, None, None, None, None, weights, stream, state, None, None, lasting
    hidden = max(0.0, found.products + found.transforms / 2 - macs)
    return (macs, hidden, found.transforms, found.scans, found.elementwise, weights, stream, state,
            (found.read + found.written) / 4, found.peak / 4, lasting)
