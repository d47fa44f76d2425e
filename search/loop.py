"""Ask, evaluate, tell, until the budget is spent.

In order "ask" the strategy hears results in the order it asked, and always has the same number in flight when
it is asked, so its proposals depend on the results alone and not on which candidate finished first: the
trials are the same on every executor, and after every interruption. In order "completion" it hears results as
they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..space.genome import Genome
from .dispatch import Dispatcher
from .executors.base import Failure, Job, Outcome
from .front import Criterion
from .journal import Journal
from .kinship import inheriting, nearest
from .resume import Ledger, Proposal
from .seeds import evaluation_seed
from .strategies.base import Strategy
from .surrogates import Surrogates

if TYPE_CHECKING:
    from ..space.space import Space

__all__ = ["Budget", "Cache", "Loop", "result_body", "saving"]

_STALE = 500  # proposals in a row that were all known, or not worth a try, before the space counts as exhausted


@dataclass(frozen=True)
class Budget:
    """How much a stream may ask for: distinct architectures, and a moment (`time.monotonic`) after which to
    stop."""

    trials: int | None
    deadline: float | None = None

    def allows(self, asked: int) -> bool:
        within = self.trials is None or asked < self.trials
        return within and (self.deadline is None or time.monotonic() < self.deadline)


class Cache:
    """Results by architecture, fidelity and replicate, across streams, failures included: nothing is
    evaluated twice."""

    def __init__(self) -> None:
        self._results: dict[Hashable, Mapping[str, Any]] = {}

    def put(self, hash_: str, body: Mapping[str, Any]) -> None:
        self._results[_cache_key(hash_, body["fidelity"], body["replicate"])] = body

    def get(self, hash_: str, fidelity: Mapping[str, Any], replicate: int = 0) -> Mapping[str, Any] | None:
        return self._results.get(_cache_key(hash_, fidelity, replicate))


def _cache_key(hash_: str, fidelity: Mapping[str, Any], replicate: int) -> Hashable:
    return hash_, tuple(sorted(fidelity.items())), replicate


class Loop:
    """One stream of trials. `watch` is called with the trial number after every result."""

    def __init__(self, space: Space, journal: Journal, ledger: Ledger, strategy: Strategy, dispatcher: Dispatcher,
                 cache: Cache, *, seed: int, fidelity: Mapping[str, Any], order: str, in_flight: int,
                 weights_folder: Path | None = None, inherit: bool = False, surrogates: Surrogates | None = None,
                 watch: Callable[[int], None] = lambda number: None):
        self.space, self.journal, self.ledger, self.strategy = space, journal, ledger, strategy
        self.dispatcher, self.cache, self.watch, self.surrogates = dispatcher, cache, watch, surrogates
        self.seed, self.fidelity, self.weights_folder, self.inherit = seed, dict(fidelity), weights_folder, inherit
        self.in_order, self.in_flight = order == "ask", in_flight
        self._next_number = max((trial.number for trial in journal.trials()), default=-1) + 1
        self.is_exhausted = False
        self._stale = 0

    def run(self, budget: Budget, initial: Sequence[Genome] = ()) -> None:
        """Until `budget` trials have results and the strategy was told all of them.

        `initial` goes first, before the strategy is asked for anything. Raises KeyboardInterrupt after a
        requested stop, with every finished candidate in the journal.
        """
        for proposal in self.ledger.pending():
            self._enqueue(proposal)
        self._propose_initial(initial)
        while True:
            while self._has_room(budget):
                self._ask()
            if not self.ledger.untold:
                return
            if not self._tell():
                key, job, outcome = self.dispatcher.next()
                self._record(key, job, outcome)

    def _propose_initial(self, initial: Sequence[Genome]) -> None:
        already = {proposal.genome for proposal in self.ledger.proposals if proposal.initial}
        for genome in initial:
            if genome not in already:
                self._propose([genome], {"n": 0, "initial": True})

    def _has_room(self, budget: Budget) -> bool:
        return (not self.is_exhausted and len(self.ledger.untold) < self.in_flight
                and budget.allows(self.ledger.num_tried))

    def _ask(self) -> None:
        genomes = self.strategy.ask(1)
        before = self.ledger.num_tried
        self._propose(genomes, {"n": 1})
        self._stale = 0 if self.ledger.num_tried > before else self._stale + 1
        self.is_exhausted = not genomes or self._stale >= _STALE

    def _propose(self, genomes: Sequence[Genome], body: dict[str, Any]) -> None:
        architectures = [self.space.architecture(genome) for genome in genomes]
        numbers, new = self._numbered([architecture.hash for architecture in architectures])
        body |= {"genomes": [genome.to_json() for genome in genomes], "numbers": numbers, "new": new,
                 "hashes": [architecture.hash for architecture in architectures],
                 "labels": [self.space.labels(genome) for genome in genomes]}
        if self.space.constraints:
            body["repaired"] = [self.space.is_repaired(genome) for genome in genomes]
        if self.inherit:
            body["parents"] = [nearest(self.space, genome, self.ledger) for genome in genomes]
        self.journal.append("ask", body, self.ledger.stream)
        for proposal in self.ledger.ask(body):
            if proposal.new:
                self._enqueue(proposal)

    def _numbered(self, hashes: Sequence[str]) -> tuple[list[int], list[bool]]:
        """A trial number for every architecture, and whether it is a new one."""
        numbers, new, known = [], [], dict(self.ledger.number_of)
        for hash_ in hashes:
            new.append(hash_ not in known)
            if new[-1]:
                known[hash_] = self._next_number
                self._next_number += 1
            numbers.append(known[hash_])
        return numbers, new

    def _enqueue(self, proposal: Proposal) -> None:
        known = self.cache.get(proposal.hash, self.fidelity)
        if known is not None:
            self._finish(proposal, {**known, "number": proposal.number, "seconds": 0.0, "cached": True})
            return
        seed = evaluation_seed(self.seed, proposal.genome, self.fidelity)
        job = Job(proposal.number, "score", proposal.genome, seed,
                  {**self.fidelity, **saving(self.weights_folder, proposal.hash),
                   **inheriting(self.weights_folder, proposal, self.ledger)})
        if self.surrogates is not None:
            guesses = self.surrogates.guesses(proposal.genome)
            if (reason := self.surrogates.screened(guesses)) is not None:
                self._leave_out(proposal, job, reason, guesses)
                return
            job = replace(job, fidelity={**job.fidelity, **self.surrogates.task(guesses)})
        self.dispatcher.add(proposal, job)

    def _record(self, key: Hashable, job: Job, outcome: Outcome) -> None:
        assert isinstance(key, Proposal)
        body = {"number": key.number, **result_body(job, outcome, self.ledger.objectives), "fidelity": self.fidelity}
        self.cache.put(key.hash, body)
        if self.surrogates is not None:
            self.surrogates.learn(key.genome, body)
        self._finish(key, body)

    def _leave_out(self, proposal: Proposal, job: Job, reason: str, guesses: Mapping[str, Any]) -> None:
        """The result of a candidate that nobody tried, since it is predicted to break a bound."""
        outcome = Outcome(job.id, None, Failure(reason), 0.0, "predictor")
        self._finish(proposal, {"number": proposal.number, **result_body(job, outcome, self.ledger.objectives),
                                "fidelity": self.fidelity, "extra": {"screened": dict(guesses)}})

    def _finish(self, proposal: Proposal, body: Mapping[str, Any]) -> None:
        self.journal.append("result", body, self.ledger.stream)
        self.ledger.finish(body)
        self.watch(proposal.number)

    def _tell(self) -> bool:
        """Tell what may be told now; False when that is nothing.

        In order "ask" that is the oldest proposal alone: the window then refills before the next one is told,
        as it would have if the others had not finished yet.
        """
        candidates = list(self.ledger.untold)[:1] if self.in_order else list(self.ledger.untold)
        ready = {index: told for index in candidates if (told := self.ledger.told(index))}
        if not ready:
            return False
        self.strategy.tell(list(ready.values()))
        self.journal.append("tell", {"asks": list(ready)}, self.ledger.stream)
        for index in ready:
            del self.ledger.untold[index]
        return True


def saving(folder: Path | None, hash_: str, what: str = "save") -> dict[str, str]:
    """The part of a job's fidelity that says where trained weights go, or are; it is no part of what a result is known by."""
    return {} if folder is None else {what: str(folder / f"{hash_}.safetensors")}


def result_body(job: Job, outcome: Outcome, objectives: Sequence[Criterion]) -> dict[str, Any]:
    """The body of a "result" event, without its number. A candidate that misses an objective has failed."""
    body: dict[str, Any] = {"state": "failed", "values": None, "intervals": {}, "failure": None, "extra": {},
                            "seconds": outcome.seconds, "seed": job.seed, "worker": outcome.worker,
                            "fidelity": dict(job.fidelity), "replicate": job.replicate}
    if outcome.failure is not None:
        return body | {"failure": {"reason": outcome.failure.reason, "traceback": outcome.failure.traceback}}
    found = outcome.values or {}
    values = found.get("objectives") or {}
    missing = [objective.name for objective in objectives if values.get(objective.name) is None]
    if missing:
        return body | {"failure": {"reason": f"no value for {', '.join(missing)}", "traceback": ""}}
    return body | {"state": "complete", "values": values, "intervals": found.get("intervals") or {},
                   "extra": found.get("extra") or {}}
