"""Peak memory of a call: bytes of the tensors it makes, beyond those that were there before.

On CUDA the allocator says it (`max_memory_allocated`), work spaces of kernels included. On a CPU the storages that torch's
operations return are added up while they live: what an operation takes and gives back inside itself is not seen, nor what
the C library keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .clock import Work

__all__ = ["LiveBytes", "found_tensors", "peak_bytes"]


class LiveBytes(TorchDispatchMode):                                                     # type: ignore[no-untyped-call]
    """While it is entered, `now` is the bytes of the storages that operations made and that still live, `peak` the most."""

    def __init__(self) -> None:
        super().__init__()                                                              # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.add(found_tensors((args, kwargs)), found_tensors(output))
        return output

    def add(self, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """Count the storages of what an operation made that are not those of what it was given."""
        before = {one.untyped_storage()._cdata for one in given}
        for one in made:
            storage = one.untyped_storage()
            key = storage._cdata
            if key not in before and key not in self._held:
                self._held[key] = storage.nbytes()
                weakref.finalize(storage, self._gone, key)
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._held.pop(key, 0)


def found_tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from found_tensors(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from found_tensors(part)


def peak_bytes(work: Work, device: torch.device, mode: str = "eager") -> int | None:
    """The peak of one call; weights, inputs and state are not part of it. None where nobody can tell: on MPS, for compiled
    work of a CPU, whose operations torch does not see, and for a graph, which has its memory before it runs."""
    if device.type == "cuda" and mode != "graph":
        work.before()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode(not work.grads):
            work.run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu" or mode != "eager":
        return None
    work.before()
    live = LiveBytes()
    with torch.inference_mode(not work.grads), live:
        work.run()
    return live.peak
