"""Cutting a step's work: which examples of a batch go through which subnet, in which order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .distributed import Share
from .strategies import Visit
from .tasks.base import Batch

__all__ = ["Piece", "Rows", "cut", "make_piece", "num_targets", "part_of", "rows_of"]

Rows = tuple[int, int]      # examples from the first to before the second


@dataclass(frozen=True)
class Piece:
    """Some of a visit's examples, for one forward and backward pass."""

    visit: Visit
    number: int                 # of the visit in its step
    module: nn.Module
    batch: Batch
    rows: Rows                  # in the batch of the step
    share: float                # of the visit's examples
    target_share: float         # of the visit's targets that count


def make_piece(visit: Visit, share: Share, micro: tuple[int, int], module: nn.Module, batch: Batch) -> Piece | None:
    """The examples of a share that belong to micro-batch number `micro[0]` of `micro[1]`; None where it has none."""
    all_rows = rows_of(visit, batch)
    rows = part_of(part_of(all_rows, (share.part, share.parts)), micro)
    if rows[0] == rows[1]:
        return None
    piece, whole = cut(batch, rows), cut(batch, all_rows)
    examples = (rows[1] - rows[0]) / (all_rows[1] - all_rows[0])
    return Piece(visit, share.visit, module, piece, rows, examples, num_targets(piece) / max(1, num_targets(whole)))


def rows_of(visit: Visit, batch: Batch) -> Rows:
    """The examples a visit runs on. Raises ValueError when it has none."""
    rows = part_of((0, len(batch.targets)), visit.part or (0, 1))
    if rows[0] == rows[1]:
        assert visit.part is not None
        raise ValueError(f"every part of a batch needs an example: got a batch of {len(batch.targets)} for "
                         f"{visit.part[1]} subnets; use a larger batch or fewer subnets per step")
    return rows


def part_of(rows: Rows, part: tuple[int, int]) -> Rows:
    """The `part[0]`-th of `part[1]` nearly equal stretches of `rows`."""
    (start, stop), (number, parts) = rows, part
    length = stop - start
    return start + length * number // parts, start + length * (number + 1) // parts


def cut(batch: Batch, rows: Rows) -> Batch:
    """Some examples of a batch."""
    return Batch(batch.inputs[slice(*rows)], batch.targets[slice(*rows)])


def num_targets(batch: Batch) -> int:
    """Predictions that count: class targets below zero are left out of losses."""
    if batch.targets.is_floating_point():
        return batch.targets.numel()
    return int((batch.targets >= 0).sum())
