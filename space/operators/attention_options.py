"""What options of attention add to its parameters, multiply-adds and checks.

`config` is an `Attention`. The modules are in `scored_attention` and `relative_position`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...registry import unknown
from ..axes import Axis, Dim, Init, Param, axis, param
from .cache_policies import CachePolicy
from .checks import is_whole, require_whole
from .relative_position import (
    BucketBias,
    DistanceScalars,
    InterpolatedBias,
    OffsetFactors,
    OffsetScalars,
    OffsetVectors,
    SinusoidTerms,
    SlopeBias,
)
from .short_conv import tap_init
from .subsampled_attention import Subsample

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GATES", "POSITIONS", "check_options", "fixed_axes", "option_axes", "option_decode_macs", "option_macs",
           "position_module"]

POSITIONS = ("rotary", "alibi", "t5", "fire", "m1", "m2", "m3", "m4", "transformer_xl")
GATES = ("head", "channel")
WEIGHTS = ("softmax", "relu_norm")
SMALL = Init("normal", gain=0.02)


def check_options(config: Any, where: str) -> None:
    """Raise ValueError for options that cannot be built, or do not go together."""
    if config.position is not None and config.position not in POSITIONS:
        raise ValueError(f"{unknown('position', config.position, POSITIONS)} (at {where})")
    if config.gate is not None and config.gate not in GATES:
        raise ValueError(f"{unknown('gate', config.gate, GATES)} (at {where})")
    if config.weights not in WEIGHTS:
        raise ValueError(f"{unknown('weights', config.weights, WEIGHTS)} (at {where})")
    require_whole("reach", config.reach, where, low=2)
    require_whole("persistent", config.persistent, where, low=0)
    _check_position(config, where)
    _check_conv(config, where)
    _check_weights(config, where)
    _check_cache(config, where)
    _check_subsample(config, where)
    if config.separate and (config.writes_scores or config.reads_shared or config.cache or config.subsample):
        raise ValueError(f"separate inputs go with plain softmax attention and its own keys and values at {where}: got "
                         f"{config}; leave the other options out")
    if config.symmetric and (config.kv_heads or config.heads) != config.heads:
        raise ValueError(f"symmetric scores need a key of its own for every query at {where}: got {config.kv_heads} kv_heads "
                         f"for {config.heads} heads; leave kv_heads out")
    if config.reuse_kv and config.writes_scores:
        raise ValueError(f"reuse_kv goes with plain softmax scores at {where}: got {config}; leave the other options out")


def _check_position(config: Any, where: str) -> None:
    if config.position == "t5":
        least = 4 if config.bidirectional else 2
        require_whole("buckets", config.buckets, where, low=least)
        each = config.buckets // 2 if config.bidirectional else config.buckets
        if config.buckets % least or config.reach <= each:
            raise ValueError(f"buckets must be a multiple of {least} and fewer than reach at {where}: got {config.buckets} "
                             f"and {config.reach}; use 32 and 128")
    if config.position == "fire":
        require_whole("position_hidden", config.position_hidden, where)
        if config.bidirectional:
            raise ValueError(f"fire measures distances by the position of the query, so keys must not be after it at "
                             f"{where}: got bidirectional=True; use position='t5'")


def _check_conv(config: Any, where: str) -> None:
    if config.qkv_conv is None:
        return
    require_whole("qkv_conv", config.qkv_conv, where, instead="use None for no convolution")
    if config.bidirectional and config.qkv_conv % 2 == 0:
        raise ValueError(f"qkv_conv must be odd where tokens look both ways at {where}: got {config.qkv_conv}; "
                         f"use {config.qkv_conv - 1} or {config.qkv_conv + 1}")


def _check_weights(config: Any, where: str) -> None:
    if not (config.clip_gamma <= 0 and config.clip_zeta >= 1):
        raise ValueError(f"a clipped softmax is stretched beyond 0 and 1 at {where}: got clip_gamma={config.clip_gamma}, "
                         f"clip_zeta={config.clip_zeta}; use gamma at most 0 and zeta at least 1")
    if config.shaped is not None and not (isinstance(config.shaped, (int, float)) and config.shaped > 0):
        raise ValueError(f"shaped is tau0, a positive number, at {where}: got {config.shaped!r}; use 1.0, or None for "
                         "plain attention")
    if config.weights == "relu_norm" and (config.sink or config.clip_gamma < 0 or config.clip_zeta > 1):
        raise ValueError(f"sink and clipping are of a softmax at {where}: got weights='relu_norm'; leave them out")


def _check_cache(config: Any, where: str) -> None:
    if config.cache is None:
        return
    if not isinstance(config.cache, CachePolicy):
        raise TypeError(f"cache is a policy at {where}: got {config.cache!r}; use Keyformer(budget=64), or None to keep all")
    config.cache.check(f"{where}.cache")
    if config.bidirectional or config.window is not None or config.reuse_kv or config.value_residual == "single" or (
            config.writes_scores):
        raise ValueError(f"cache goes with causal attention and plain softmax scores over keys of its own, without a window, "
                         f"at {where}: got {config}; leave the other options out")


def _check_subsample(config: Any, where: str) -> None:
    if config.subsample is None:
        return
    if not isinstance(config.subsample, Subsample):
        raise TypeError(f"subsample is a Subsample at {where}: got {config.subsample!r}; use Subsample(keep=0.25), or None")
    config.subsample.check(f"{where}.subsample")
    if config.window is not None or config.cache is not None or config.reuse_kv or config.value_residual == "single" or (
            config.writes_scores):
        raise ValueError(f"subsample goes with plain softmax scores over keys and values of its own, without a window or a "
                         f"cache policy, at {where}: got {config}; leave the other options out")


def is_stretched(config: Any) -> bool:
    """Whether the softmax is clipped."""
    return bool(config.clip_gamma < 0 or config.clip_zeta > 1)


# -- parameters -----------------------------------------------------------------------------------------------------------

def option_axes(config: Any, width: int) -> dict[str, Param]:
    """Parameters of everything but projections, norms of queries and keys, and mixed values."""
    kv_heads, group, head_dim = config.sizes(width)
    g, p = axis("kv_heads", kv_heads), axis("head_dim", head_dim)
    head, heads = axis("half", 2) * axis("pairs", head_dim // 2), g * axis("group", group)
    declared = _conv_axes(config, g, head, heads) | _position_axes(config, width)
    if config.persistent:
        n = axis("persistent", config.persistent)
        declared |= {"persistent_key": param(g, n, head, init=Init("normal", gain=1.0)),
                     "persistent_value": param(g, n, p, init=Init("normal", gain=1.0))}
    if config.temperature:
        declared["log_temperature"] = param(heads, init="zeros")
    if config.sink:
        declared["sink"] = param(heads, init="zeros")
    if config.weights == "relu_norm":
        declared |= {"norm.weight": param(heads * p, share="own", init="ones"),
                     "norm.bias": param(heads * p, share="own", init="zeros")}
    if config.gate is not None:
        gated, name = heads if config.gate == "head" else heads * p, f"{config.gate}_gate"
        declared |= {f"{name}.weight": param(gated, axis("width", width)), f"{name}.bias": param(gated, init="zeros")}
    return declared


def _conv_axes(config: Any, g: Axis, head: Dim, heads: Dim) -> dict[str, Param]:
    if config.qkv_conv is None:
        return {}
    taps = axis("taps", config.qkv_conv, "centre" if config.bidirectional else "trailing")
    p = axis("head_dim", head.size)
    first = tap_init(config.qkv_conv)
    declared = {"key_taps": param(g * head, taps, init=first), "value_taps": param(g * p, taps, init=first)}
    return declared if config.symmetric else declared | {"query_taps": param(heads * head, taps, init=first)}


def _position_axes(config: Any, width: int) -> dict[str, Param]:
    kv_heads, group, head_dim = config.sizes(width)
    g, head = axis("kv_heads", kv_heads), axis("half", 2) * axis("pairs", head_dim // 2)
    heads = g * axis("group", group)
    kind = config.position
    if kind == "t5":
        return {"position.bucket_bias": param(axis("buckets", config.buckets), heads, share="own", init=SMALL)}
    if kind == "fire":
        f, one = axis("position_hidden", config.position_hidden), axis("one", 1)
        each = Init("last")                                   # pairs go through them, not tokens
        return {"position.curve": param(one, share="own", init=Init("constant", low=0.1)),
                "position.threshold": param(one, share="own", init="ones"),
                "position.hidden.weight": param(f, one, init=each), "position.hidden.bias": param(f, init=SMALL),
                "position.out.weight": param(heads, f, init=each), "position.out.bias": param(heads, init="zeros")}
    if kind == "transformer_xl":
        return {"position.distance.weight": param(g * head, axis("waves", width), init=Init("last")),
                "position.key_bias": param(heads, head, init="zeros"),
                "position.distance_bias": param(heads, head, init="zeros")}
    signed = axis("distances", _distances(config), "centre" if config.bidirectional else "leading")
    tables = {"m1": ("by_distance", param(axis("distances", config.reach), init="ones")),
              "m2": ("by_offset", param(signed, init="ones")), "m3": ("factors", param(signed, head, init="ones")),
              "m4": ("vectors", param(signed, head, init=SMALL))}
    return {f"position.{tables[kind][0]}": tables[kind][1]} if kind in tables else {}


def _distances(config: Any) -> int:
    """How many signed distances have entries of their own."""
    return int(2 * config.reach - 1 if config.bidirectional else config.reach)


def fixed_axes(config: Any) -> dict[str, str]:
    """Axes whose entries have a meaning of their own."""
    found: dict[str, str] = {}
    if config.position == "alibi":
        found |= {"kv_heads": "a slope belongs to a head", "group": "a slope belongs to a head"}
    if config.position == "t5":
        found["buckets"] = "a bucket is a range of distances"
    if config.position == "transformer_xl":
        found["waves"] = "a wave is a frequency"
    if config.cache is not None and config.cache.score == "noisy":
        found |= {"kv_heads": "a head has its own noise", "group": "a head has its own noise"}
    if config.position in ("m1", "m2", "m3", "m4"):
        found["distances"] = "an entry is a distance"
    return found


# -- multiply-adds --------------------------------------------------------------------------------------------------------

def option_macs(config: Any, width: int, length: int, pairs: int) -> float:
    """Beside projections, scores and values over the visible `pairs` of a whole sequence."""
    kv_heads, _, head_dim = config.sizes(width)
    inner, keys = config.heads * head_dim, kv_heads * head_dim
    total = length * _token_macs(config, width)
    if config.chooses:
        total += pairs * inner                               # scores once more, for what is kept
    if config.position == "fire":
        total += pairs * _fire_macs(config)
    if config.position == "transformer_xl":
        far = 2 * length - 1 if config.bidirectional else length
        total += far * (width * keys + length * inner) + length * inner
    if config.position == "m3":
        total += pairs * inner
    if config.position == "m4":
        total += length * (inner + keys) * _distances(config)
    if config.shaped is not None and not (config.bidirectional and config.window is None):
        total += pairs * keys                                # where all see all, the mean is a sum
    return float(total)


def option_decode_macs(config: Any, width: int, seen: int) -> float:
    """Beside projections, scores and values of one token that sees `seen`."""
    kv_heads, _, head_dim = config.sizes(width)
    inner, keys = config.heads * head_dim, kv_heads * head_dim
    total = _token_macs(config, width)
    if config.chooses:
        total += seen * inner
    if config.position == "fire":
        total += seen * _fire_macs(config)
    if config.position == "transformer_xl":
        total += seen * (width * keys + 2 * inner)
    if config.position == "m3":
        total += seen * inner
    if config.position == "m4":
        total += inner * _distances(config) + seen * keys
    return float(total)


def _token_macs(config: Any, width: int) -> int:
    kv_heads, _, head_dim = config.sizes(width)
    channels = (2 * kv_heads + (0 if config.symmetric else config.heads)) * head_dim
    taps = channels * config.qkv_conv if is_whole(config.qkv_conv) else 0
    return int(taps + 2 * config.heads * head_dim * config.persistent)


def _fire_macs(config: Any) -> int:
    return int(config.position_hidden * (1 + config.heads))


# -- the module -----------------------------------------------------------------------------------------------------------

def position_module(config: Any, width: int) -> nn.Module | None:
    """What adds to scores; None for rotary positions and for none."""
    kv_heads, _, head_dim = config.sizes(width)
    both, kind = bool(config.bidirectional), config.position
    if kind == "alibi":
        return SlopeBias()
    if kind == "t5":
        return BucketBias(config.heads, config.buckets, config.reach, both)
    if kind == "fire":
        return InterpolatedBias(config.heads, config.position_hidden, config.reach)
    if kind == "transformer_xl":
        return SinusoidTerms(width, config.heads, kv_heads, head_dim, both)
    if kind == "m1":
        return DistanceScalars(config.reach)
    if kind == "m2":
        return OffsetScalars(config.reach, both)
    if kind == "m3":
        return OffsetFactors(head_dim, config.reach, both)
    return OffsetVectors(head_dim, config.reach, both) if kind == "m4" else None
