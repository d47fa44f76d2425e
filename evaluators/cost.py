"""Multiply-adds of a forward pass by two counters that know nothing of each other or of declared costs.

`macs_flop_counter` watches the operations torch executes. `macs_thop` adds up modules: thop knows `nn.Linear`
and the like, and for what a module computes outside its children there is a formula here, by the name of its
class. Both count multiply-adds of matrix products and convolutions (a transform's operations by two to one),
not element-wise work. Attention counts the visible query-key pairs, not the full square.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..registry import Registry
from . import attention_macs, channel_macs, hybrid_macs, image_macs, linear_macs, written_macs
from .costing.known import KnownValues

__all__ = ["functional_macs", "macs_flop_counter", "macs_thop"]

aten = torch.ops.aten
Formula = Callable[[nn.Module, tuple[Any, ...], Any], float]
functional_macs: Registry[Formula] = Registry("MAC formula")


def macs_flop_counter(call: Callable[..., Any], *example: Any) -> float:
    """Multiply-adds of `call(*example)`, of a module or a step of it, as torch executes it, by operation.

    Adds to torch's own table what it lacks: attention on a CPU, transforms, triangular solves, weighted sums of rows.
    Attention counts what its mask shows; on the meta device too, where masks are known that are made from sizes.
    """
    extra = {aten._scaled_dot_product_flash_attention_for_cpu: _raw(_attention_flops),
             aten._scaled_dot_product_flash_attention: _raw(_attention_flops),
             aten._scaled_dot_product_efficient_attention: _raw(_biased_attention_flops),
             aten._scaled_dot_product_cudnn_attention: _raw(_biased_attention_flops),
             aten._fft_r2c: _transform_flops, aten._fft_c2r: _inverse_transform_flops,
             aten.linalg_solve_triangular: _triangular_flops,
             aten._embedding_bag: _weighted_sum_flops, aten._embedding_bag_forward_only: _weighted_sum_flops}
    known = KnownValues()
    attention = _MetaAttention(known)
    with torch.no_grad(), attention, known, FlopCounterMode(display=False, custom_mapping=extra) as counter:
        call(*example)
    return float(counter.get_total_flops() + attention.flops) / 2


class _MetaAttention(TorchFunctionMode):
    """Softmax attention on the meta device, which has no kernel of it: its visible pairs, and an output without values."""

    def __init__(self, known: KnownValues):
        super().__init__()
        self.known, self.flops = known, 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != "meta":
            return func(*args, **kwargs)
        return self.attend(*args, **kwargs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, **_: Any) -> Tensor:
        shown = None if attn_mask is None else self.known.value(attn_mask)
        if attn_mask is not None and shown is None:         # of values, as biases are: all pairs
            shown = torch.zeros(()).expand(attn_mask.shape)
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.flops += _attention_flops(query, key, value, is_causal=is_causal, attn_mask=shown)
        return output


def macs_thop(module: nn.Module, *example: Tensor) -> float:
    """Multiply-adds of `module(*example)` added up over its modules by thop and by `functional_macs`.

    A copy is profiled: thop leaves buffers behind, which would end up in checkpoints. A class of your own
    that computes products outside its children registers a formula `(module, inputs, output) -> MACs` in
    `functional_macs`.
    """
    from thop import profile

    profiled = copy.deepcopy(module)
    known = set(functional_macs.names())
    for part in profiled.modules():
        if type(part).__name__ in known:
            part.register_forward_hook(_adding(functional_macs.get(type(part).__name__)))
    total, _ = profile(profiled, inputs=example, verbose=False)
    return float(total)


def _adding(formula: Formula) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        counted: Any = module.total_ops                          # the buffer thop adds up, children included
        counted += formula(module, inputs, output)
    return hook


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Have torch's counter hand over tensors, not shapes: what a mask hides is in its values."""
    formula._get_raw = True                                                                # type: ignore[attr-defined]
    return formula


def _pairs(query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None) -> int:
    """Query-key pairs over all heads and sequences that are not masked."""
    *many, new = query.shape[:-1]
    seen, each = key.shape[-2], math.prod(many)
    if mask is not None:
        visible = mask if mask.dtype == torch.bool else mask > -math.inf
        return int(visible.expand(*many, new, seen).sum())
    # torch aligns a causal mask at the first key: query i sees keys 0 to i.
    one = sum(min(i + 1, seen) for i in range(new)) if is_causal else new * seen
    return each * one


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
                     *_: Any, attn_mask: Tensor | None = None, **__: Any) -> int:
    return 2 * _pairs(query, key, is_causal, attn_mask) * (query.shape[-1] + value.shape[-1])


