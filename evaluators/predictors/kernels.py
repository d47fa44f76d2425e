"""What makes two samples alike: covariance terms that a Gaussian process adds up.

Each term reads its part of a `Table` once (`read`) and gives a covariance for a vector of parameters, all of them natural
logarithms with a normal prior, so that a few samples are enough. Letters: N and M samples, D numbers, P positions, V
operator names, K parameters.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .table import Floats, Table, padded
from .typed_graph import TypedGraph, joined, refined

__all__ = ["Graphs", "Numbers", "Positions", "Sessions", "Term"]

Prior = list[tuple[float, float]]


class Term(Protocol):
    """`fit` sees the training table and returns the parameters' priors, (mean, deviation) each; then `read` any table."""

    def fit(self, table: Table) -> Prior: ...

    def read(self, table: Table) -> Any: ...

    def covariance(self, parameters: Tensor, left: Any, right: Any) -> Tensor: ...


class Numbers:
    """A linear trend plus a smooth rest with its own length scale for every column.

    A positive column that spans more than a factor of 1.5 is there as its logarithm as well. Columns that do not vary are
    left out. Columns that only count or switch have no use for that, and get none.
    """

    def fit(self, table: Table) -> Prior:
        low = table.values.min(axis=0)
        self.logs = (low > 0) & (table.values.max(axis=0) > 1.5 * np.maximum(low, 1e-300))
        columns = self._columns(table)
        self.middle, spread = columns.mean(axis=0), columns.std(axis=0)
        self.kept = spread > 1e-9 * (1 + np.abs(self.middle))
        self.spread = spread[self.kept]
        self.count = int(self.kept.sum())
        long = 0.5 * math.log(max(self.count, 1)) + 0.7
        return [(long, 1.0)] * self.count + [(-0.7, 1.0), (-1.0, 1.0)]

    def _columns(self, table: Table) -> Floats:
        found: Floats = np.concatenate([table.values, np.log(np.maximum(table.values[:, self.logs], 1e-300))], axis=1)
        return found

    def read(self, table: Table) -> Tensor:
        columns = (self._columns(table) - self.middle)[:, self.kept] / self.spread
        return torch.from_numpy(np.clip(columns, -10.0, 10.0))

    def covariance(self, parameters: Tensor, left: Tensor, right: Tensor) -> Tensor:
        scales = parameters[:self.count].exp()
        a_ND, b_MD = left / scales, right / scales
        distance_NM = ((a_ND * a_ND).sum(1)[:, None] + (b_MD * b_MD).sum(1) - 2 * a_ND @ b_MD.T).clamp_min(0)
        smooth, trend = (2 * parameters[self.count:]).exp()
        found: Tensor = smooth * torch.exp(-0.5 * distance_NM) + trend * (left @ right.T) / max(self.count, 1) ** 0.5
        return found


class Positions:
    """A sum over positions of what the operator there costs: additive.

    The cost of an operator at a position is a part that it has everywhere, one that it shares with the positions nearby, and
    one of its own. So positions that were never seen with an operator take what the operator costs elsewhere.
    """

    def fit(self, table: Table) -> Prior:
        assert table.operators is not None
        self.names = sorted(set(table.operators.ravel()) - {""})
        self.length = table.operators.shape[1]
        place = torch.arange(self.length, dtype=torch.float64)
        self.apart_PP = (place[:, None] - place) ** 2
        return [(-1.0, 1.5), (-1.0, 1.5), (-1.5, 1.5), (math.log(4.0), 1.0)]

    def read(self, table: Table) -> Tensor:
        """One-hot float64[N, P, V]. Operators never seen are nothing; positions beyond the last are added to the last."""
        assert table.operators is not None
        operators = padded(table.operators, max(self.length, table.operators.shape[1]))
        one_hot = np.stack([operators == name for name in self.names], axis=2).astype(np.float64)
        one_hot[:, self.length - 1] += one_hot[:, self.length:].sum(axis=1)
        return torch.from_numpy(one_hot[:, :self.length])

    def covariance(self, parameters: Tensor, left: Tensor, right: Tensor) -> Tensor:
        everywhere, near, own = (2 * parameters[:3]).exp()
        smooth_PP = torch.exp(-0.5 * self.apart_PP / (2 * parameters[3]).exp())
        mixing_PP = everywhere + near * smooth_PP + own * torch.eye(self.length, dtype=torch.float64)
        mixed = torch.einsum("pq,npv->nqv", mixing_PP, left)
        found: Tensor = mixed.flatten(1) @ right.flatten(1).T / self.length
        return found


class Sessions:
    """What the machine was like when a sample was measured: close in the order of measuring, close in this."""

    def fit(self, table: Table) -> Prior:
        assert table.order is not None
        self.first, self.span = float(table.order.min()), float(np.ptp(table.order)) or 1.0
        return [(-1.0, 1.0), (math.log(0.1), 1.0)]

    def read(self, table: Table) -> Tensor | None:
        return None if table.order is None else torch.from_numpy((table.order - self.first) / self.span)

    def covariance(self, parameters: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return (2 * parameters[0]).exp() * torch.exp(-(left[:, None] - right).abs() / parameters[1].exp())


class Graphs:
    """How many nodes of which kind: types, types behind types, then with all neighbours' types, `rounds` times, and sizes.

    A Weisfeiler-Lehman kernel on counts, without normalising: latency adds up over nodes. With 100 measured networks this
    was chosen over a graph network, which needs more to learn the same counts.
    """

    def __init__(self, rounds: int = 1):
        self.rounds = rounds

    def fit(self, table: Table) -> Prior:
        assert table.graphs is not None
        kinds = [self._kinds(graph) for graph in table.graphs]
        self.places = [{name: i for i, name in enumerate(sorted({n for found in kinds for n in found[level]}))}
                       for level in range(self.rounds + 2)]
        raw = self._counts(table)
        self.middle = [counts.mean(axis=0) for counts in raw]
        self.spread = [max(float(np.sqrt(counts.var(axis=0).sum())), 1e-12) for counts in raw]
        return [(0.0, 1.0), (-0.5, 1.0), *[(-1.5, 1.0)] * self.rounds, (-1.0, 1.0)]

    def _kinds(self, graph: TypedGraph) -> list[list[str]]:
        types, *rest = refined(graph, self.rounds)
        return [types, joined(graph), *rest]

    def _counts(self, table: Table) -> list[Floats]:
        assert table.graphs is not None
        counts = [np.zeros((len(table), len(places))) for places in self.places]
        sizes = np.zeros((len(table), len(self.places[0])))
        for row, graph in enumerate(table.graphs):
            for places, into, names in zip(self.places, counts, self._kinds(graph), strict=True):
                for name in names:
                    if name in places:
                        into[row, places[name]] += 1
            for name, size in zip(graph.types, graph.sizes, strict=False):
                if name in self.places[0]:
                    sizes[row, self.places[0][name]] += size
        return [*counts, sizes]

    def read(self, table: Table) -> list[Tensor]:
        return [torch.from_numpy((counts - middle) / spread) for counts, middle, spread
                in zip(self._counts(table), self.middle, self.spread, strict=True)]

    def covariance(self, parameters: Tensor, left: list[Tensor], right: list[Tensor]) -> Tensor:
        shares = (2 * parameters).exp()
        return torch.stack([share * (a @ b.T) for share, a, b in zip(shares, left, right, strict=True)]).sum(0)
