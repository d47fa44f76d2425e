"""Long sequences: 16,384 tokens stay finite, in memory that grows as the operator says.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..space.operator import Length, Operator
from ..space.reach import complexity_of, growth_in
from .modules import built, example_inputs, hold, run

__all__ = ["PeakBytes", "check_long", "is_linear"]

SIDES = (64, 128)                       # 4,096 and 16,384 tokens, as sequences or grids
SLACK = 1.3


class PeakBytes(TorchDispatchMode):                                                  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made while it is active and still alive: `peak` is the most there were at once.

    What a kernel uses inside itself is not seen; what a module makes between kernels is.
    """

    def __init__(self) -> None:
        super().__init__()                                                          # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def is_linear(config: Operator, width: int) -> bool:
    """Whether an operator on sequences or grids declares a cost that is linear in T, up to a logarithm."""
    return config.kind in ("mixer", "channel") and growth_in(complexity_of(config, width)) in ("T", "T log T")


@torch.no_grad()
def check_long(config: Operator, width: int) -> None:
    """An operator of linear time gives finite outputs for 16,384 tokens, and its intermediate tensors take at most 1.3
    times as many bytes per token there as at 4,096. A longest length is set to what is needed."""
    if not is_linear(config, width):
        return
    if hasattr(config, "max_len"):
        config = replace(config, max_len=SIDES[-1] ** 2)                              # type: ignore[type-var]
    module = built(config, width).eval()
    peaks = []
    for side in SIDES:
        length: Length = (side, side) if config.spatial else side * side
        inputs = example_inputs(config, width, batch=1, length=length)
        with PeakBytes() as counter:
            y_BTD = run(module, inputs)
        peaks.append(counter.peak)
        hold(bool(y_BTD.isfinite().all()), f"outputs for {side * side} tokens are finite: those of {config} at width "
                                           f"{width} are not")
    times = SIDES[1] ** 2 / SIDES[0] ** 2
    hold(peaks[1] <= SLACK * times * peaks[0], f"an operator of linear time takes linear memory: {config} at width {width} "
                                               f"takes {peaks[0]:,} bytes for 4,096 tokens and {peaks[1]:,} for 16,384")
