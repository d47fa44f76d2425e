"""Making a profile: operators at several widths and lengths, or whole models of a space."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ...space.operator import Operator
from ..devices import check_device, device_fingerprint, identity
from .operators import EXAMPLES, case_of
from .probe import LatencyProbe
from .profile import Profile
from .runner import Conditions, check_under, conditions_row, numbers, profile_document, session_row

if TYPE_CHECKING:
    from ...space.architecture import Architecture

__all__ = ["conditions_of", "profile_models", "profile_operators"]

Told = Callable[[str], None]


def conditions_of(lengths: Iterable[int] = (256,), batches: Iterable[int] = (1,),
                  phases: Iterable[str] = ("prefill", "decode"), **fixed: Any) -> list[Conditions]:
    """Every length with every batch and phase; dtype, mode, threads and budget_ms are the same for all."""
    return [Conditions(batch=batch, length=length, phase=phase, **fixed)
            for length, batch, phase in itertools.product(lengths, batches, phases)]


def profile_operators(device: str = "cpu", operators: Sequence[Operator] = EXAMPLES, widths: Iterable[int] = (128,),
                      conditions: Sequence[Conditions] | None = None, command: str = "", told: Told | None = None,
                      pairs: Sequence[tuple[Operator, int]] | None = None) -> Profile:
    """Measure every operator at every width under every condition (default: prefill and decode at 256 tokens).

    pairs: operators with a width each instead, such as all of a space (`cases_of`).

    told: is called with a line for each number. Operators that look both ways have no row of a decode.

    Raises:
        ValueError: an absent device, an operator that does not fit a width or cannot be measured alone, or a condition that
            cannot be: all before anything is measured.
    """
    target, under = check_device(device), list(conditions if conditions is not None else conditions_of())
    for one in under:
        check_under(one, target)
    asked = [(config, width) for width in widths for config in operators] if pairs is None else pairs
    cases = [case_of(config, width) for config, width in asked]
    return Profile.from_json(profile_document(cases, under, device, command, told))


def profile_models(architectures: Iterable[Architecture], device: str = "cpu", under: Conditions | None = None,
                   command: str = "", told: Told | None = None) -> Profile:
    """Measure whole models, untrained, each under one condition (default: a prefill of 256 tokens).

    A row holds the architecture's hash and genome, and under "features" its parameters, multiply-adds and state.
    """
    under = under or Conditions()
    check_under(under, check_device(device))
    conditions = conditions_row(under)
    probe, fingerprint = LatencyProbe(device, budget_ms=under.budget_ms, **conditions), device_fingerprint(device)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    for architecture in architectures:
        model, cost = architecture.build().eval(), architecture.cost(under.length)
        found = probe.measured(architecture, model, under.attempts, resources=True)
        features = {name: getattr(cost, name) for name in ("parameters", "macs", "decode_macs", "state_bytes")}
        rows.append({"hash": architecture.hash, "genome": architecture.genome.to_json(), "features": features,
                     **conditions, "session": 0, **numbers(found)})
        if told is not None:
            told(f"{architecture.hash[:12]}: {found.median_ms:.4g} ms, {found.note}")
    return Profile(identity(fingerprint), [session_row(started, command, under, fingerprint)], [], rows)
