"""The space: a tree of frozen dataclasses with choices anywhere in it, and everything a search asks of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BodyplanError
from .checking import check_space
from .choices import Choice
from .counting import NotCountable, count
from .editing import compact, edit_layers, once_aliases
from .genome import Decision, Genome
from .layout import MAX_VARIANTS, body_operators, field_operators, layers_of, module_addresses, walk
from .operator import Operator
from .plan import Once, Plan
from .serialise import SCHEMA_VERSION, from_plain, to_plain
from .spec import (
    Compiler,
    Gene,
    Node,
    RepeatNode,
    variants,
)

if TYPE_CHECKING:
    from .architecture import Architecture

__all__ = ["Space"]

MAX_TRIES = 10_000


class Space:
    """Architectures as a tree of decisions.

    embed, head: operators of those kinds. width: a number or a choice of numbers. body: `repeat(block, times)`, a `Block`,
    a choice of blocks, or a tuple of those, run in order. recursion: `Once()`, `Loop(...)` or a choice. norm: the final
    norm. constraints: functions of a resolved `Plan` that return whether it is allowed.

    Everything is validated here: operators that cannot be built at some reachable size raise ValueError naming the place.

    Example:
        >>> import bodyplan as bp
        >>> space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64),
        ...                  body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4))), times=bp.integer(1, 2)),
        ...                  head=bp.LanguageHead(tied=True))
        >>> space.size()
        12
    """

    def __init__(self, *, embed: Any, width: Any, body: Any, head: Any, recursion: Any = None, norm: Any = None,
                 constraints: Sequence[Callable[[Plan], bool]] = ()):
        from .operators.rmsnorm import RMSNorm

        self.definition = {"embed": embed, "width": width, "body": body, "recursion": recursion or Once(),
                           "head": _for_embedding(head, embed), "norm": norm or RMSNorm()}
        self.constraints = tuple(constraints)
        self._compile()
        check_space(self)

    def _compile(self) -> None:
        compiler = Compiler()                          # one for all fields, so that an object tied across them is seen
        self._nodes = {name: compiler.compile(part, name) for name, part in self.definition.items()}
        self.genes: tuple[Gene, ...] = tuple({g.path: g for node in self._nodes.values() for g in node.genes}.values())
        self._gene_by_path = {g.path: g for g in self.genes}
        self._repeats = [n for n in walk(self._nodes["body"]) if isinstance(n, RepeatNode)]
        self._aliases = once_aliases(self._nodes["recursion"])

    def __repr__(self) -> str:
        return f"Space({len(self.genes)} genes, hash {self.hash[:8]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self.definition, "constraints": self.constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.definition, self.constraints = state["definition"], state["constraints"]
        self._compile()

    # -- genomes -------------------------------------------------------------------------------------------------

    def sample(self, seed_or_rng: int | random.Random = 0) -> Architecture:
        """A random architecture: every decision uniform over its options. An int seeds a fresh generator."""
        rng = seed_or_rng if isinstance(seed_or_rng, random.Random) else random.Random(seed_or_rng)
        return self.architecture(self.sample_genome(rng))

    def sample_genome(self, rng: random.Random) -> Genome:
        """A random canonical genome that satisfies the constraints. Raises BodyplanError when none is found."""
        return self._allowed(lambda: self._fill({}, rng))

    def _allowed(self, propose: Callable[[], Genome], tries: int = MAX_TRIES) -> Genome:
        for _ in range(tries if self.constraints else 1):
            genome = self.canonical(propose())
            if not self.violated(genome):
                return genome
        names = ", ".join(getattr(c, "__name__", repr(c)) for c in self.constraints)
        raise BodyplanError(f"no allowed architecture in {tries} draws: constraints {names} reject nearly all; loosen them")

    def violated(self, genome: Genome) -> list[str]:
        """Names of the constraints that `genome` breaks."""
        if not self.constraints:
            return []
        plan = self.architecture(genome).plan
        return [getattr(c, "__name__", repr(c)) for c in self.constraints if not c(plan)]

    def _fill(self, known: Mapping[str, Decision], rng: random.Random) -> Genome:
        """Walk the space with the decisions in `known`, drawing the rest."""
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            path = gene.path
            if path not in made:
                made[path] = known[path] if path in known else gene.sample(rng)
            return made[path]

        self._resolve(decide)
        return Genome(made)

    def _resolve(self, decide: Callable[[Gene], Decision]) -> dict[str, tuple[Any, Any]]:
        return {name: node.resolve(decide) for name, node in self._nodes.items()}

    def validate(self, genome: Genome) -> None:
        """Raise ValueError for a genome that is not of this space: missing, unknown or impossible decisions."""
        self._check_decisions(genome)
        extra = [path for path in genome if path not in self._gene_by_path]
        if extra:
            raise ValueError(f"a genome holds only decisions of its space: unknown {extra[0]!r}; is it of another space?")
        if self.violated(genome):
            raise ValueError(f"constraints must hold: this genome breaks {', '.join(self.violated(genome))}")

    def _check_decisions(self, genome: Genome) -> None:
        def decide(gene: Gene) -> Decision:
            decision: Decision | None = genome.get(gene.path)
            if decision is None:
                raise ValueError(f"a genome decides every active gene: nothing stands at {gene.path!r}")
            if not gene.contains(decision):
                raise ValueError(f"a decision is one of its options at {gene.path}: got {decision!r}; "
                                 f"options are {gene.options or (gene.low, gene.high)}")
            return decision

        self._resolve(decide)

    def canonical(self, genome: Genome) -> Genome:
        """The one genome that stands for all that write the same decisions.

        Dead genes are dropped, layers without any sublayer are moved out (or to the end, where depth cannot shrink), and
        `Loop(times=1)` becomes `Once()` where the space holds it.
        """
        decisions = dict(genome)
        for path, first in self._aliases.items():
            if decisions.get(path) in first:
                decisions[path] = first[decisions[path]]        # type: ignore[index]
        for node in self._repeats:
            compact(node, decisions)
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            made[gene.path] = decision = decisions[gene.path]
            return decision

        self._resolve(decide)
        return Genome(made)

    def architecture(self, genome: Genome) -> Architecture:
        """The architecture of `genome`. Raises ValueError when the genome is not of this space."""
        from .architecture import Architecture

        return Architecture(self, genome)

    def plan(self, genome: Genome) -> tuple[Plan, dict[str, str]]:
        """The resolved plan and the weight address of every module prefix."""
        try:
            parts = self._resolve(lambda gene: genome[gene.path])
        except (KeyError, IndexError, TypeError):
            self.validate(genome)
            raise
        layers, where = layers_of(parts["body"])
        values = {name: value for name, (value, _) in parts.items()}
        plan = Plan(values["embed"], values["width"], tuple(layers), values["recursion"], values["head"], values["norm"])
        return plan, module_addresses(parts, layers, where)

    # -- variation -----------------------------------------------------------------------------------------------

    def mutate(self, genome: Genome, rng: random.Random) -> Genome:
        """Another genome near `genome`: one gene redrawn, or a layer inserted, removed or swapped."""
        for _ in range(100):
            layered = [n for n in self._repeats if len(n.items) > 1]
            proposal = (self._fill(edit_layers(genome, rng.choice(layered), rng), rng)
                        if layered and rng.random() < 0.3 else self._redraw(genome, rng))
            proposal = self.canonical(proposal)
            if proposal != genome and not self.violated(proposal):
                return proposal
        return self.sample_genome(rng)

    def _redraw(self, genome: Genome, rng: random.Random) -> Genome:
        active = [self._gene_by_path[path] for path in genome]
        active = [g for g in active if g.options is None or len(g.options) > 1]
        if not active:
            return genome
        gene = rng.choice(active)
        known = dict(genome)
        while (decision := gene.sample(rng)) == known[gene.path]:
            pass
        known[gene.path] = decision
        return self._fill(known, rng)

    def crossover(self, a: Genome, b: Genome, rng: random.Random) -> Genome:
        """A child whose parts come whole from one parent or the other: a layer, or a top-level field, is a part."""
        def mixed() -> Genome:
            takes_a: dict[str, bool] = {}
            known: dict[str, Decision] = {}
            for path in {**a, **b}:
                part = path[:path.index("]") + 1] if "]" in path else path.split(".")[0]
                first, second = (a, b) if takes_a.setdefault(part, rng.random() < 0.5) else (b, a)
                known[path] = first[path] if path in first else second[path]
            return self._fill(known, rng)

        return self._allowed(mixed, 100) if self.constraints else self.canonical(mixed())

    def neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Every canonical genome one decision away; newly active decisions stand at their first option."""
        seen = {genome}
        for path in genome:
            gene = self._gene_by_path[path]
            for option in gene.options or (gene.low, gene.high):
                near = self.canonical(self._first({**genome, path: option}))
                if near not in seen and not self.violated(near):
                    seen.add(near)
                    yield near

    def _first(self, known: Mapping[str, Decision]) -> Genome:
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            if gene.path not in made:
                made[gene.path] = known.get(gene.path, (gene.options or (gene.low,))[0])
            return made[gene.path]

        self._resolve(decide)
        return Genome(made)

    # -- counting and encoding -----------------------------------------------------------------------------------

    def size(self) -> int:
        """How many genomes there are, exactly. Raises NotCountable with constraints (when large) or continuous genes."""
        total = count(tuple(self._nodes.values()))
        if not self.constraints:
            return total
        if total > 200_000:
            raise NotCountable(f"constraints are counted by enumeration up to 200000 genomes: got {total} before them")
        return sum(1 for _ in self.enumerate())

    def enumerate(self) -> Iterator[Genome]:
        """Every genome that satisfies the constraints, in a fixed order (dead genes are never in a genome)."""
        choices: list[tuple[Gene, int]] = []
        while True:
            made: dict[str, Decision] = {}
            order: list[Gene] = []

            def decide(gene: Gene, made: dict[str, Decision] = made, order: list[Gene] = order) -> Decision:
                if gene.path not in made:
                    if gene.options is None:
                        raise NotCountable(f"a continuous gene cannot be enumerated: {gene.path}; give real(...) a step")
                    index = choices[len(order)][1] if len(order) < len(choices) else 0
                    order.append(gene)
                    made[gene.path] = gene.options[index]
                return made[gene.path]

            self._resolve(decide)
            genome = Genome(made)
            if not self.violated(genome):
                yield genome
            taken = [i for _, i in choices] + [0] * (len(order) - len(choices))
            while order and taken[-1] + 1 >= len(order[-1].options or ()):
                order.pop()
                taken.pop()
            if not order:
                return
            taken[-1] += 1
            choices[:] = list(zip(order, taken, strict=True))

    def complete(self, genome: Genome) -> dict[str, Decision]:
        """Every gene of the space: the genome's decisions, and the first option of inactive genes."""
        return {g.path: genome.get(g.path, (g.options or (g.low,))[0]) for g in self.genes}

    def from_complete(self, decisions: Mapping[str, Decision]) -> Genome:
        """The canonical genome of a complete assignment; inactive decisions are ignored."""
        return self.canonical(self._first(decisions))

    def encode(self, genome: Genome) -> np.ndarray:
        """Features of fixed length, float64: one-hot per choice (all zero when inactive), scaled number and activity."""
        return np.concatenate([_encode_gene(g, genome.get(g.path)) for g in self.genes]) if self.genes else np.zeros(0)

    def labels(self, genome: Genome) -> dict[str, str]:
        """The decisions in words, by path."""
        return {path: self._gene_by_path[path].label(decision) for path, decision in genome.items()}

    def smallest(self) -> Genome:
        """The genome whose architecture has the fewest parameters among single-gene descents from the first options."""
        return _climb(self, sign=1)

    def largest(self) -> Genome:
        """The genome with the most parameters by single-gene ascent."""
        return _climb(self, sign=-1)

    # -- identity ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The definition as JSON, for journals and export; classes by name, functions by qualified name."""
        return {"schema_version": SCHEMA_VERSION, "definition": to_plain(self.definition),
                "constraints": [getattr(c, "__qualname__", repr(c)) for c in self.constraints]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Space:
        """Read what `to_json` wrote. Raises ValueError for constraints and operators that are code of the user's own."""
        if stored.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"a space of schema_version {SCHEMA_VERSION} is needed: got "
                             f"{stored.get('schema_version')!r}")
        if stored["constraints"]:
            raise ValueError("a space is read back from JSON only without code of your own: it has the constraints "
                             f"{', '.join(stored['constraints'])}; load it from the Python file that defines it")
        return cls(**from_plain(stored["definition"]))

    @property
    def hash(self) -> str:
        """SHA-256 of the definition: a journal refuses to go on with another one."""
        if not hasattr(self, "_hash"):
            text = json.dumps(self.to_json(), sort_keys=True)
            self._hash = hashlib.sha256(text.encode()).hexdigest()
        return self._hash

    def operators(self) -> Iterator[tuple[str, list[Operator]]]:
        """(weight address, variants) of every operator that may be built; supernets lay weights out from it."""
        for name in ("embed", "head", "norm"):
            yield from field_operators(self._nodes[name])
        yield from body_operators(self._nodes["body"])

    def widths(self) -> list[int]:
        """Every residual width that may be decided."""
        return list(variants(self._nodes["width"], MAX_VARIANTS)) or [self.definition["width"]]

    def node(self, name: str) -> Node:
        """The compiled node of a top-level field."""
        return self._nodes[name]


