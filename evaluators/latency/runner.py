"""A list of cases measured under a list of conditions: the rows of a profile.

All of it runs on torch and the standard library alone, since a script for machines without this package holds its source.
Legend: B batch, T tokens, H and W rows and columns of a grid, D width.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..devices import check_device, device_fingerprint, identity, machine_share, on_threads, pinned
from .clock import measured
from .energy import energy_mj
from .memory import peak_bytes
from .reference import reference_for
from .spread import Measurement, quietest
from .work import DTYPES, check_conditions, placed, rotated, work_of

__all__ = ["Case", "Conditions", "measure_case", "profile_document"]

PROFILE_SCHEMA = "bodyplan.profile"
PROFILE_VERSION = 1


@dataclass(frozen=True)
class Case:
    """One operator at one width: its label, how its module is made, and whether that takes grids [B, H, W, D].

    tokenwise: without a `step`, a next token is worked on alone, as in a feed-forward layer; others then do not decode.
    """

    operator: str
    width: int
    build: Callable[[], nn.Module]
    grid: bool = False
    tokenwise: bool = False


@dataclass(frozen=True)
class Conditions:
    """What a case is measured under. budget_ms: the time for repeats after the warm-up. attempts: how often it may be
    measured until the machine is quiet."""

    batch: int = 1
    length: int = 256
    phase: str = "prefill"
    dtype: str = "float32"
    mode: str = "eager"
    threads: int = 1
    budget_ms: float = 50.0
    attempts: int = 3


def measure_case(case: Case, under: Conditions, device: torch.device) -> Measurement | None:
    """Measure; None where the case has no such phase (what looks both ways does not decode)."""
    check_under(under, device)
    dtype = DTYPES[under.dtype]
    module: Any = placed(case.build(), device, dtype, copied=True).eval()
    phase, length = under.phase, under.length
    if phase == "decode" and not hasattr(module, "step"):
        if not case.tokenwise:
            return None
        phase, length = "prefill", 1
    fill(module)
    shape = (*_sides(length), case.width) if case.grid else (length, case.width)
    inputs = rotated((under.batch, *shape), device, dtype)
    with on_threads(under.threads), pinned(under.threads), machine_share(alone=True):
        work = work_of(module, inputs, phase, under.mode, device,
                       lambda: module.init_state(under.batch, dtype=dtype, device=device))
        found = quietest(lambda: measured(work, device, under.budget_ms), under.attempts)
        return replace(found, peak_bytes=peak_bytes(work, device, under.mode),
                       energy_mj=energy_mj(work, device, found.median_ms))


def check_under(under: Conditions, device: torch.device) -> None:
    """Raise ValueError for conditions that cannot be on this device."""
    check_conditions(device, under.phase, under.mode, under.dtype, batch=under.batch, length=under.length,
                     threads=under.threads, budget_ms=under.budget_ms, attempts=under.attempts)


def fill(module: nn.Module) -> None:
    """Random matrices of a usual size; what else a module starts with stays, unless it was never written.

    Unwritten memory may hold denormal numbers, which take a CPU many times as long.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() > 1:
                numbers = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                parameter.copy_(numbers)
            else:
                size = parameter.abs()
                usual = torch.isfinite(parameter) & (size < 1e3) & (size > 1e-30)
                parameter.copy_(torch.where(usual, parameter, torch.zeros_like(parameter)))


def profile_document(cases: Sequence[Case], conditions: Iterable[Conditions], device: str, command: str = "",
                     told: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The JSON of a profile: every case under every condition, the machine before and its load after.

    A case that runs out of memory, or cannot run under a condition, is a row of "failures" with its reason.

    Raises:
        ValueError: no cases or conditions, an absent device, or a condition that cannot be there.
    """
    target, conditions = check_device(device), list(conditions)
    if not cases or not conditions:
        raise ValueError(f"a profile measures something: got {len(cases)} operators and {len(conditions)} conditions")
    for under in conditions:
        check_under(under, target)
    fingerprint = device_fingerprint(device)
    started = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - the script may meet an older Python
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for under in conditions:
        for case in cases:
            named = {"operator": case.operator, "width": case.width, **conditions_row(under), "session": 0}
            try:
                found = measure_case(case, under, target)
            except (RuntimeError, ValueError) as error:            # no memory, no kernel for this type, no such length
                failures.append({**named, "reason": str(error).partition("\n")[0]})
                continue
            if found is not None:
                rows.append({**named, **numbers(found)})
                if told is not None:
                    told(f"{case.operator} width {case.width}, {under.length} tokens, {under.phase}: "
                         f"{found.median_ms:.4g} ms, {found.note}")
    session = session_row(started.isoformat(timespec="seconds"), command, conditions[0], fingerprint)
    return {"schema": PROFILE_SCHEMA, "schema_version": PROFILE_VERSION, "device": identity(fingerprint),
            "sessions": [session], "operators": rows, "models": [], "failures": failures}


def session_row(started: str, command: str, under: Conditions, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What a profile says of one measuring, at its end. reference_ms: at which speed its times are, where it was watched."""
    found = {"started": started, "command": command, "budget_ms": under.budget_ms, "fingerprint": fingerprint,
             "load_after": device_fingerprint("cpu").get("load")}
    with on_threads(under.threads):
        reference = reference_for(torch.device(fingerprint["kind"]))
    return found if reference is None else {**found, "reference_ms": reference.usual_ms}


def conditions_row(under: Conditions) -> dict[str, Any]:
    """Conditions as a row has them: how long and how often was measured is the session's."""
    return {key: value for key, value in asdict(under).items() if key not in ("budget_ms", "attempts")}


def numbers(found: Measurement) -> dict[str, Any]:
    """A measurement as JSON, six digits of each number; what the machine could not tell is left out."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in asdict(found).items()
            if value is not None and (key != "noisy" or value)}


def _sides(tokens: int) -> tuple[int, int]:
    """The rows and columns of a grid of so many tokens, as square as they divide."""
    rows = next(n for n in range(int(tokens ** 0.5), 0, -1) if tokens % n == 0)
    return rows, tokens // rows
