"""How many genomes a space holds, exactly, and which decisions can still be completed.

A genome holds the active decisions of a candidate: what hangs below a candidate that is not chosen is not decided and not
counted. Different genomes may stand for one network (a layer without sublayers at another depth); they count apart.
Counting is dynamic programming over the decision states of a walk (see `walking`), which ties and constraints along a
repeat keep few. What nothing else depends on is a factor.
"""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from .places import ABSENT, Place
from .walking import Junction, Step, Walk

__all__ = ["MAX_STATES", "Counter", "NotCountable", "TooManyStates"]

MAX_STATES = 1_000_000
MAX_BLAMED = 20_000


class NotCountable(ValueError):
    """A space whose genomes cannot be counted exactly; the message names what stands in the way."""


class TooManyStates(NotCountable):
    """More decision states than allowed. `rule`: the number of the constraint that makes most of them, None for ties."""

    def __init__(self, rule: int | None):
        super().__init__(f"ties and constraints are counted with at most {MAX_STATES:,} states: this space needs more; tie "
                         "smaller parts")
        self.rule = rule


class _Open:
    """A junction being counted."""

    def __init__(self, key: Hashable, steps: list[Step]):
        self.key, self.steps, self.ahead = key, steps, iter(steps)


class Counter:
    """Counts and feasibility of everything in a walk, each found once."""

    def __init__(self, walk: Walk):
        self.walk = walk
        self._weights: dict[int, int] = {}
        self._totals: dict[Hashable, int] = {}
        self._possible: dict[int, bool] = {}
        self._alive: dict[Hashable, bool] = {}
        self._options: dict[Hashable, Sequence[int]] = {}
        self.before: dict[Hashable, list[int]] = {}              # kept for `indexing`

    # -- counting --------------------------------------------------------------------------------------------------

    def weight(self, block: Place) -> int:
        """The number of ways to decide a block. Raises NotCountable for a continuous gene, TooManyStates."""
        if block.shape not in self._weights:
            self._weights[block.shape] = self._free(block) if block.is_free else self.count(self.walk.start(block))
        return self._weights[block.shape]

    def _free(self, block: Place) -> int:
        """Of a block without rules and ties: by multiplication and addition."""
        if block.kind == "leaf":
            if block.gene is not None and block.gene.options is None:
                raise NotCountable(f"a continuous gene has no count: {block.gene.path}; give real(...) a step")
            return block.num_options
        if block.kind == "subset" and all(self.weight(candidate) == 1 for candidate in block.candidates):
            return block.num_options
        if block.kind == "repeat":
            below = [1]
            for item in block.items:
                below.append(below[-1] * self.weight(item))
            return sum(below[count] for count in block.values)
        return sum(math.prod(self.weight(p) for p in block.branch(option)) for option in range(block.num_options))

    def count(self, step: Step | None) -> int:
        """The number of ways to go on with a step."""
        if step is None:
            return 0
        ways = math.prod(self.weight(block) for block in step.blocks)
        return ways * self.total(step.junction) if ways and step.junction else ways

    def total(self, junction: Junction) -> int:
        """The number of ways to decide all from a junction on."""
        if junction.key in self._totals:
            return self._totals[junction.key]
        stack = [_Open(junction.key, self._steps(junction))]
        while stack:
            top = stack[-1]
            missing = next((step.junction for step in top.ahead
                            if step.junction is not None and step.junction.key not in self._totals), None)
            if missing is not None:
                stack.append(_Open(missing.key, self._steps(missing)))
                continue
            self._totals[top.key] = sum(self.count(step) for step in top.steps)
            stack.pop()
            if len(self._totals) > MAX_STATES:
                raise TooManyStates(self._blame(self._totals))
        return self._totals[junction.key]

    def _steps(self, junction: Junction) -> list[Step]:
        return [step for step in self.walk.steps(junction) if step is not None]

    # -- feasibility -----------------------------------------------------------------------------------------------

    def possible(self, block: Place) -> bool:
        """Whether a block can be decided at all."""
        if block.is_free:
            return True
        if block.shape not in self._possible:
            self._possible[block.shape] = self.is_open(self.walk.start(block))
        return self._possible[block.shape]

    def is_open(self, step: Step | None) -> bool:
        """Whether a step can be completed. Looks only as far as it takes to find one way."""
        return (step is not None and all(self.possible(block) for block in step.blocks)
                and (step.junction is None or self.alive(step.junction)))

    def alive(self, junction: Junction) -> bool:
        """Whether there is a way from a junction on: depth first, remembering dead ends."""
        if junction.key not in self._alive:
            stack = [(junction.key, self._ahead(junction))]
            while stack:
                ahead = next(stack[-1][1], False)
                if ahead is False:
                    self._alive[stack.pop()[0]] = False
                elif ahead is None or self._alive.get(ahead.key):                     # type: ignore[union-attr]
                    self._alive.update((key, True) for key, _ in stack)
                    break
                elif ahead.key not in self._alive:                                    # type: ignore[union-attr]
                    stack.append((ahead.key, self._ahead(ahead)))                     # type: ignore[union-attr, arg-type]
                if len(self._alive) > MAX_STATES:
                    raise TooManyStates(self._blame(self._alive))
        return self._alive[junction.key]

    def options(self, junction: Junction) -> Sequence[int]:
        """The options of a junction that can be completed."""
        if junction.options is None:
            found = self._options.get(junction.key)
            if found is None:
                found = [option for option, step in enumerate(self.walk.steps(junction)) if self.is_open(step)]
                self._options[junction.key] = found
            junction.options = found
        return junction.options

    def _ahead(self, junction: Junction) -> Iterator[Junction | None]:
        """The junctions after each option whose blocks are possible; None for the end."""
        for step in self.walk.steps(junction):
            if step is not None and all(self.possible(block) for block in step.blocks):
                yield step.junction

    def _blame(self, keys: Any) -> int | None:
        """The rule whose slots take most different values among the states."""
        states = [key[1] for key, _ in zip(keys, range(MAX_BLAMED), strict=False)]
        worst: Tally[int] = Tally()
        for slot, rules in self.walk.users.items():
            different = len({state[slot] for state in states if state[slot] is not ABSENT})
            for rule in rules:
                worst[rule] += different
        return max(worst, key=lambda rule: worst[rule]) if worst else None
