"""What an operator declares: sizes, named axes, costs and its source. The arithmetic is in its `nn.Module`.

An operator is written once, at fixed sizes. Its config is a frozen dataclass whose fields may hold choices while it
sits in a space; by the time any method here is called, every field is a plain value. The library calls `check` when a
space is made, `axes` when weights are laid out, `build` when a module is wanted, and the cost formulas for every
candidate, so those must not touch torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..registry import Registry
from .axes import Param

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Operator", "Source", "operators"]

operators: Registry[type[Operator]] = Registry("operator")


@dataclass(frozen=True)
class Source:
    """Where an operator comes from. `systems` are rows of the catalogue it realises, `options` rows it does in part."""

    paper: str
    year: int
    systems: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Operator:
    """Base of operator configs. Subclasses are `@dataclass(frozen=True)` and name their kind.

    kind: mixer | channel | norm | embedding | head | identity.
    causal: output t depends on inputs up to t only. streaming: the module has `init_state` and `step`.
    """

    kind: ClassVar[str] = "mixer"
    source: ClassVar[Source]
    causal: ClassVar[bool] = True
    streaming: ClassVar[bool] = True

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            known = operators._targets.get(cls.__name__)
            # A notebook cell or a reloaded module defines its class again: the newer definition stands.
            if known is None or getattr(known, "__module__", None) == cls.__module__:
                operators._targets[cls.__name__] = cls
            else:
                operators.register(cls.__name__, cls)
