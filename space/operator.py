"""What an operator declares: sizes, named axes, costs and its source. The arithmetic is in its `nn.Module`.

An operator is written once, at fixed sizes. Its config is a frozen dataclass whose fields may hold choices while it
sits in a space; by the time any method here is called, every field is a plain value. The library calls `check` when a
space is made, `axes` when weights are laid out, `build` when a module is wanted, and the cost formulas for every
candidate, so those must not touch torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

from ..registry import Registry
from .axes import Param

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Length", "Operator", "Source", "enlist", "leaf", "lending", "operators", "tokens_of"]

Length = int | tuple[int, int]          # tokens of a sequence, or (height, width) of a grid

operators: Registry[type[Operator]] = Registry("operator")
Lender = Callable[[Any, Callable[[], Any]], Any]
_lender: ContextVar[Lender | None] = ContextVar("lender", default=None)


@dataclass(frozen=True)
class Source:
    """Where an operator comes from. `systems` are rows of the catalogue it realises, `options` rows it does in part."""

    paper: str
    year: int
    systems: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def tokens_of(length: Length) -> int:
    """The number of tokens of a sequence or a grid."""
    return length if isinstance(length, int) else length[0] * length[1]


class Operator:
    """Base of operator configs. Subclasses are `@dataclass(frozen=True)` and name their kind.

    kind: mixer | channel | norm | join | embedding | head | identity | macro. The module of a join takes the stream and what
    is joined to it, both [B, T, D].
    causal: output t depends on inputs up to t only. streaming: the module has `init_state` and `step`.
    spatial: the module takes a grid [B, H, W, D] as it is; others get it flattened to [B, T, D]. The `length` of a spatial
    operator's cost formulas is (height, width) on a grid, else a number of tokens.
    keeps_zero: an input of zeros gives zeros, whatever the weights, so that a zero branch can be rewritten away.
    cross: it reads a second sequence, the memory. chooses: it picks tokens, regions or experts, so that a rounding error
    may turn a choice.

    What users choose by, each found from the above and the formulas where it is None (see `reach`): patterns, those of
    "causal self", "noncausal self", "causal cross" and "noncausal cross" it supports over its options (CAB, Zhang et al.,
    2023); complexity, how its cost grows with the tokens T ("T", "T w", "T log T", "T^2"); state_growth, what its decode
    state is as T grows ("constant", "window", "T").

    Axes of one name may be permuted together without changing the function, which is how the entries that matter most
    come first. What is not so is said here: fixed, axes whose entries have a meaning of their own (a rotary frequency, a
    token id), with the reason; couples, axes whose order other operators of the network rely on; batched, axes whose
    entries work alone (experts), so that each may order the other dimensions' axes in its own way.
    """

    kind: ClassVar[str] = "mixer"
    source: ClassVar[Source]
    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True
    spatial: ClassVar[bool] = False
    keeps_zero: ClassVar[bool] = False
    cross: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    patterns: ClassVar[tuple[str, ...] | None] = None
    complexity: ClassVar[str | None] = None
    state_growth: ClassVar[str | None] = None
    fixed: ClassVar[Mapping[str, str]] = {}
    couples: ClassVar[frozenset[str]] = frozenset()
    batched: ClassVar[frozenset[str]] = frozenset()

    def check(self, width: int, where: str) -> None:
        """Raise ValueError when these numbers cannot be built at residual width `width`."""

    def axes(self, width: int) -> dict[str, Param]:
        """Every parameter of the module by its state_dict name."""
        raise TypeError(f"{type(self).__name__} must declare axes(width) for its parameters")

    def build(self, width: int) -> nn.Module:
        """The module at these sizes, parameters uninitialised or default; `initialise` fills them from `axes`."""
        raise TypeError(f"{type(self).__name__} must define build(width)")

    def macs(self, width: int, length: int) -> float:
        """Multiply-adds of matrix products and convolutions for one sequence of `length` tokens."""
        return self.matrix_numel(width) * length

    def decode_macs(self, width: int, length: int) -> float:
        """Multiply-adds of one more token after `length` tokens."""
        return self.matrix_numel(width)

    def state_numel(self, width: int, length: int) -> int:
        """Numbers kept by the decode state of one sequence after `length` tokens."""
        return 0

    def matrix_numel(self, width: int) -> int:
        """Entries of all matrices: the multiply-adds per token of the projections."""
        return sum(p.numel for p in self.axes(width).values() if p.is_matrix)

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__:
            cls.build = _lent(cls.build)                             # type: ignore[method-assign, assignment]
        if not abstract:
            enlist(operators, cls)


@contextmanager
def lending(lender: Lender | None) -> Iterator[None]:
    """While it lasts, leaves come from `lender(key, make)`, which may give a module made before; None makes all anew."""
    token = _lender.set(lender)
    try:
        yield
    finally:
        _lender.reset(token)


def leaf(key: Any, make: Callable[[], nn.Module]) -> nn.Module:
    """A module that depends on `key` alone: made, or one that was lent."""
    lender = _lender.get()
    if lender is None:
        return make()

    def alone() -> nn.Module:
        with lending(None):                 # what a leaf is made of is its own
            return make()

    return lender(key, alone)                                                         # type: ignore[no-any-return]


def _lent(build: Callable[[Any, int], nn.Module]) -> Callable[[Any, int], nn.Module]:
    """`build` of an operator, whose module depends on the operator and the width."""
    @wraps(build)
    def lent(self: Any, width: int) -> nn.Module:
        return leaf((self, width), lambda: build(self, width))

    return lent


def enlist(registry: Registry[Any], cls: type) -> None:
    """Register a class under its name, unless that starts with an underscore."""
    if cls.__name__.startswith("_"):
        return
    known = registry._targets.get(cls.__name__)
    # A notebook cell or a reloaded module defines its class again: the newer definition stands.
    if known is None or getattr(known, "__module__", None) == cls.__module__:
        registry._targets[cls.__name__] = cls
    else:
        registry.register(cls.__name__, cls)
