"""Every operator measured alone on a device: what a person looks at before choosing what to put into a
space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...space.graph import operator_label
from ...space.operator import Operator
from ...space.operators.attention import Attention
from ...space.operators.gated_delta import GatedDeltaNet
from ...space.operators.hyena import Hyena
from ...space.operators.mamba2 import Mamba2
from ...space.operators.mlp import MLP
from ...space.operators.short_conv import ShortConv
from ...space.operators.swiglu import SwiGLU
from ..devices import check_device, device_fingerprint
from ..objectives import Estimate
from .runner import Case, Conditions, measure_case

if TYPE_CHECKING:
    from ...space.space import Space

__all__ = ["EXAMPLES", "case_of", "cases_of", "profile_lines", "profile_operator", "table_lines"]

EXAMPLES: tuple[Operator, ...] = (
    Attention(heads=4, kv_heads=2), Attention(heads=4, kv_heads=2, window=64), GatedDeltaNet(heads=2),
    Mamba2(state=32, head_dim=32), ShortConv(kernel=4), Hyena(), SwiGLU(ratio=2), MLP(ratio=4))


def case_of(config: Operator, width: int) -> Case:
    """The operator as a case to measure.

    Raises:
        ValueError: it does not fit the width, or is no mixer, channel mixer or norm that works on one sequence alone.
    """
    if (wrong := _unfit(config)) is not None:
        raise ValueError(f"mixers, channel mixers and norms are profiled alone: got {operator_label(config)}, {wrong}; "
                         "measure a whole model with it instead")
    config.check(width, f"profile, {type(config).__name__}")
    return Case(operator_label(config), width, partial(config.build, width), bool(config.spatial),
                bool(config.causal and config.streaming))


def _unfit(config: Operator) -> str | None:
    """Why an operator cannot be measured alone."""
    if config.kind not in ("mixer", "channel", "norm"):
        return f"of kind {config.kind}"
    if config.cross or getattr(config, "reads_condition", False):
        return f"which reads a {'second sequence' if config.cross else 'condition'}"
    return None


def cases_of(space: Space) -> list[tuple[Operator, int]]:
    """Every operator a space may build that can be measured alone, with each width that may reach it."""
    found = {(config, width): None for site in space.sites() for config in site.operators if _unfit(config) is None
             for width in sorted(site.widths)}
    return sorted(found, key=lambda pair: pair[1])


def profile_operator(config: Operator, width: int, length: int, device: str) -> tuple[Estimate, Estimate | None]:
    """Milliseconds of a prefill of `length` tokens, and of one more token (None where the operator does not
    decode).

    Batch 1, fp32, random weights; the interval is the bootstrap 95 % interval of the median.
    """
    target, case = check_device(device), case_of(config, width)
    found = (measure_case(case, Conditions(length=length, phase=phase), target) for phase in ("prefill", "decode"))
    prefill, decode = (None if one is None else Estimate(one.median_ms, one.low_ms, one.high_ms, one.note) for one in found)
    assert prefill is not None
    return prefill, decode


def profile_lines(device: str, width: int = 128, length: int = 256) -> list[str]:
    """The table of the examples on a device, as text. Raises ValueError for a device that is not there."""
    check_device(device)
    rows = []
    for config in EXAMPLES:
        found = profile_operator(config, width, length, device)
        rows += [_row(operator_label(config), width, length, phase, one)
                 for phase, one in zip(("prefill", "decode"), found, strict=True) if one is not None]
    return [*table_lines(device_fingerprint(device), rows)]


def table_lines(fingerprint: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows of a profile as a table: an operator a line, a block for each width, batch and length."""
    yield from (f"{key}: {value}" for key, value in fingerprint.items())
    blocks: dict[tuple[Any, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("width", "length", "batch", "dtype", "mode", "threads"))
        blocks.setdefault(key, {}).setdefault(row["operator"], {})[row["phase"]] = _text(row)
    phases = [phase for phase in ("prefill", "decode", "train") if any(row["phase"] == phase for row in rows)]
    heads = {"prefill": "prefill", "decode": "one more token", "train": "there and back"}
    for (width, length, batch, dtype, mode, threads), found in blocks.items():
        yield from ("", f"width {width}, {length} tokens, batch {batch}, {dtype}, {mode}, threads: {threads}; milliseconds, "
                        "median [95 % interval]", "")
        yield f"{'operator':<44}" + "".join(f"{heads[phase]:>28}" for phase in phases)
        for label, texts in found.items():
            yield f"{label:<44}" + "".join(f"{texts.get(phase, '-'):>28}" for phase in phases)
    noisy = [row for row in rows if row.get("noisy")]
    if noisy:
        yield from ("", f"! the machine was not quiet in {len(noisy)} of {len(rows)} measurements, marked !: the first, "
                        f"{noisy[0]['operator']}: {noisy[0]['noisy']}. Measure again with less beside it.")


def _row(label: str, width: int, length: int, phase: str, found: Estimate) -> dict[str, Any]:
    noisy = found.note.partition("noisy: ")[2]
    return {"operator": label, "width": width, "length": length, "batch": 1, "dtype": "float32", "mode": "eager",
            "threads": 1, "phase": phase, "median_ms": found.value, "low_ms": found.low, "high_ms": found.high,
            "noisy": noisy}


def _text(row: Mapping[str, Any]) -> str:
    return f"{'! ' if row.get('noisy') else ''}{row['median_ms']:.3f} [{row['low_ms']:.3f}, {row['high_ms']:.3f}]"
