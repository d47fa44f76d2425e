"""One walk through a space for everything that counts, draws and checks: decisions in a fixed order, with a state.

The walk goes through the places in the order a genome is decided. Parts that nothing outside depends on are not entered:
they are handed out as blocks, to be counted or drawn by themselves. What is left are decision states: a place with a gene,
and what the constraints and ties before it have to remember. Two decision states with one key have the same future, so
that the walk is a decision diagram (Andersen et al., A Constraint Store Based on Multivalued Decision Diagrams, 2007) in
which a repeat's layers share their nodes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from ..constraints.binding import Binder
from .places import ABSENT, Place, Slots, State

__all__ = ["Cell", "Junction", "Step", "Walk"]

MAX_REMEMBERED = 100_000     # junctions kept for drawing


class Cell:
    """A list of what is still to be walked: a place, or the end of one, and the rest."""

    __slots__ = ("closes", "exposed", "forgets", "junctions", "key", "next", "opens", "place", "replays", "rest", "run")

    def __init__(self, place: Place, rest: Cell | None, key: int, replays: bool, opens: bool, closes: bool):
        self.place, self.rest, self.key = place, rest, key
        self.replays, self.opens, self.closes = replays, opens, closes
        read = frozenset(place.own) | place.exposed if opens or closes else place.exposed
        self.exposed: frozenset[int] = read | (rest.exposed if rest else frozenset())
        self.forgets: tuple[int, ...] = ()
        self.next: dict[int, Cell | None] = {}
        self.run: Run | None = None
        self.junctions: dict[State, Junction] = {}


class Junction:
    """A decision to be taken, with what is remembered of those before. `options` and `steps` are filled as they are used.

    Junctions with one key have the same future.
    """

    __slots__ = ("cell", "key", "options", "state", "steps")

    def __init__(self, cell: Cell, state: State):
        self.cell, self.state = cell, state
        self.key = cell.key, state
        self.options: Sequence[int] | None = None
        self.steps: dict[int, Step | None] = {}

    @property
    def place(self) -> Place:
        """Where the decision is taken."""
        return self.cell.place


class Run(NamedTuple):
    """What is done between two decisions: slots set and actions, blocks passed, and where that stops."""

    acts: tuple[Any, ...]
    blocks: tuple[Place, ...]
    stop: Cell | None


class Step(NamedTuple):
    """What comes after a decision: blocks decided by themselves, in order, and the next decision or the end."""

    blocks: tuple[Place, ...]
    junction: Junction | None


class Walk:
    """A tree of places with rules bound to it, made ready to be walked."""

    def __init__(self, binder: Binder):
        self.root = binder.root
        self.num_slots = len(binder.slots)
        self.users = binder.users
        self._keys: dict[Hashable, int] = {}
        self._shapes: dict[Hashable, int] = {}
        self._cells: dict[Hashable, Cell] = {}
        self._starts: dict[int, Step | None] = {}
        self._remembered = 0
        _Finish(self, binder)
        self.blank: State = (ABSENT,) * self.num_slots

    # -- stepping --------------------------------------------------------------------------------------------------

    def start(self, block: Place) -> Step | None:
        """The first step inside a block, None when nothing there satisfies its rules."""
        key = id(block)
        if key not in self._starts:
            self._starts[key] = self._interned(self._advance(self._cell(block, None, opens=True), list(self.blank)))
        return self._starts[key]

    def after(self, junction: Junction, option: int) -> Step | None:
        """The step after deciding `option`; None when a rule is broken. Remembered, so that it is quick the next time."""
        try:
            return junction.steps[option]
        except KeyError:
            found = junction.steps[option] = self._interned(self._after(junction, option))
            return found

    def _after(self, junction: Junction, option: int, value: Any = ABSENT, broken: set[int] | None = None) -> Step | None:
        state = list(junction.state)
        return self._advance(self._decide(junction.cell, state, option, value), state, broken)

    def _interned(self, step: Step | None) -> Step | None:
        """The step with the one junction that stands for its cell and state."""
        if step is None or step.junction is None:
            return step
        known = step.junction.cell.junctions
        if step.junction.state not in known:
            self._remembered += 1
            if self._remembered > MAX_REMEMBERED:
                self._forget_all()
            known[step.junction.state] = step.junction
        return Step(step.blocks, known[step.junction.state])

    def _forget_all(self) -> None:
        self._remembered = 0
        self._starts.clear()
        for cell in self._cells.values():
            cell.junctions.clear()

    def steps(self, junction: Junction) -> Iterator[Step | None]:
        """The step after each option, in order."""
        return (self._after(junction, option) for option in range(junction.place.num_options))

    def begin(self, block: Place, broken: set[int]) -> Step:
        """The first step inside a block when checking: `broken` collects the numbers of broken rules."""
        step = self._advance(self._cell(block, None, opens=True), list(self.blank), broken)
        assert step is not None
        return step

    def go(self, junction: Junction, decision: Any, broken: set[int]) -> Step:
        """The step after a decision when checking. Raises KeyError for a decision that is not an option."""
        gene = junction.place.gene
        is_real = gene is not None and gene.options is None
        step = (self._after(junction, 0, decision, broken) if is_real else
                self._after(junction, junction.place.option_of(decision), ABSENT, broken))
        assert step is not None
        return step

    def _advance(self, cell: Cell | None, state: Slots, broken: set[int] | None = None) -> Step | None:
        """Run what is to be done from `cell` on, up to the next decision."""
        blocks: tuple[Place, ...] = ()
        while cell is not None:
            run = cell.run or self._compiled(cell)
            for act in run.acts:
                if type(act) is tuple:
                    state[act[0]] = act[1]
                elif not act(state, broken):                                          # type: ignore[operator]
                    return None
            blocks += run.blocks
            cell = run.stop
            if cell is None:
                break
            if cell.opens:
                place = cell.place
                if place.sticky is None or state[place.sticky] is ABSENT:
                    return Step(blocks, Junction(cell, self._kept(cell, state)))
                cell = self._decide(cell, state, state[place.sticky])
            else:
                cell, met = self._met(cell, state)
                blocks += met
        return Step(blocks, None)

    def _met(self, cell: Cell, state: Slots) -> tuple[Cell | None, tuple[Place, ...]]:
        """Go on at a tied place: through it for the first time, or as it was decided then."""
        place, slot = cell.place, cell.place.met
        assert slot is not None
        if state[slot] is not ABSENT:
            return self._cell(place, cell.rest, replays=True), ()
        if place.exposed <= {slot}:
            state[slot] = True
            return cell.rest, (place,)
        return self._cell(place, cell.rest, opens=True), ()

    def _compiled(self, cell: Cell) -> Run:
        """What is done from a cell on whatever the state: up to a decision or a tied place."""
        acts: list[Any] = []
        blocks: list[Place] = []
        at: Cell | None = cell
        while at is not None:
            place = at.place
            if at.closes:
                acts += place.closing
                acts += [(place.met, True)] if place.met is not None else []
                acts += [(slot, ABSENT) for slot in place.own]
                at = at.rest
            elif at.opens:
                if place.gene is not None:
                    break
                acts += [(slot, place.values[0]) for slot in place.sets]
                at = self._entered(at, 0)
            elif place.met is not None and not at.replays:
                break
            elif at.replays and not place.spoken:
                at = at.rest
            elif not place.exposed:
                blocks.append(place)
                at = at.rest
            else:
                at = self._cell(place, at.rest, replays=at.replays, opens=True)
        cell.run = Run(tuple(acts), tuple(blocks), at)
        return cell.run

    def _decide(self, cell: Cell, state: Slots, option: int, value: Any = ABSENT) -> Cell | None:
        """Note a decision and enter its branch. `value` stands for that of a continuous gene."""
        place = cell.place
        for slot in place.sets:
            state[slot] = place.values[option] if value is ABSENT else value
        if place.sticky is not None:
            state[place.sticky] = option
        return self._entered(cell, option)

    def _entered(self, cell: Cell, option: int) -> Cell | None:
        if option not in cell.next:
            place, rest = cell.place, cell.rest
            if place.closing or place.own or place.met is not None:
                rest = self._cell(place, rest, replays=cell.replays, closes=True)
            for below in reversed(place.branch(option)):
                rest = self._cell(below, rest, replays=cell.replays)
            cell.next[option] = rest
        return cell.next[option]

    def _kept(self, cell: Cell, state: Slots) -> State:
        """The state without what nothing ahead depends on."""
        for slot in cell.forgets:
            state[slot] = ABSENT
        return tuple(state)

    def _cell(self, place: Place, rest: Cell | None, *, replays: bool = False, opens: bool = False,
              closes: bool = False) -> Cell:
        role = (replays, opens, closes)
        own = (id(place), id(rest), role)
        if own not in self._cells:
            key = self._keys.setdefault((place.shape, rest.key if rest else None, role), len(self._keys))
            cell = Cell(place, rest, key, *role)
            cell.forgets = tuple(slot for slot in range(self.num_slots) if slot not in cell.exposed)
            self._cells[own] = cell
        return self._cells[own]


class _Finish:
    """Finds what each place shares with the rest, gives ties their slots, and tells places apart by their shape."""

    def __init__(self, walk: Walk, binder: Binder):
        self.walk, self.binder = walk, binder
        self.spoken(walk.root)
        self.tie()
        self.expose(walk.root)

    def spoken(self, place: Place) -> frozenset[int]:
        """The slots of constraints that a place shares with the rest."""
        found = _marked(place).union(*(self.spoken(below) for below in place.inner))
        place.spoken = found - frozenset(place.own)
        return place.spoken

    def tie(self) -> None:
        """Slots for what is decided once: whether a tied place was walked, and the options that are needed again."""
        everywhere = list(self.walk.root.walk())
        counts = {place.gene.path for place in everywhere if place.shares_count and place.gene is not None}
        heard = {below.gene.path for place in everywhere if place.tie is not None for below in place.walk()
                 if below.spoken and below.gene is not None and below.gene.options is not None}
        uses: dict[tuple[str, Hashable], list[Place]] = {}
        for place in everywhere:
            path = place.gene.path if place.gene is not None else None
            if path in counts or path in heard:
                uses.setdefault(("sticky", path), []).append(place)
            if place.tie is not None and not (path in counts and place.kind != "repeat"):
                uses.setdefault(("met", place.tie), []).append(place)
        for (kind, _), places in uses.items():
            if len(places) > 1:
                slot, self.walk.num_slots = self.walk.num_slots, self.walk.num_slots + 1
                self.binder.lowest(places).own.append(slot)
                for place in places:
                    setattr(place, kind, slot)

    def expose(self, place: Place) -> None:
        for below in place.inner:
            self.expose(below)
        own = frozenset(slot for slot in (place.sticky, place.met) if slot is not None)
        found = _marked(place).union(own, *(below.exposed for below in place.inner))
        place.exposed = found - frozenset(place.own)
        place.is_free = not found and not place.closing and all(below.is_free for below in place.inner)
        place.is_idle = place.gene is None and place.is_free and all(below.is_idle for below in place.inner)
        place.shape = self.walk._shapes.setdefault(self._form(place), len(self.walk._shapes))

    def _form(self, place: Place) -> Hashable:
        """What is equal for places that are walked alike."""
        gene = place.gene
        options: Hashable = None if gene is None else (gene.options, gene.path if gene.options is None else None)
        return (place.kind, options, tuple(map(_hashable, place.values)), tuple(below.shape for below in place.inner),
                tuple(place.sets), tuple(sorted(place.own)), tuple(place.closing), place.sticky, place.met)


def _marked(place: Place) -> frozenset[int]:
    found = set(place.sets)
    for action in place.closing:
        found.update(action.slots)                                                    # type: ignore[attr-defined]
        if getattr(action, "pending", None) is not None:
            found.add(action.pending)                                                 # type: ignore[attr-defined]
    return frozenset(found)


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value
