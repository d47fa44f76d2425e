"""Drawing from a space: what is drawn how, how much of it the constraints accept, and samples spread over a cost.

Decisions are drawn one after another, each uniformly over the options that the rules over decisions can still complete.
That is not uniform over genomes (a candidate with many genomes below it is as likely as one with few); `sample_uniform` is.
Rules over costs and a user's own are checked on what was drawn. Where they accept too few, a draw is repaired (see
`repair`), and that is said of it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import BodyplanError
from ..compiled.spec import Gene
from ..constraints.words import cost
from ..genome import Decision, Genome
from .counting import TooManyStates
from .indexing import walk_through
from .intervals import proportion
from .repair import repaired

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..space import Space

__all__ = ["Acceptance", "Drawn", "acceptance", "draw", "fill", "stratified"]

PILOT = 200                  # draws by which the acceptance rate is estimated
MEASURED_PILOT = 50
PATIENCE = 10                # times the draws that one acceptance takes on average
MOST_DRAWS = 1000            # before a draw is repaired instead
STARTS = 8                   # draws to repair the best of, where none is accepted
POOL = 20                    # draws per stratum

Method = Literal["decisions", "repaired"]


@dataclass(frozen=True)
class Acceptance:
    """How many of `drawn` random genomes keep the constraints that cannot prune; `low` to `high` is a 95 % interval of the
    rate (Clopper and Pearson, 1934)."""

    accepted: int
    drawn: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.accepted / self.drawn

    def __str__(self) -> str:
        return f"{self.rate:.2%} of random genomes are accepted (95 % interval {self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True)
class Drawn:
    """A canonical genome and how it was come by: "decisions", drawn one by one and accepted as it was, or "repaired".

    architecture: where it had to be made anyway.
    """

    genome: Genome
    method: Method
    architecture: Architecture | None = None


def fill(space: Space, known: Mapping[str, Decision], rng: random.Random) -> Genome:
    """A genome with the decisions in `known` where the rules over decisions let them be, the rest drawn."""

    def pick(gene: Gene, options: Sequence[int] | None) -> int:
        assert gene.options is not None
        if known and gene.path in known:
            option = gene.index.get(known[gene.path])
            if option is not None and (options is None or option in options):
                return option
        if options is None:
            return int(rng.random() * len(gene.options))
        return options[int(rng.random() * len(options))]

    def real(gene: Gene) -> Decision:
        return known[gene.path] if gene.path in known else gene.sample(rng)

    while True:
        try:
            return Genome(walk_through(space.ruling.counter, pick, real))
        except TooManyStates as error:
            space.ruling.give_up(error)


def draw(space: Space, rng: random.Random) -> Drawn:
    """A random canonical genome that keeps the constraints. Raises BodyplanError when none is found.

    Draws are accepted or rejected as long as that is cheap, by a number fixed for the space (so that the same seed gives
    the same genome); then the best of them is repaired.
    """
    if not space.ruling.rules:
        return Drawn(space.canonical(space._fill({}, rng)), "decisions")
    judge = Judge(space)
    rate = acceptance(space).rate
    best: tuple[float, Genome] | None = None
    for _ in range(min(MOST_DRAWS, math.ceil(PATIENCE / rate)) if rate else STARTS):
        genome, off = judge.drawn(rng)
        if not off:
            return Drawn(genome, "decisions", judge.architecture)
        if best is None or off < best[0]:
            best = off, genome
    assert best is not None
    found, nearest = repaired(space, best[1], judge.distance, rng)
    if found is None:
        raise BodyplanError("no architecture was found that keeps the constraints: "
                            f"{space.ruling.shortfall(nearest, space.architecture(nearest))}; loosen them or widen the space")
    space.ruling.repaired.add(hash(found))
    return Drawn(found, "repaired")


class Judge:
    """Says how far genomes are from keeping the constraints; keeps the architecture of the last one that had to be made."""

    def __init__(self, space: Space):
        self.space, self.ruling = space, space.ruling
        self.architecture: Architecture | None = None

    def drawn(self, rng: random.Random) -> tuple[Genome, float]:
        """A canonical genome and its distance. The rules that pruned the draw hold unless the canonical form is another."""
        raw = self.space._fill({}, rng)
        genome = self.space.canonical(raw)
        holds = not self.ruling.rejected and genome == raw
        return genome, self._others(genome) if holds else self.distance(genome)

    def distance(self, genome: Genome) -> float:
        """By how much a genome breaks the constraints in all: 0 when it keeps them."""
        return len(self.ruling.broken(genome)) + self._others(genome)

    def _others(self, genome: Genome) -> float:
        self.architecture = None
        if not self.ruling.others:
            return 0.0
        self.architecture = self.space.architecture(genome)
        return self.ruling.excess(self.architecture)


def acceptance(space: Space) -> Acceptance:
    """The share that the constraints accept of the first 200 draws with seed 0; of the first 50 where some are measured."""
    if space.ruling.acceptance is None:
        rng, judge = random.Random(0), Judge(space)
        drawn = MEASURED_PILOT if space.ruling.measures else PILOT
        accepted = sum(not judge.drawn(rng)[1] for _ in range(drawn))
        space.ruling.acceptance = Acceptance(accepted, drawn, *proportion(accepted, drawn))
    return space.ruling.acceptance                                                    # type: ignore[no-any-return]


def stratified(space: Space, n: int, axis: str | Callable[[Architecture], float], rng: random.Random,
               pool: int | None = None) -> list[Architecture]:
    """`n` different architectures spread over a cost, from the smallest to the largest of a random pool.

    The range is cut into `n` strata, even in the logarithm where all costs are positive, and one is drawn from each; a
    stratum that the pool leaves empty is approached by local search, else the nearest that is left stands for it.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"a stratified sample holds at least one architecture: got n={n!r}")
    measured = cost(axis)._of if isinstance(axis, str) else axis
    found = {genome: float(measured(space.architecture(genome)))
             for genome in (draw(space, rng).genome for _ in range(pool or POOL * n))}
    if len(found) < n:
        raise ValueError(f"a stratified sample takes different architectures: found {len(found)} in {pool or POOL * n} draws "
                         f"and got n={n}; ask for fewer, or give a larger pool=")
    strata = _Strata(space, found, n, measured)
    return [space.architecture(genome) for genome in strata.chosen(rng)]


