"""Fronts, ranks, crowding and hypervolume of points in objective space.

Every function takes `values`, an array of shape (points, objectives), and `goals`, one "min" or "max" per
column; nobody flips a sign by hand. NaN means "not measured": such a row dominates nothing, belongs to no
front and adds no volume. Infinite values are ordinary numbers that compare. An empty set gives empty answers
and volume 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["constrained_ranks", "crowding", "fronts", "hypervolume", "nondominated", "ranks", "reference_point"]

Floats = NDArray[np.float64]


def nondominated(values: ArrayLike, goals: Sequence[str]) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another when it is at least as good in every objective and better in one, so of several
    equal points (ties in all objectives) all are kept. Rows with NaN are never kept. Shape (points,).
    """
    return np.equal(ranks(values, goals), 0)


def ranks(values: ArrayLike, goals: Sequence[str]) -> NDArray[np.int64]:
    """The front each point belongs to after peeling fronts off: 0 for the nondominated, -1 for rows with NaN.

    Equal points share a rank. Deb et al. 2002, section III-A. Shape (points,).
    """
    points, measured = _minimised(values, goals)
    answer = np.full(len(points), -1, dtype=np.int64)
    if measured.any():
        kept = points[measured]
        if kept.shape[1] == 1:
            answer[measured] = np.unique(kept[:, 0], return_inverse=True)[1]
        else:
            answer[measured] = moocore.pareto_rank(kept)
    return answer


def fronts(values: ArrayLike, goals: Sequence[str]) -> list[NDArray[np.int64]]:
    """Indices of the points of each front, best front first, ascending within a front; NaN rows in none of
    them."""
    rank = ranks(values, goals)
    return [np.flatnonzero(rank == level) for level in range(int(rank.max(initial=-1)) + 1)]


def constrained_ranks(values: ArrayLike, goals: Sequence[str], violations: ArrayLike) -> NDArray[np.int64]:
    """Ranks under constraint domination: the feasible before the infeasible, those by how little they
    violate.

    `violations` is 0 for a feasible point and positive otherwise, shape (points,); equal violations share a
    rank. NaN rows get -1. Deb et al. 2002, section VI.
    """
    broken = np.asarray(violations, dtype=np.float64)
    points, measured = _minimised(values, goals)
    answer = np.full(len(points), -1, dtype=np.int64)
    feasible, infeasible = measured & (broken <= 0), measured & ~(broken <= 0)
    answer[feasible] = ranks(points[feasible], ["min"] * points.shape[1])
    first = int(answer.max(initial=-1)) + 1
    answer[infeasible] = first + np.unique(broken[infeasible], return_inverse=True)[1]
    return answer


def crowding(values: ArrayLike) -> Floats:
    """Crowding distance of each point among the given ones (one front): larger is lonelier.

    The first and last point of every objective get infinity, so do all points when there are at most two. An
    objective in which all are equal adds nothing; of equal points those in the middle get 0. NaN rows get 0
    and are no neighbours to the others. Deb et al. 2002, section III-B. Shape (points,).
    """
    points = np.atleast_2d(np.asarray(values, dtype=np.float64))
    answer = np.zeros(len(points))
    kept = np.flatnonzero(~np.isnan(points).any(axis=1))
    if len(kept) <= 2:
        answer[kept] = np.inf
        return answer
    for column in points[kept].T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        answer[kept[order[[0, -1]]]] = np.inf
        if 0 < span < np.inf:
            answer[kept[order[1:-1]]] += (column[order[2:]] - column[order[:-2]]) / span
    return answer


def hypervolume(values: ArrayLike, goals: Sequence[str], reference: ArrayLike) -> float:
    """The volume dominated by the points and bounded by the reference point, in the product of the units.

    Points that are not strictly better than the reference in every objective add nothing; dominated points,
    duplicates and NaN rows add nothing; no points give 0.0. Computed by moocore (exact).
    """
    points, measured = _minimised(values, goals)
    corner, _ = _minimised(np.atleast_2d(np.asarray(reference, dtype=np.float64)), goals)
    if np.isnan(corner).any():
        raise ValueError(f"a reference point has a number for every objective: got {np.asarray(reference).tolist()}")
    inside = points[measured & (points < corner).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=corner[0])) if len(inside) else 0.0


def reference_point(values: ArrayLike, goals: Sequence[str], margin: float = 0.1) -> list[float]:
    """A reference point a little worse than the worst of some probes, objective by objective.

    The worst value is moved by `margin` of its size to the bad side (1.1 times the worst, for a positive
    objective to minimise); where the worst is 0, by `margin` itself. NaN rows are left out. Raises ValueError
    when nothing was measured.
    """
    points, measured = _minimised(values, goals)
    if not measured.any():
        raise ValueError("a reference point needs at least one probe with every objective measured: got none")
    worst = points[measured].max(axis=0)
    moved = worst + margin * np.where(worst == 0, 1.0, np.abs(worst))
    return [float(number) for number in moved * _signs(goals)]


def _signs(goals: Sequence[str]) -> Floats:
    return np.array([-1.0 if goal == "max" else 1.0 for goal in goals])


def _minimised(values: ArrayLike, goals: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """The points with every objective to be minimised, and which rows hold no NaN."""
    points = np.asarray(values, dtype=np.float64)
    points = points.reshape(0, len(goals)) if points.size == 0 else np.atleast_2d(points)
    if points.shape[1] != len(goals):
        raise ValueError(f"every column has a goal: got {points.shape[1]} columns and {len(goals)} goals")
    return points * _signs(goals), np.asarray(~np.isnan(points).any(axis=1))