def _for_embedding(head: Any, embed: Any) -> Any:
    """The head, or each candidate of it, with the vocabulary of the embedding where it names none."""
    if isinstance(head, Choice):
        return Choice(tuple(_for_embedding(candidate, embed) for candidate in head.candidates))
    return head.for_embedding(embed) if hasattr(head, "for_embedding") and not isinstance(head, type) else head


def _encode_gene(gene: Gene, decision: Decision | None) -> np.ndarray:
    if gene.kind in ("choice", "subset"):
        assert gene.options is not None
        return np.array([float(option == decision) for option in gene.options])
    span = (gene.high - gene.low) or 1.0
    return np.array([0.0, 0.0] if decision is None else [1.0, (decision - gene.low) / span])  # type: ignore[operator]


def _climb(space: Space, sign: int) -> Genome:
    """Coordinate descent on sign * parameters, a pass over the genes at a time until nothing changes.

    Ties (attention windows, say) keep the earlier option.
    """
    genome = space.canonical(space._first({}))
    if space.violated(genome):
        genome = space.sample_genome(random.Random(0))
    best = sign * space.architecture(genome).cost().parameters
    improved = True
    while improved:
        improved = False
        for path in list(genome):
            gene = space._gene_by_path[path]
            for option in (gene.options or (gene.low, gene.high)) if path in genome else ():
                near = space.canonical(space._first({**genome, path: option}))
                value = sign * space.architecture(near).cost().parameters
                if value < best and not space.violated(near):
                    genome, best, improved = near, value, True
    return genome