class _Strata:
    def __init__(self, space: Space, found: dict[Genome, float], n: int, measured: Callable[[Architecture], float]):
        self.space, self.found, self.measured = space, found, measured
        low, high = min(found.values()), max(found.values())
        self.scale: Callable[[float], float] = math.log if low > 0 else float
        self.low, self.width = self.scale(low), (self.scale(high) - self.scale(low)) / n or 1.0
        self.n = n

    def chosen(self, rng: random.Random) -> list[Genome]:
        """One genome per stratum, all different, by their cost. Full strata go first, so that no empty one takes theirs."""
        members: dict[int, list[Genome]] = {}
        for genome, value in self.found.items():
            members.setdefault(min(self.n - 1, int(self._place(value))), []).append(genome)
        taken = [rng.choice(held) for held in members.values()]
        for stratum in range(self.n):
            if stratum not in members:
                taken.append(self._approached(stratum, taken, rng))
        return sorted(taken, key=lambda genome: self.found[genome])

    def _place(self, value: float) -> float:
        return (self.scale(value) - self.low) / self.width

    def _off(self, genome: Genome, stratum: int) -> float:
        """How far a genome is from the inside of a stratum, in strata."""
        if genome not in self.found:
            self.found[genome] = float(self.measured(self.space.architecture(genome)))
        value = self.found[genome]
        place = self._place(value) if value > 0 or self.scale is float else -math.inf
        return max(0.0, abs(place - stratum - 0.5) - 0.5)

    def _approached(self, stratum: int, taken: list[Genome], rng: random.Random) -> Genome:
        judge = Judge(self.space)

        def distance(genome: Genome) -> float:
            return judge.distance(genome) + self._off(genome, stratum) + (genome in taken)

        left = [genome for genome in self.found if genome not in taken]
        start = min(left, key=lambda genome: self._off(genome, stratum))
        return repaired(self.space, start, distance, rng, starts=1)[0] or start
