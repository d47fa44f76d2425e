"""The constraints of one space: which are known from decisions, which break, and which clash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..compiled.spec import Node
from ..counting.counting import MAX_STATES, Counter, TooManyStates
from ..counting.places import Place, places_of
from ..counting.walking import Step, Walk
from ..genome import Decision, Genome
from .binding import Binder
from .costs import excess, nearest_of
from .expressions import Condition, leaves, text_of
from .leaves import Measure
from .rules import Bounded, Predicate, Rule, as_rule, is_of_cost, is_of_decisions

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["Ruling"]

TOO_MANY = f"it needs more than {MAX_STATES:,} states"


class Ruling:
    """Constraints bound to the compiled fields of a space.

    decisions: rules over decisions. costs: rules over costs and measurements. predicates: code of a user's own. Those over
    decisions are `pruned` before anything is drawn, except for the `rejected`, which read a continuous gene or would need
    too many states. Raises TypeError and ValueError for what is no constraint or names nothing in the space.
    """

    def __init__(self, nodes: Mapping[str, Node], constraints: Iterable[Any]):
        self.nodes = nodes
        self.rules: tuple[Rule, ...] = tuple(as_rule(item) for item in constraints)
        self.decisions = [rule for rule in self.rules if is_of_decisions(rule)]
        self.costs = [rule for rule in self.rules if is_of_cost(rule)]
        self.predicates = [rule for rule in self.rules if isinstance(rule, Predicate)]
        self.others: list[Rule] = [*self.predicates, *self.costs]
        self.rejected: dict[int, str] = {}                   # number of a rule over decisions -> why it does not prune
        self.acceptance: Any = None                          # kept for `sampling` and `estimating`
        self.numbering: Any = None
        self.repaired: set[int] = set()                      # hashes of genomes
        self._countable: tuple[Counter, list[tuple[str, str]]] | None = None
        self._counter: Counter | None = None
        self._checker: Walk | None = None
        if self.decisions:
            binder = Binder(places_of(nodes), self.decisions)
            self._checker = Walk(binder)
            self.rejected = {n: f"it reads {path}, which is continuous; give real(...) a step"
                             for n, path in binder.continuous.items()}
            self._reads_real = bool(binder.continuous)
            self._refuse_clashes()

    @property
    def pruned(self) -> list[Rule]:
        """The rules that hold for everything drawn."""
        return [rule for number, rule in enumerate(self.decisions) if number not in self.rejected]

    @property
    def prunes(self) -> bool:
        """Whether some rule narrows what is drawn."""
        return len(self.decisions) > len(self.rejected)

    @property
    def counter(self) -> Counter:
        """Counts and feasibility under the pruned rules."""
        if self._counter is None:
            whole = self._checker if not self.rejected else None
            self._counter = Counter(whole) if whole is not None else self._counting(self.pruned)
        return self._counter

    def give_up(self, error: TooManyStates) -> None:
        """From now on reject by the rule that makes too many states, in place of pruning by it."""
        self.rejected[self._number(error, self.rejected)] = TOO_MANY
        self._counter = None

    def countable(self) -> tuple[Counter, list[tuple[str, str]]]:
        """Counts under the rules that can be counted, and the others by name, each with why it cannot."""
        if self._countable is None:
            left_out = dict(self.rejected)
            while True:
                rules = [rule for number, rule in enumerate(self.decisions) if number not in left_out]
                counter = self.counter if left_out == self.rejected else self._counting(rules)
                try:
                    counter.weight(counter.walk.root)
                    break
                except TooManyStates as error:
                    left_out[self._number(error, left_out)] = TOO_MANY
            whole = [(text_of(rule), "it judges whole architectures") for rule in self.others]
            self._countable = counter, [(text_of(self.decisions[n]), reason) for n, reason in left_out.items()] + whole
        return self._countable

    def _number(self, error: TooManyStates, left_out: Mapping[int, str]) -> int:
        """The number among all rules of the one that makes too many states among those not left out."""
        if error.rule is None:
            raise error
        return [number for number in range(len(self.decisions)) if number not in left_out][error.rule]

    def _counting(self, rules: list[Rule]) -> Counter:
        return Counter(Walk(Binder(places_of(self.nodes), rules)))

    # -- checking --------------------------------------------------------------------------------------------------

    def broken(self, decisions: Mapping[str, Decision]) -> list[Rule]:
        """The rules over decisions that a genome breaks."""
        if self._checker is None or not self._reads_real and self._passes(self._checker.root, decisions):
            return []
        found: set[int] = set()
        self._check(self._checker.root, decisions, found)
        return [self.decisions[number] for number in sorted(found)]

    def _passes(self, block: Place, decisions: Mapping[str, Decision]) -> bool:
        """Whether nothing is broken, by remembered steps, which say no more than that."""
        assert self._checker is not None
        step = self._checker.start(block)
        while step is not None:
            if not all(inner.is_free or self._passes(inner, decisions) for inner in step.blocks):
                return False
            if step.junction is None:
                return True
            place = step.junction.place
            assert place.gene is not None
            option = 0 if place.gene.options is None else place.option_of(decisions[place.gene.path])
            step = self._checker.after(step.junction, option)
        return False

    def _check(self, block: Place, decisions: Mapping[str, Decision], broken: set[int]) -> None:
        assert self._checker is not None
        step: Step = self._checker.begin(block, broken)
        while True:
            for inner in step.blocks:
                if not inner.is_free:
                    self._check(inner, decisions, broken)
            if step.junction is None:
                return
            gene = step.junction.place.gene
            assert gene is not None
            step = self._checker.go(step.junction, decisions[gene.path], broken)

    @property
    def measures(self) -> bool:
        """Whether some rule measures architectures, which takes longer than to count their costs."""
        return any(isinstance(rule, Bounded) or isinstance(rule, Condition)
                   and any(isinstance(leaf, Measure) for leaf in leaves(rule)) for rule in self.costs)

    def excess(self, architecture: Architecture) -> float:
        """By how much an architecture breaks the rules over costs and a user's own in all; 0 when all hold."""
        return sum(excess(rule, architecture) for rule in self.others)

    def violated(self, genome: Genome, architecture: Callable[[], Architecture]) -> list[str]:
        """The names of all constraints that a genome breaks. `architecture` is called for those over costs alone."""
        found = [text_of(rule) for rule in self.broken(genome)]
        if self.others:
            made = architecture()
            found += [text_of(rule) for rule in self.others if excess(rule, made) > 0]
        return found

    def shortfall(self, genome: Genome, architecture: Architecture) -> str:
        """What the nearest genome found breaks, and how nearly."""
        decisions = self.broken(genome)
        others = [rule for rule in self.others if excess(rule, architecture) > 0]
        found = [f"the nearest found breaks `{text_of(rule)}`" for rule in decisions]
        return "; ".join([*found, *(nearest_of(rule, architecture, len(others) + len(decisions) == 1) for rule in others)])

    # -- clashes ---------------------------------------------------------------------------------------------------

    def is_satisfiable(self) -> bool:
        """Whether some genome keeps the rules over decisions, as far as that can be told."""
        while True:
            try:
                return self.counter.possible(self.counter.walk.root)
            except TooManyStates as error:
                self.give_up(error)

    def _refuse_clashes(self) -> None:
        """Raise ValueError when the rules over decisions leave nothing, naming a smallest set of them that does."""
        if self.is_satisfiable():
            return
        core = self.pruned
        for rule in self.pruned:
            fewer = [other for other in core if other is not rule]
            if fewer and not self._leaves_something(fewer):
                core = fewer
        texts = "; ".join(f"`{text_of(rule)}`" for rule in core)
        which, it = ("this one", "it") if len(core) == 1 else (f"these {len(core)} together", "one of them")
        raise ValueError(f"constraints must leave something of the space: no genome keeps {which}: {texts}; loosen {it}")

    def allows(self, rule: Rule) -> bool:
        """Whether some genome keeps one more rule over decisions beside those that prune; True where that is not known.

        Raises ValueError for a rule that cannot be bound to this space.
        """
        return self._leaves_something([*self.pruned, rule])

    def leaves_broken(self, rule: Rule) -> bool:
        """Whether some genome that keeps the rules that prune breaks one more.

        Raises ValueError for a rule that cannot be bound to this space, NotCountable where genomes cannot be counted.
        """
        kept, both = self.counter, self._counting([*self.pruned, rule])
        return both.weight(both.walk.root) < kept.weight(kept.walk.root)

    def _leaves_something(self, rules: list[Rule]) -> bool:
        counter = self._counting(rules)
        try:
            return counter.possible(counter.walk.root)
        except TooManyStates:
            return True
