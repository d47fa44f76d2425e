"""Writing constraints onto the places of a space, so that one walk decides and checks.

Every value that a constraint reads gets a slot of the walk's state: set where the value is decided, read where the last
of the values is known, forgotten where nothing more can depend on it. That last place is the lowest one above all that the
rule reads; where a rule counts parts it is also one that every architecture has, since a count of nothing is 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable

from ..counting.places import Place
from .actions import Add, Check, CheckPart, CheckPending, Follow, Formula, Saturation, key_of, number_of
from .expressions import Comparison, Condition, Constant, Expression, leaves, text_of
from .leaves import Count, Field, Total, Value
from .paths import field_of, has_field, parts_named, unknown_field, value_at
from .rules import Monotone, Rule, Within

__all__ = ["Binder"]

MAX_COMBINATIONS = 4096
FLIPPED = {"<=": ">=", "<": ">", ">=": "<=", ">": "<", "==": "==", "!=": "!="}


class Binder:
    """Binds rules, numbered as given, onto a tree of places. `continuous`: rules that read a gene without options."""

    def __init__(self, root: Place, rules: Iterable[Rule]):
        self.root = root
        self.parent: dict[int, Place] = {id(child): place for place in root.walk() for child in place.inner}
        self.order = {id(place): number for number, place in enumerate(root.walk())}
        self.resizing = [place for place in root.walk() if place.path and _gives_width(place)]
        self.slots: dict[Hashable, int] = {}
        self.users: dict[int, set[int]] = {}                 # slot -> numbers of the rules that read it
        self.scopes: dict[int, Place] = {}                   # rule -> where it is decided at the latest
        self.continuous: dict[int, str] = {}
        self._sites: dict[int, list[Place]] = {}             # of values and sums
        self._behind: dict[int, set[int]] = {}               # of sums: the values that they read
        self._local: set[int] = set()                        # slots of the fields of a part
        self._sums: frozenset[int] = frozenset()
        self._parts_of: dict[Hashable, set[int]] = {}        # who reads fields -> the parts whose fields are read
        for number, rule in enumerate(rules):
            self._bind(number, rule)
        for slot, users in self.users.items():
            if slot not in self._local:
                self.lowest(self.scopes[number] for number in users).own.append(slot)

    # -- rules -----------------------------------------------------------------------------------------------------

    def _bind(self, number: int, rule: Rule) -> None:
        if isinstance(rule, Within):
            self._within(number, rule)
        elif isinstance(rule, Monotone):
            self._monotone(number, rule)
        else:
            assert isinstance(rule, Condition)
            self._condition(number, rule)

    def _condition(self, number: int, rule: Condition) -> None:
        formula = Formula(rule, text_of(rule))
        slots = tuple(self._outer(number, leaf, rule) for leaf in formula.leaves.values())
        self._scope(number, [], slots).closing.append(Check(number, formula, slots, self._sums & frozenset(slots)))

    def _within(self, number: int, rule: Within) -> None:
        text = text_of(rule)
        formula = Formula(rule.rule, text)
        parts = parts_named(self.root, rule.of, text)
        self._check_fields(parts, formula, text)
        outer = {key: self._outer(number, leaf, rule) for key, leaf in formula.leaves.items() if not isinstance(leaf, Field)}
        waiting: dict[tuple[int, ...], CheckPending] = {}
        for part in parts:
            slots = tuple(self._field(number, part, leaf, ("within", number), text) if isinstance(leaf, Field) else outer[key]
                          for key, leaf in formula.leaves.items())
            around = frozenset(slots) - self._local
            pending = self._slot(("pending", number, slots), number) if around else None
            part.closing.append(CheckPart(number, formula, slots, around, pending, not self._sums.isdisjoint(around)))
            if pending is not None:
                waiting[slots] = CheckPending(number, formula, slots, around, pending, self._sums & around)
        read = {slot for slots in waiting for slot in slots} | set(outer.values())
        self._scope(number, parts, read).closing.extend(waiting.values())

    def _monotone(self, number: int, rule: Monotone) -> None:
        text = text_of(rule)
        formula = Formula(rule.amount, text)
        parts = parts_named(self.root, rule.of, text)
        self._check_fields(parts, formula, text)
        last = self._slot(("last", number), number)
        read: set[int] = set()
        for part in parts:
            slots = self._fields(number, part, formula, ("monotone", number), text)
            part.closing.append(Follow(number, last, formula, slots, rule.direction == "decreasing", rule.strict))
            read.update(slots)
        self._scope(number, parts, read)

    # -- what they read --------------------------------------------------------------------------------------------

    def _outer(self, number: int, leaf: Expression, rule: Rule) -> int:
        """The slot of a value or a sum, which rules that read the same share."""
        if isinstance(leaf, Value):
            return self._value(number, leaf.path, value_at(self.root, leaf.path, text_of(rule)))
        assert isinstance(leaf, (Count, Total))
        saturation = _saturation(number, leaf, rule)
        parts = parts_named(self.root, leaf.of, text_of(rule))
        if saturation is not None and isinstance(leaf, Total) and not self._only_grows(leaf, parts, text_of(rule)):
            saturation = None
        key = (key_of(leaf), number if saturation else None)
        is_new = key not in self.slots
        slot = self._slot(key, number)
        self._sums |= {slot}
        if is_new:
            self._add(number, slot, leaf, parts, saturation, text_of(rule))
        for read in self._behind[slot]:
            self.users[read].add(number)
        return slot

    def _value(self, number: int, path: str, places: list[Place]) -> int:
        slot = self._slot(("value", path), number)
        if slot not in self._sites:
            self._sites[slot] = places
            for place in places:
                place.sets.append(slot)
        self._note(number, places)
        return slot

    def _add(self, number: int, slot: int, leaf: Count | Total, parts: list[Place], saturation: Saturation | None,
             text: str) -> None:
        where = Formula(leaf.where, text) if leaf.where is not None else None
        amount = Formula(leaf.amount, text) if isinstance(leaf, Total) else None
        for formula in (where, amount):
            self._check_fields(parts, formula, text)
        behind: set[int] = set()
        for part in parts:
            read = [self._fields(number, part, formula, ("sum", slot), text) for formula in (where, amount)]
            part.closing.append(Add(slot, where, read[0], amount, read[1], saturation))
            behind |= {*read[0], *read[1]} - self._local
        self._behind[slot] = behind
        sites = [site for value in behind for site in self._sites[value]]
        self._sites[slot] = [self._always(self.lowest([*parts, *sites]))]

    def _fields(self, number: int, part: Place, formula: Formula | None, owner: Hashable, text: str) -> tuple[int, ...]:
        """The slots of the fields that a formula reads of one part, which must be known when the part is."""
        found = formula.leaves.values() if formula is not None else ()
        slots = tuple(self._field(number, part, leaf, owner, text) for leaf in found)    # type: ignore[arg-type]
        for slot in set(slots) - self._local:
            if any(self.order[id(site)] > self.order[id(part)] for site in self._sites[slot]):
                raise ValueError(f"a sum adds what is known where a part ends: the width around {part.path} is decided after "
                                 f"it in `{text}`; use within(...), which waits for it")
        return slots

    def _field(self, number: int, part: Place, leaf: Field, owner: Hashable, text: str) -> int:
        """The slot of a field of a part. Parts inside each other have slots of their own."""
        names = leaf._names
        places = field_of(part, names, text)
        if not places and names == ("width",):
            stage = self._stage_of(part, text)
            return self._value(number, stage.parts["width"].path, field_of(stage, names, text))
        mine = self._parts_of.setdefault(owner, set())
        mine.add(id(part))
        depth = sum(1 for above in self._above(part) if id(above) in mine)
        slot = self._slot(("field", owner, names, depth), number)
        self._local.add(slot)
        if slot not in part.own:
            part.own.append(slot)
            for place in places:
                place.sets.append(slot)
        self._note(number, places)
        return slot

    def _stage_of(self, part: Place, text: str) -> Place:
        """What decides the width of the stream around a part: a stage that says it always, or the space."""
        stage = next((above for above in self._above(part) if "width" in above.parts and above.path), self.root)
        if stage is self.root and not self.resizing or stage is not self.root and _gives_width(stage, always=True):
            return stage
        raise ValueError(f"the width around a part is one decision only where no stage before it may change it: `.width` at "
                         f"{part.path} in `{text}` is not; give every stage a width, or write value('body.0.width')")

    # -- where it is known -----------------------------------------------------------------------------------------

    def _slot(self, key: Hashable, number: int) -> int:
        slot = self.slots.setdefault(key, len(self.slots))
        self.users.setdefault(slot, set()).add(number)
        return slot

    def _scope(self, number: int, parts: list[Place], slots: Iterable[int]) -> Place:
        """Where the last of what a rule reads is known."""
        sites = [*parts, *(site for slot in slots for site in self._sites.get(slot, []))]
        self.scopes[number] = self.lowest(sites)
        return self.scopes[number]

    def _above(self, place: Place) -> list[Place]:
        """The places around one, nearest first."""
        found = []
        while (above := self.parent.get(id(place))) is not None:
            found.append(above)
            place = above
        return found

    def lowest(self, places: Iterable[Place]) -> Place:
        """The lowest place that all of them are in; a single place itself."""
        chains = [[*reversed(self._above(place)), place] for place in places]
        common = [level[0] for level in zip(*chains, strict=False) if all(place is level[0] for place in level)]
        return common[-1] if common else self.root

    def _always(self, place: Place) -> Place:
        """The lowest place around one, or itself, that every architecture has."""
        chain = [*reversed(self._above(place)), place]
        stop = next((i for i, above in enumerate(chain) if above.kind in ("choice", "subset", "repeat")), len(chain) - 1)
        return chain[stop]

    def _note(self, number: int, places: Iterable[Place]) -> None:
        for place in places:
            if place.gene is not None and place.gene.options is None:
                self.continuous.setdefault(number, place.gene.path)

    def _check_fields(self, parts: list[Place], formula: Formula | None, text: str) -> None:
        for leaf in formula.leaves.values() if formula is not None else ():
            if isinstance(leaf, Field) and leaf._names != ("width",) and not any(
                    part.cls is not None and has_field(part.cls, leaf._names) for part in parts):
                raise ValueError(unknown_field(parts, leaf._names, text))
        if formula is not None:
            self._try(parts, formula)

    def _only_grows(self, leaf: Total, parts: list[Place], text: str) -> bool:
        """Whether no part can add less than 0, which is known where its fields have few values."""
        formula = Formula(leaf.amount, text)
        for part in parts:
            found = self._readings(part, formula)
            if found is None or any(number_of(formula(values), formula) < 0 for values in found):
                return False
        return True

    def _readings(self, part: Place, formula: Formula) -> list[tuple[object, ...]] | None:
        """Every combination of values that a formula may read of one part; None where there are too many to try."""
        domains = []
        for leaf in formula.leaves.values():
            places = field_of(part, leaf._names, formula.text) if isinstance(leaf, Field) else []
            if not places and isinstance(leaf, Field) and leaf._names != ("width",):
                return []
            if not places or any(place.gene is not None and place.gene.options is None for place in places):
                return None
            domains.append(list(dict.fromkeys(value for place in places for value in place.values)))
        found = list(itertools.islice(itertools.product(*domains), MAX_COMBINATIONS + 1))
        return found if len(found) <= MAX_COMBINATIONS else None

    def _try(self, parts: list[Place], formula: Formula) -> None:
        """Compute a formula for all that its parts may hold, so that one that cannot be computed is refused at once."""
        for found in {tuple(self._readings(part, formula) or ()) for part in parts}:
            for values in found:
                formula(values)


def _gives_width(place: Place, always: bool = False) -> bool:
    """Whether a part may set a width of its own for what is inside and after it; whether it always does."""
    found = list(_options_of(place.parts["width"])) if "width" in place.parts else []
    return bool(found) and (all if always else any)(value is not None for value in found)


def _options_of(place: Place) -> Iterable[object]:
    if place.kind == "choice":
        return [value for candidate in place.candidates for value in _options_of(candidate)]
    return place.values or (0,)


def _saturation(number: int, leaf: Expression, rule: Rule) -> Saturation | None:
    """For a rule that compares one sum with a number."""
    if not isinstance(rule, Comparison) or sum(1 for _ in leaves(rule)) != 1:
        return None
    for side, other, op in ((rule.left, rule.right, rule.op), (rule.right, rule.left, FLIPPED[rule.op])):
        if side is leaf and isinstance(other, Constant) and isinstance(other.held, (int, float)):
            return Saturation(number, op, other.held)
    return None
