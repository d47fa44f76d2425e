"""How many genomes a space holds where constraints are not counted: by enumeration where it is small, else an interval."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ...errors import BodyplanError
from ..genome import Genome
from .counting import NotCountable
from .indexing import in_order, rank, unrank
from .intervals import proportion

if TYPE_CHECKING:
    from ..space import Space

__all__ = ["Numbering", "SizeEstimate", "estimate_size", "numbering", "sample_uniform"]

MAX_ENUMERATED = 20_000      # genomes looked at one by one, where constraints are not counted
MAX_DRAWS = 10_000


@dataclass(frozen=True)
class SizeEstimate:
    """A number of genomes known up to an interval of 95 %: `accepted` of `samples` uniform genomes keep the constraints
    that are not counted. Exact where `low == high`."""

    low: int
    high: int
    estimate: int
    accepted: int
    samples: int

    def __str__(self) -> str:
        return f"{self.estimate:,} genomes" if self.low == self.high else (
            f"about {self.estimate:,} genomes ({self.low:,} to {self.high:,} at 95 %)")


class Numbering:
    """The genomes of a space by number, in its fixed order.

    Raises NotCountable where a gene is continuous, and where a constraint that is not counted stands against more than
    20,000 genomes.
    """

    def __init__(self, space: Space):
        self.counter, uncounted = space.ruling.countable()
        self.whole = self.counter.weight(self.counter.walk.root)
        self.kept: list[int] | None = None
        if uncounted and self.whole > MAX_ENUMERATED:
            text, reason = uncounted[0]
            raise NotCountable(f"constraint `{text}` cannot be counted: {reason}, and the {self.whole:,} genomes without it "
                               f"are more than the {MAX_ENUMERATED:,} that are looked at one by one; use estimate_size()")
        if uncounted:
            self.kept = [number for number, made in enumerate(in_order(self.counter)) if not space.violated(Genome(made))]

    @property
    def size(self) -> int:
        """How many genomes there are."""
        return self.whole if self.kept is None else len(self.kept)

    def genome(self, number: int) -> Genome:
        """The genome with a number. Raises IndexError outside the space."""
        if not 0 <= number < self.size:
            raise IndexError(f"genomes are numbered from 0 up to the size of the space: got {number} of {self.size}")
        return Genome(unrank(self.counter, number if self.kept is None else self.kept[number]))

    def index(self, genome: Genome) -> int:
        """The number of a genome of the space."""
        number = rank(self.counter, genome)
        return number if self.kept is None else bisect_left(self.kept, number)


def numbering(space: Space) -> Numbering:
    """The numbering of a space, made once."""
    if space.ruling.numbering is None:
        space.ruling.numbering = Numbering(space)
    return space.ruling.numbering                                                     # type: ignore[no-any-return]


def sample_uniform(space: Space, rng: random.Random) -> Genome:
    """A genome of the space, each equally likely; constraints that are not counted reject."""
    try:
        numbers = numbering(space)
    except NotCountable:
        counter, _ = space.ruling.countable()
        for _ in range(MAX_DRAWS):
            genome = Genome(unrank(counter, rng.randrange(counter.weight(counter.walk.root))))
            if not space.violated(genome):
                return genome
        names = ", ".join(f"`{text}`" for text, _ in space.ruling.countable()[1])
        raise BodyplanError(f"no genome in {MAX_DRAWS:,} uniform draws keeps {names}: sample() repairs what it draws, but is "
                            "not uniform; or loosen the constraints") from None
    if not numbers.size:
        raise BodyplanError("a uniform sample needs a genome that keeps the constraints: there is none; loosen them")
    return numbers.genome(rng.randrange(numbers.size))


def estimate_size(space: Space, samples: int, seed: int) -> SizeEstimate:
    """The number of genomes by the share of uniform ones that keep what is not counted; exact where that is nothing.

    Raises NotCountable for a continuous gene without a step.
    """
    if samples < 1:
        raise ValueError(f"an estimate needs at least one sample: got samples={samples}")
    counter, uncounted = space.ruling.countable()
    whole = counter.weight(counter.walk.root)
    if not uncounted:
        return SizeEstimate(whole, whole, whole, samples, samples)
    rng = random.Random(seed)
    accepted = sum(not space.violated(Genome(unrank(counter, rng.randrange(whole)))) for _ in range(samples))
    low, high = (Fraction(share) * whole for share in proportion(accepted, samples))
    likely = whole * accepted // samples
    return SizeEstimate(max(math.floor(low), min(1, accepted)), math.ceil(high), likely, accepted, samples)
