"""What an operator around another has from the one inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..operator import Operator

__all__ = ["Wrapped"]


class Wrapped(Operator, abstract=True):
    """Base of operators that hold one in `op`: kind, traits, costs and state are those of what is inside.

    Between operators of other kinds choose outside of it, since those inside share weights by their names.
    """

    op: Any

    @property
    def kind(self) -> str:                                                           # type: ignore[override]
        return str(self.op.kind)

    @property
    def causal(self) -> bool:                                                        # type: ignore[override]
        return bool(self.op.causal)

    @property
    def streaming(self) -> bool:                                                     # type: ignore[override]
        return bool(self.op.streaming)

    @property
    def spatial(self) -> bool:                                                       # type: ignore[override]
        return bool(self.op.spatial)

    @property
    def keeps_zero(self) -> bool:                                                    # type: ignore[override]
        return bool(self.op.keeps_zero)

    @property
    def causal_to_the_bit(self) -> bool:
        return bool(getattr(self.op, "causal_to_the_bit", True))

    @property
    def fixed(self) -> Mapping[str, str]:                                            # type: ignore[override]
        return self.op.fixed                                                         # type: ignore[no-any-return]

    @property
    def couples(self) -> frozenset[str]:                                             # type: ignore[override]
        return self.op.couples                                                       # type: ignore[no-any-return]

    @property
    def batched(self) -> frozenset[str]:                                             # type: ignore[override]
        return self.op.batched                                                       # type: ignore[no-any-return]

    def check_inside(self, width: int, where: str, kinds: tuple[str, ...]) -> None:
        """Refuse what is no operator of these kinds, reads what other layers hand on, or cannot be built."""
        name = type(self).__name__
        if not isinstance(self.op, Operator) or self.op.kind not in kinds:
            raise TypeError(f"op is a mixer or a channel mixer at {where}: got {self.op!r}; write {name}(Attention())")
        if getattr(self.op, "reads_shared", False):
            raise ValueError(f"{name} holds an operator that works alone at {where}: got {self.op!r}, which reads what other "
                             "layers hand on")
        self.op.check(width, f"{where}.op")

    def macs(self, width: int, length: int) -> float:
        return float(self.op.macs(width, length))

    def decode_macs(self, width: int, length: int) -> float:
        return float(self.op.decode_macs(width, length))

    def state_numel(self, width: int, length: int) -> int:
        return int(self.op.state_numel(width, length))
