"""Values on the meta device: of tensors that hang on no weight and no input, such as masks and positions.

A meta tensor has a shape and no numbers, so nothing there says which pairs of a mask are hidden. But masks are made from
sizes alone, by `arange`, comparisons and the like. Inside `KnownValues` such operations run on the CPU as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from ..latency.memory import found_tensors

__all__ = ["KnownValues"]

aten = torch.ops.aten
MOST = 1 << 27          # numbers of one tensor that are kept
SHAPES = {aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full}  # shapes alone count
UNSET = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.empty_permuted}


class KnownValues(TorchDispatchMode):                                                   # type: ignore[no-untyped-call]
    """While it is entered, `value(tensor)` of a meta tensor that was made from sizes and constants alone.

    What is read of such a tensor as a Python number (`item`) is right too.
    """

    def __init__(self) -> None:
        super().__init__()                                                              # type: ignore[no-untyped-call]
        self._values: Any = WeakTensorKeyDictionary()

    def value(self, tensor: Tensor) -> Tensor | None:
        """The same tensor with its numbers, None where nobody knows them."""
        return tensor if tensor.device.type != "meta" else self._values.get(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        if packet is aten._local_scalar_dense and (known := self.value(args[0])) is not None:
            return func(known)
        output = func(*args, **kwargs)
        made = list(found_tensors(output))
        if not any(one.device.type == "meta" for one in made):
            return output
        if self._follows(func, packet, args, kwargs, made):
            real = func(*self._real(args), **self._real(kwargs))
            for one, known in zip(made, found_tensors(real), strict=True):
                self._values[one] = known
        elif func._schema.is_mutable:
            self._forget(made)
        return output

    def _follows(self, func: Any, packet: Any, args: Any, kwargs: Any, made: list[Tensor]) -> bool:
        if packet in UNSET or torch.Tag.nondeterministic_seeded in func.tags or any(one.numel() > MOST for one in made):
            return False
        return packet in SHAPES or all(self.value(one) is not None for one in found_tensors((args, kwargs)))

    def _real(self, given: Any) -> Any:
        def real(one: Any) -> Any:
            if isinstance(one, Tensor):
                known = self.value(one)
                return known if known is not None else torch.zeros((), dtype=one.dtype).expand(one.shape)
            return torch.device("cpu") if isinstance(one, torch.device) else one

        return tree_map(real, given)

    def _forget(self, changed: list[Tensor]) -> None:
        """What was written over with unknown numbers, and its views."""
        gone = {known.untyped_storage()._cdata for one in changed if (known := self._values.get(one)) is not None}
        for one in [one for one, known in self._values.items() if known.untyped_storage()._cdata in gone]:
            del self._values[one]
