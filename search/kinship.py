"""Whose weights a candidate starts from, where candidates inherit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .resume import Ledger, Proposal

if TYPE_CHECKING:
    from ..space.genome import Genome
    from ..space.space import Space

__all__ = ["inheriting", "nearest"]


def nearest(space: Space, genome: Genome, ledger: Ledger) -> int | None:
    """The trial nearest to a genome among those that the strategy was told of and that have a result; None without any.

    Of equals the earliest. Nothing that is still running counts, so that the answer follows from the journal.
    """
    told = (p for index, p in enumerate(ledger.proposals) if p.new and index not in ledger.untold)
    known = [p for p in told if ledger.results[p.number]["state"] == "complete"]
    return min(known, key=lambda p: (space.distance(p.genome, genome), p.number)).number if known else None


def inheriting(folder: Path | None, proposal: Proposal, ledger: Ledger) -> Mapping[str, Any]:
    """The part of a job's fidelity that says whose weights it starts from; empty for a candidate without a parent."""
    if folder is None or proposal.parent is None:
        return {}
    parent = next(p for p in ledger.proposals if p.number == proposal.parent)
    return {"parent": {"number": parent.number, "genome": parent.genome.to_json(),
                       "weights": str(folder / f"{parent.hash}.safetensors")}}
