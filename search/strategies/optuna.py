"""Optuna's samplers behind ask and tell, on the flat encoding of a space that always holds every gene.

Optuna learns only from parameters that every trial has: of a conditional space given as it is, the nested
decisions would be drawn independently for ever. So every trial carries all genes, `Space.from_complete`
ignores the inactive ones, and two trials that decode to one architecture are recognised by the sweep. Genes
with options are indices into them, unordered for choices and subsets, ordered for numbers. Sampler arguments
are spelled out because their defaults differ between Optuna versions.

Watanabe 2023, "Tree-structured Parzen estimator" (TPE; multi-objective after Ozaki et al. 2022); Deb et al.
2002.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from ...space.genome import Genome
from .base import Told

if TYPE_CHECKING:
    from ...evaluators.objectives import Objective
    from ...space.compiled.spec import Gene
    from ...space.space import Space
    from ..front import Criterion

__all__ = ["OptunaNSGA2", "OptunaTPE", "distributions", "genome_of", "new_study", "parameters_of"]

_REDRAWS = 100


class _OptunaStrategy:
    """A study in memory; asking and telling are Optuna's own. Subclasses say which sampler."""

    def sampler(self, seed: int) -> BaseSampler:
        raise NotImplementedError

    def start(self, space: Space, objectives: Sequence[Objective], seed: int) -> None:
        self._space, self._objectives = space, tuple(objectives)
        self._distributions = distributions(space)
        self._study = new_study(objectives, sampler=self.sampler(seed % 2**32))
        self._open: dict[str, list[optuna.Trial]] = {}
        self._rng = random.Random(seed)

    def ask(self, n: int) -> list[Genome]:
        return [self._next() for _ in range(n)]

    def _next(self) -> Genome:
        """What the sampler proposes; proposals that break a constraint of the space are told as failed and
        redrawn."""
        for _ in range(_REDRAWS):
            trial = self._study.ask(self._distributions)
            genome = genome_of(self._space, trial.params)
            if not self._space.violated(genome):
                self._open.setdefault(genome.key, []).append(trial)
                return genome
            self._study.tell(trial, state=TrialState.FAIL)
        return self._space.sample_genome(self._rng)

    def tell(self, evaluations: Sequence[Told]) -> None:
        for told in evaluations:
            waiting = self._open.get(told.genome.key)
            if waiting:
                self._finish(waiting.pop(0), told)
            elif told.values is not None:
                self._add(told)

    def _finish(self, trial: optuna.Trial, told: Told) -> None:
        if told.values is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint("bounds", told.violation)
        self._study.tell(trial, self._row(told))

    def _add(self, told: Told) -> None:
        """A candidate the sampler did not propose, such as an initial architecture."""
        self._study.add_trial(create_trial(
            values=self._row(told), params=parameters_of(self._space, told.genome),
            distributions=self._distributions, constraints={"bounds": told.violation}))

    def _row(self, told: Told) -> list[float]:
        values = told.values or {}
        return [values[objective.name] for objective in self._objectives]


@dataclass
class OptunaTPE(_OptunaStrategy):
    """Multivariate TPE with the constant-liar treatment of candidates still in flight."""

    startup: int = 20
    name: ClassVar[str] = "optuna:tpe"

    def sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed, n_startup_trials=self.startup, n_ei_candidates=24, multivariate=True,
                          group=False, constant_liar=True)


@dataclass
class OptunaNSGA2(_OptunaStrategy):
    """Optuna's generational NSGA-II with uniform crossover."""

    population: int = 32
    name: ClassVar[str] = "optuna:nsga2"

    def sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=self.population, mutation_prob=None, crossover_prob=0.9,
                             swapping_prob=0.5)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """One Optuna distribution per gene of the flat encoding, by path; fixed for the whole study."""
    return {gene.path: _distribution(gene) for gene in space.genes}


def _distribution(gene: Gene) -> BaseDistribution:
    if gene.options is None:
        return FloatDistribution(gene.low, gene.high, log=gene.log)
    if gene.kind in ("choice", "subset"):
        return CategoricalDistribution(range(len(gene.options)))
    return IntDistribution(0, len(gene.options) - 1)


def parameters_of(space: Space, genome: Genome) -> dict[str, Any]:
    """The Optuna parameters of a genome: every gene, those with options as the index of theirs."""
    complete = space.complete(genome)
    return {gene.path: complete[gene.path] if gene.options is None else gene.options.index(complete[gene.path])
            for gene in space.genes}


def genome_of(space: Space, parameters: Mapping[str, Any]) -> Genome:
    """The canonical genome that complete Optuna parameters decode to."""
    return space.from_complete({
        gene.path: parameters[gene.path] if gene.options is None else gene.options[parameters[gene.path]]
        for gene in space.genes})


def new_study(objectives: Sequence[Objective | Criterion], **arguments: Any) -> optuna.Study:
    """A study with the objectives' directions and names; says nothing on the log."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            directions=["maximize" if o.goal == "max" else "minimize" for o in objectives], **arguments)
    finally:
        optuna.logging.set_verbosity(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)   # for naming objectives
        study.set_metric_names([objective.name for objective in objectives])
    return study
