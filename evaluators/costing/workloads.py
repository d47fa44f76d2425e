"""What every operator of an architecture does and moves: from formulas, and from a count of each distinct operator.

Products, parameters and states are the operators' own formulas. What is run besides, such as transforms, scans, element-wise
work and the bytes that eager operations move, is counted once for each distinct operator, width and length on the meta
device, without values, and remembered; so another architecture of the same operators costs a few look-ups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...space.graph import operator_label
from ...space.macros.base import Macro
from ...space.model import initialise
from ...space.operator import Length, Operator, tokens_of
from ...space.tree import axes_of
from ..latency.runs import Run, layers_of, runs_below
from .counted import Counted, counted

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
    torch's operations read and write one by one. peak: bytes that live at once inside. Columns that cannot be counted are
    None: of macros' own products and of operators that read a second stream.
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
    groups = tuple((place, _group(part, width, at, times, phase, batch, item))
                   for place, part, width, at, times in layers_of(architecture, length))
    return Workload(groups, phase, batch, seen, dtype)


@lru_cache(maxsize=MOST)
def _group(part: Any, width: int, length: Length, times: float, phase: str, batch: int, item: int) -> Group:
    rows = tuple(_row(run, batch, item) for run in runs_below("", part, width, length, times, phase))
    sums = {name: float(sum(value for row in rows if (value := getattr(row, name)) is not None)) for name in SUMMED}
    peaks = [(row.peak or row.stream) + row.stream / max(2 * row.times, 1.0) for row in rows]
    return Group(rows, sums, max(peaks, default=0.0))


def _row(run: Run, batch: int, item: int) -> OperatorCost:
    each = _each(run.operator, run.width, run.length, run.phase, batch)
    scaled = [None if value is None else run.times * value for value in each[:5]]
    macs, hidden, transforms, scans, elementwise = scaled
    assert macs is not None
    weights, stream, state, eager, peak = (None if value is None else item * value for value in each[5:])
    assert weights is not None and stream is not None and state is not None
    return OperatorCost(run.place, _label(run.operator), run.times, macs, hidden, transforms, scans, elementwise,
                        run.times * weights, run.times * stream, run.times * state,
                        None if eager is None else run.times * eager, peak)


@lru_cache(maxsize=MOST)
def _label(config: Any) -> str:
    return operator_label(config)


@lru_cache(maxsize=MOST)
def _each(config: Any, width: int, length: Length, phase: str, batch: int) -> tuple[float | None, ...]:
    """Of one run: the five counts of operations, then numbers (not bytes) of weights, stream, state, eager and peak."""
    tokens = 1 if phase == "decode" else tokens_of(length)
    is_decoding = phase == "decode"
    macs = batch * (config.decode_macs(width, length) if is_decoding else config.macs(width, length))
    own = sum(p.numel for p in axes_of(config, width).values())
    kind = config.kind
    if kind == "embedding":
        weights, stream = min(own, batch * tokens * width) if hasattr(config, "vocab") else own, batch * tokens * width
    else:                                           # a tied head reads the weights of the embedding
        weights = max(own, macs / (batch * tokens)) if kind == "head" else own
        stream = 2 * batch * tokens * width
    kept = 0 if isinstance(config, Macro) else batch * config.state_numel(width, length)
    grows = kept and config.state_numel(width, 2 * length) > config.state_numel(width, length)
    state = kept if grows or not is_decoding else 2 * kept          # a constant state is read and written for every token
    is_alone = not isinstance(config, Macro) and kind != "embedding" and (kind != "head" or own)     # not a tied head
    found = _counts(config, width, length, phase, batch) if is_alone else None
    if found is None:
        return macs, None, None, None, None, weights, stream, state, None, None
    hidden = max(0.0, found.products + found.transforms / 2 - macs)
    return (macs, hidden, found.transforms, found.scans, found.elementwise, weights, stream, state,
            (found.read + found.written) / 4, found.peak / 4)


def _counts(config: Operator, width: int, length: Length, phase: str, batch: int) -> Counted | None:
    """What one run does on the meta device, or on random numbers where these decide what runs, as with sparse experts; None
    where the operator does not run alone."""
    if config.cross or getattr(config, "reads_shared", False) or getattr(config, "reads_condition", False):
        return None
    try:
        return _ran(config, width, length, phase, batch, torch.device("meta"))
    except NotImplementedError:
        return _ran(config, width, length, phase, batch, torch.device("cpu"))
    except ValueError:                              # it is for shorter sequences
        return None


def _ran(config: Operator, width: int, length: Length, phase: str, batch: int, device: torch.device) -> Counted | None:
    sides = length if isinstance(length, tuple) else (length,)
    with torch.device(device):
        module: Any = config.build(width).eval()
        inputs = torch.zeros(batch, *sides, width)
    if device.type == "cpu":
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(inputs.shape, generator=generator)
        tensors = dict(module.named_parameters())
        for name, declared in config.axes(width).items():
            initialise(tensors[name].data, declared, generator)
    if phase == "prefill":
        return counted(lambda: module(inputs))
    if not config.streaming:
        return None
    if not hasattr(module, "step"):
        return counted(lambda: module(inputs[:, -1:]))
    with torch.no_grad():
        _, state = module.step(inputs, module.init_state(batch, dtype=torch.float32, device=device))
    token = inputs[:, -1:]
    return counted(lambda: module.step(token, state))