def _biased_attention_flops(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None = None,
                            compute_log_sumexp: bool = False, dropout_p: float = 0.0, is_causal: bool = False,
                            *_: Any, **__: Any) -> int:
    return 2 * _pairs(query, key, is_causal, attn_bias) * (query.shape[-1] + value.shape[-1])


def _real_transforms(points: int, count: int) -> float:
    """2.5 n log2 n operations for each of `count` real transforms of n points (FFTW counts 5 for complex)."""
    return 2.5 * points * math.log2(points) * count


def _transform_flops(shape: Any, dims: Any, *_: Any, **__: Any) -> float:
    points = math.prod(shape[d] for d in dims)
    return _real_transforms(points, math.prod(shape) // points)


def _inverse_transform_flops(shape: Any, dims: Any, *_: Any, out_shape: Any = None, **__: Any) -> float:
    points = math.prod(out_shape[d] for d in dims)
    return _real_transforms(points, math.prod(out_shape) // points)


def _triangular_flops(matrix: Any, right: Any, *_: Any, left: bool = True, **__: Any) -> int:
    """Half of the square times every column of the right-hand side, a multiply-add each."""
    size = matrix[-1]
    return int(size * size * (math.prod(right) // size))


def _weighted_sum_flops(table: Any, indices: Any, *_: Any, **__: Any) -> int:
    """Every number of every row that is looked up, times its weight."""
    return int(2 * math.prod(indices) * table[-1])


def _half_square(length: int, window: int | None) -> int:
    """Pairs (query, key) with the key at most `window` - 1 before the query and never after it."""
    return sum(min(i + 1, window or length) for i in range(length))


def _attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = inputs[0].shape[:2]
    return float(2 * batch * module.heads * module.head_dim * _half_square(length, module.window))


def _all_pairs(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Both ways; with a window those less than it apart."""
    batch, length = inputs[0].shape[:2]
    pairs = 2 * _half_square(length, module.window) - length
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _reusing_attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Over the keys another layer published, in the narrower of the two windows."""
    batch, length = inputs[0].shape[:2]
    pairs = _half_square(length, module.published(inputs[1])[3])
    pairs = 2 * pairs - length if module.bidirectional else pairs
    return float(2 * batch * module.heads * module.head_dim * pairs)


def _memory_attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = inputs[0].shape[:2]
    memory = inputs[1][module.memory].flatten(1, -2)
    return float(2 * batch * module.heads * module.head_dim * length * memory.shape[1])


def _window_attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All pairs of all windows, places that fill up the last ones included."""
    batch, *grid = inputs[0].shape[:-1]
    places = 1
    for size in grid:
        side = min(module.window, size)
        places *= side * side * math.ceil(size / side)
    return float(2 * batch * module.heads * module.head_dim * places)


def _reduced_attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, *grid = inputs[0].shape[:-1]
    side = 1 if module.squares is None else module.squares.shape[-1]
    smaller = math.prod(math.ceil(size / side) for size in grid)
    squares = 0 if module.squares is None else module.squares.numel()
    return float(batch * smaller * (squares + 2 * module.heads * module.head_dim * math.prod(grid)))


def _neighbourhood(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Every token with its neighbours: at most `kernel` along each dimension, or all that are a whole step away."""
    keys = math.prod(min(module.kernel, math.ceil(size / module.dilation)) for size in inputs[0].shape[1:-1])
    return float(2 * module.heads * module.head_dim * keys * inputs[0].numel() / inputs[0].shape[-1])


def _halo(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """All queries of all blocks with the block and its margin, and with the vectors of offsets down and across."""
    batch, *grid = inputs[0].shape[:-1]
    queries, reach = batch, []
    for size in grid:
        side = min(module.block, size)
        queries *= math.ceil(size / side) * math.ceil(side / module.stride)
        reach.append(side + (2 * module.halo if size > module.block else 0))
    keys, values = module.key.weight.shape[0], module.value.weight.shape[0]
    positions = keys * sum(reach) if module.position == "relative" else 0
    return float(queries * ((keys + values) * math.prod(reach) + positions))


def _conv_attention(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Every token with every key of the smaller grid."""
    batch, *grid = inputs[0].shape[:-1]
    keys = math.prod(math.ceil(size / module.key.stride) for size in grid)
    return float(2 * batch * module.out.weight.shape[1] * math.prod(grid) * keys)


def _separable(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.shape[0] * output.shape[1] * module.taps.numel())


def _deformable(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """The convolution of the tokens, and the one that says where they lie."""
    places = output.numel() / output.shape[-1]
    return float(places * (module.weight.numel() + module.offset.numel()))


def _state_space(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Inside the chunks scores and what they read; between them what states are given and what they give."""
    batch, length = inputs[0].shape[:2]
    chunks, size = _chunks(length, module.chunk)
    values, keys = module.head_dim, module.state_dim
    inside, between = size * size * (keys + values), 2 * size * keys * values
    return float(batch * (_taps(module, length) + chunks * module.heads * (inside + between)))


def _delta_rule(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """A solve gives the matrix M of a chunk, and M what the chunk does to the state it starts from."""
    batch, length = inputs[0].shape[:2]
    chunks, size = _chunks(length, module.chunk)
    keys, values = module.key_dim, module.value_dim
    square = size * size
    solved = square * keys + square * size / 2 + square * keys               # K K^T, M, K^T M
    states = size * keys * (values + keys) + keys * keys * values            # what is added, erased, carried on
    outputs = size * keys * values + square * (values + keys + values)       # K S, M (V - K S), Q K^T, and its reading
    read = size * keys * values                                              # Q S
    return float(batch * (_taps(module, length) + chunks * module.heads * (solved + states + outputs + read)))


def _long_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Three transforms per filter and channel, and the network that gives the filters.

    Inputs and products are transformed for every sequence, the filter once. The network's layers are called by their
    weights, so thop does not see them.
    """
    batch, length = inputs[0].shape[:2]
    transforms = module.filters * module.width * (2 * batch + 1)
    network = sum(layer.weight.numel() for layer in (module.sine_0, module.sine_1, module.sine_2, module.response))
    taps = module.block * math.ceil(length / module.block)
    return float(batch * _taps(module, length) + taps * network + _real_transforms(2 * length, transforms) / 2)


def _short_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    batch, length = inputs[0].shape[:2]
    return float(batch * _taps(module, length))


def _depthwise_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Every tap at every token of a sequence or a grid."""
    return float(output.numel() * math.prod(module.taps.shape[1:]))


def _full_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(output.numel() * math.prod(module.weight.shape[1:]))


def _transposed_convolution(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(inputs[0].numel() * math.prod(module.weight.shape[1:]))


def _sparse_experts(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """Three matrices of each chosen expert; the router is a module of its own."""
    tokens = inputs[0].numel() // inputs[0].shape[-1]
    return float(tokens * module.top_k * 3 * module.gate[0].numel())


def _logits(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    return float(inputs[0].numel() * output.shape[-1])


def _low_rank(module: Any, inputs: tuple[Any, ...], output: Any) -> float:
    """The product of one iteration's pair."""
    return float(output.numel() * module.A.shape[1])


def _chunks(length: int, most: int) -> tuple[int, int]:
    """How many chunks of which size a sequence is cut into."""
    chunks = math.ceil(length / most)
    return chunks, math.ceil(length / chunks)


def _taps(module: Any, length: int) -> int:
    """The short convolution, depthwise."""
    return 0 if module.taps is None else length * module.taps.numel()


_FORMULAS: dict[str, Formula] = {
    "CausalAttention": _attention,
    "TokenizedAttention": _attention,
    "TableAttention": _attention,
    "BidirectionalAttention": _all_pairs,
    "ReusingAttention": _reusing_attention,
    "MemoryAttention": _memory_attention,
    "ShiftedWindowAttention": _window_attention,
    "SpatialReductionAttention": _reduced_attention,
    "DilatedNeighbourhood": _neighbourhood,
    "HaloValues": _halo,
    "ConvolutionalProjections": _conv_attention,
    "SeparableProjection": _separable,
    "DepthwiseConvolution2d": _depthwise_convolution,
    "GridFilters": _depthwise_convolution,
    "ConformerConvolution": _depthwise_convolution,
    "ConvolutionUnit": _full_convolution,
    "GroupedConvolution": _short_convolution,
    "Resample": _full_convolution,
    "OverlappingTokens": _full_convolution,
    "DeformableTokens": _deformable,
    "Upsample": _transposed_convolution,
    "SparseExperts": _sparse_experts,
    "StateSpaceDuality": _state_space,
    "GatedDeltaRule": _delta_rule,
    "LongConvolution": _long_convolution,
    "GatedShortConvolution": _short_convolution,
    "TokenLogits": _logits,
    "TiedLogits": _logits,
    "LowRank": _low_rank,
}
for _name, _formula in {**_FORMULAS, **linear_macs.FORMULAS, **attention_macs.FORMULAS, **hybrid_macs.FORMULAS,
                        **channel_macs.FORMULAS, **image_macs.FORMULAS, **written_macs.FORMULAS}.items():
    functional_macs.register(_name, _formula)
