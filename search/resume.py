"""A sweep's state from its journal: what was asked, answered and told, and strategies by replay.

The journal is the only state there is. Running and resuming follow the same path: a `Ledger` is filled from
the journal (empty for a new sweep), then grows with every event appended to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BodyplanError
from ..space.genome import Genome
from .front import Criterion
from .journal import Event, Journal
from .strategies.base import Strategy, Told

__all__ = ["Ledger", "Proposal", "is_screened", "replay", "seconds_spent", "violation"]


@dataclass(frozen=True)
class Proposal:
    """One genome a strategy proposed. `new` is False when its architecture was proposed before, as trial
    `number`. `parent` is the trial whose weights it starts from, where candidates inherit."""

    genome: Genome
    number: int
    hash: str
    new: bool
    initial: bool = False
    parent: int | None = None


class Ledger:
    """Proposals of one stream in the order of asking, results by trial number, and what the strategy was
    told."""

    def __init__(self, stream: str, objectives: Sequence[Criterion]):
        self.stream = stream
        self.objectives = tuple(objectives)
        self.proposals: list[Proposal] = []
        self.results: dict[int, Mapping[str, Any]] = {}
        self.number_of: dict[str, int] = {}
        self.untold: dict[int, None] = {}        # indices into proposals, in order of asking
        self.num_screened = 0                    # results of candidates that a predictor left out, untried

    @classmethod
    def read(cls, journal: Journal, stream: str, objectives: Sequence[Criterion]) -> Ledger:
        """The ledger as the journal left it."""
        ledger = cls(stream, objectives)
        for event in journal.events(stream=stream):
            ledger.apply(event)
        return ledger

    def apply(self, event: Event) -> None:
        """Take one event of this stream into account; other kinds than ask, result and tell change
        nothing."""
        if event.kind == "ask":
            self.ask(event.body)
        elif event.kind == "result":
            self.finish(event.body)
        elif event.kind == "tell":
            for index in event.body["asks"]:
                del self.untold[index]

    def finish(self, body: Mapping[str, Any]) -> None:
        """Take the body of a "result" event."""
        self.results[body["number"]] = body
        self.num_screened += is_screened(body)

    def ask(self, body: Mapping[str, Any]) -> list[Proposal]:
        parents = body.get("parents", [None] * len(body["genomes"]))
        made = [Proposal(Genome.from_json(genome), number, hash_, new, body.get("initial", False), parent)
                for genome, number, hash_, new, parent in zip(body["genomes"], body["numbers"], body["hashes"], body["new"],
                                                              parents, strict=True)]
        for proposal in made:
            self.number_of.setdefault(proposal.hash, proposal.number)
            self.untold[len(self.proposals)] = None
            self.proposals.append(proposal)
        return made

    @property
    def num_new(self) -> int:
        """Trials asked for so far: distinct architectures."""
        return len(self.number_of)

    @property
    def num_tried(self) -> int:
        """Those of them that were evaluated or will be: all but what a predictor left out."""
        return self.num_new - self.num_screened

    def pending(self) -> list[Proposal]:
        """New proposals without a result: what a resume evaluates first."""
        return [proposal for proposal in self.proposals if proposal.new and proposal.number not in self.results]

    def told(self, index: int) -> Told | None:
        """What the strategy is to hear of a proposal, None while it has no result."""
        proposal = self.proposals[index]
        result = self.results.get(proposal.number)
        if result is None:
            return None
        values = result["values"] if result["state"] == "complete" else None
        return Told(proposal.genome, values, violation(values, self.objectives))


def is_screened(body: Mapping[str, Any]) -> bool:
    """Whether a result is that of a candidate which a predictor left out, untried."""
    return "screened" in (body.get("extra") or {})


def violation(values: Mapping[str, float] | None, objectives: Sequence[Criterion]) -> float:
    """The sum over objectives of how far the bounds are broken, each as a share of its bound; 0 for no
    values."""
    return sum(o.violation(values[o.name]) for o in objectives) if values else 0.0


def replay(journal: Journal, stream: str, strategy: Strategy, objectives: Sequence[Criterion]) -> Ledger:
    """Bring a freshly started strategy to where the journal left it, checking every ask on the way.

    Raises BodyplanError when the strategy does not propose what it proposed then.
    """
    ledger = Ledger(stream, objectives)
    for event in journal.events(stream=stream):
        if event.kind == "ask" and not event.body.get("initial"):
            _check_ask(event, strategy.ask(event.body["n"]))
        elif event.kind == "tell":
            strategy.tell([told for index in event.body["asks"] if (told := ledger.told(index))])
        ledger.apply(event)
    return ledger


def _check_ask(event: Event, again: Sequence[Genome]) -> None:
    before = [Genome.from_json(genome) for genome in event.body["genomes"]]
    if list(again) != before:
        raise BodyplanError("a strategy proposes the same again when its journal is replayed: event "
                            f"{event.id} differs ({_difference(before, again)}); resume with the version and "
                            "settings it was started with")


def _difference(before: Sequence[Genome], again: Sequence[Genome]) -> str:
    for one, other in zip(before, again, strict=False):
        for path in {**one, **other}:
            if one.get(path) != other.get(path):
                return f"{path} was {one.get(path)!r}, is {other.get(path)!r}"
    return f"{len(before)} candidates then, {len(again)} now"


def seconds_spent(journal: Journal) -> float:
    """Wall time of all earlier runs of a sweep: from each session's start to its last event."""
    spent, began, last = 0.0, None, 0.0
    for event in journal.events():
        if event.kind == "session":
            spent += 0.0 if began is None else last - began
            began = event.time
        last = event.time
    return spent + (0.0 if began is None else last - began)
