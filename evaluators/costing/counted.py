"""Operations of one call by kind, and the bytes that they read and write, as torch would run it eagerly.

Works on the meta device, where nothing is computed. Softmax attention counts as one operation with all of its pairs, as
fused kernels run it: scores stay in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from ..latency.memory import LiveBytes, found_tensors

__all__ = ["Counted", "counted"]

aten = torch.ops.aten
SCANS = {aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.cummax, aten.cummin, aten.cumsum_, aten.cumprod_}
VIEWS = {aten.detach, aten._unsafe_view, aten._reshape_alias, aten.alias, aten.lift_fresh}    # not marked as such
MADE = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.empty_permuted}
TRANSFORMS = {aten._fft_r2c, aten._fft_c2r, aten._fft_c2c}
# These read every number of their input once or twice and compute with it; what they give may be smaller.
REDUCTIONS = {aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.var_mean, aten.std, aten.prod,
              aten.argmax, aten.argmin, aten.logsumexp, aten.linalg_vector_norm, aten._softmax, aten._log_softmax,
              aten.native_layer_norm, aten.native_batch_norm, aten._native_batch_norm_legit_no_training,
              aten.native_group_norm, aten._fused_rms_norm, aten.sort, aten.topk, aten.any, aten.all}


class Counted(NamedTuple):
    """One call. products: multiply-adds of matrix products and convolutions, those of hidden pairs and padding included.
    transforms: operations of Fourier transforms, 2.5 n log2 n for a real one of n points and twice that for a complex one.
    scans: numbers that come out of cumulative sums and their like. elementwise: numbers that element-wise operations give and
    that reductions, norms and softmax take. read, written: bytes, of views nothing. peak: bytes of what is made and lives at
    once."""

    products: float = 0.0
    transforms: float = 0.0
    scans: float = 0.0
    elementwise: float = 0.0
    read: float = 0.0
    written: float = 0.0
    peak: float = 0.0


def counted(call: Callable[[], Any]) -> Counted:
    """What `call` does, without gradients."""
    counter = _Counter()
    with torch.no_grad(), _Fused(counter), counter:
        kept = call()
    del kept
    return Counted(**counter.found, peak=float(counter.peak))


class _Counter(LiveBytes):                                                             # type: ignore[no-untyped-call]
    """Counts by kind, beside the bytes that live."""

    def __init__(self) -> None:
        super().__init__()
        self.found = dict.fromkeys(Counted._fields[:-1], 0.0)
        self.silent = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        packet = func._overloadpacket
        if self.silent or func.is_view or packet in VIEWS:
            return output
        given, made = list(found_tensors((args, kwargs))), list(found_tensors(output))
        if packet not in MADE:
            self.moved(given, made)
        self.add(given, made)
        self.work(func, packet, args, kwargs, given, made, output)
        return output

    def work(self, func: Any, packet: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor],
             output: Any) -> None:
        if packet in TRANSFORMS:
            self.found["transforms"] += _transform(packet, args, made[0])
        elif packet is aten.linalg_solve_triangular:
            self.found["products"] += given[0].shape[-1] * given[1].numel() / 2
        elif packet in (aten._embedding_bag, aten._embedding_bag_forward_only):
            self.found["products"] += args[1].numel() * args[0].shape[-1]
        elif packet in flop_registry:
            self.found["products"] += flop_registry[packet](*args, **kwargs, out_val=output) / 2
        elif packet in SCANS:
            self.found["scans"] += made[0].numel()
        elif packet in REDUCTIONS:
            self.found["elementwise"] += given[0].numel()
        elif torch.Tag.pointwise in func.tags:
            self.found["elementwise"] += sum(one.numel() for one in made)

    def moved(self, given: list[Tensor], made: list[Tensor]) -> None:
        """What is expanded is read once."""
        self.found["read"] += sum(_bytes(one) for one in given)
        self.found["written"] += sum(_bytes(one) for one in made)


class _Fused(TorchFunctionMode):
    """Softmax attention as one operation: products of all its pairs, a softmax of them, tensors read and written once."""

    def __init__(self, counter: _Counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        counter, held = self.counter, self.counter.silent
        counter.silent = True
        try:
            output = func(*args, **kwargs)
        finally:
            counter.silent = held
        given = list(found_tensors((args, kwargs)))
        query, key, value = given[:3]
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        counter.found["products"] += pairs * (query.shape[-1] + value.shape[-1])
        counter.found["elementwise"] += pairs
        counter.moved(given, [output])
        counter.add(given, [output])
        return output


def _bytes(one: Tensor) -> int:
    seen = math.prod(size for size, stride in zip(one.shape, one.stride(), strict=True) if stride or size == 0)
    return int(seen) * one.element_size()


def _transform(packet: Any, args: Any, made: Tensor) -> float:
    """The longer side of a real transform is the real one."""
    shape = made.shape if packet is aten._fft_c2r else args[0].shape
    points = math.prod(shape[d] for d in args[1])
    each = 5.0 if packet is aten._fft_c2c else 2.5
    return each * math.log2(max(points, 2)) * math.prod(shape)
