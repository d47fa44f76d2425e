"""Sums of amounts times prices: what each operator's runs, products and bytes cost, found from whole samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .additive import Additive
from .table import Floats, Table

__all__ = ["Prices", "priced"]

STRENGTHS = (1.0, 0.1, 0.01)    # of the pull to zero that are tried: 1 is a sample with the usual amount that costs nothing
COMMON = 0.25       # of that pull on what is common to a sort, so that little said of each leaves them alike
LEAST = 1e-3        # of the middle value: no total is below


class Prices:
    """A value as a constant and a price for every amount, none below zero, with the least squares of relative errors.

    No negative prices: with more amounts than a few samples can tell apart, this alone keeps sums sensible (Solving Least
    Squares Problems, Lawson and Hanson, 1974, chapter 23). An amount never seen costs what the others of its sort do in
    common: "macs in Attention" is an amount of "macs" too. strength: of a pull to zero.
    """

    def __init__(self, strength: float = STRENGTHS[0]):
        self.strength = strength

    def fit(self, amounts: Sequence[Mapping[str, float]], values: Floats) -> Prices:
        from scipy.optimize import nnls

        pooled = [_pooled(each) for each in amounts]
        self.names = sorted({name for each in pooled for name in each})
        x = self._columns(pooled) / values[:, None]
        self.scale = np.sqrt((x ** 2).mean(axis=0))
        self.scale[self.scale == 0] = 1.0
        pull = self.strength * np.diag([1.0, *(1.0 if " in " in name else COMMON for name in self.names)])
        found, _ = nnls(np.concatenate([x / self.scale, pull]), np.r_[np.ones(len(x)), np.zeros(len(pull))])
        self.found: Floats = found / self.scale
        self.least = LEAST * float(np.median(values))
        return self

    def _columns(self, pooled: list[dict[str, float]]) -> Floats:
        return np.array([[1.0, *(each.get(name, 0.0) for name in self.names)] for each in pooled])

    def total(self, amounts: Sequence[Mapping[str, float]]) -> Floats:
        found: Floats = np.maximum(self._columns([_pooled(each) for each in amounts]) @ self.found, self.least)
        return found


def priced(table: Table, values: Floats, folds: Any) -> tuple[Prices | None, Floats]:
    """Prices, and what those found without its fold say of each sample.

    None where a ridge regression of logarithms on the table's numbers comes nearer: then these say what counts.
    """
    amounts, logs = table.amounts, np.log(values)
    assert amounts is not None
    best, totals, least = STRENGTHS[0], np.ones(len(values)), np.inf
    for strength in STRENGTHS:
        found = _out_of_fold(amounts, values, folds, strength)
        error = float(np.abs(logs - np.log(found)).mean())
        if error < 0.8 * least:                 # a clear gain: little pull makes prices of few samples wild
            best, totals, least = strength, found, error
    plain = Additive().fit(Table(table.values, table.names, amounts=amounts), logs).out_of_fold(folds).mean
    if least >= np.abs(logs - plain).mean():
        return None, totals
    return Prices(best).fit(amounts, values), totals


def _out_of_fold(amounts: Sequence[Mapping[str, float]], values: Floats, folds: Any, strength: float) -> Floats:
    totals = np.zeros(len(values))
    for fold in np.unique(folds):
        rest: list[int] = np.flatnonzero(folds != fold).tolist()
        found = Prices(strength).fit([amounts[i] for i in rest], values[rest])
        totals[folds == fold] = found.total([amounts[i] for i in np.flatnonzero(folds == fold).tolist()])
    return totals


def _pooled(amounts: Mapping[str, float]) -> dict[str, float]:
    found = dict(amounts)
    for name, amount in amounts.items():
        kind, inside, _ = name.partition(" in ")
        if inside:
            found[kind] = found.get(kind, 0.0) + amount
    return found
