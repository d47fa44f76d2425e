"""The space: a tree of frozen dataclasses with choices anywhere in it, and everything a search asks of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .choices import Choice
from .compiled.checking import check_space
from .compiled.compiling import DROPPED, Compiler
from .compiled.outline import Outline
from .compiled.spec import Gene, Node, variants
from .constraints.rules import listed
from .constraints.ruling import Ruling
from .constraints.stored import rules_from, to_stored
from .counting.estimating import SizeEstimate, estimate_size, numbering, sample_uniform
from .counting.indexing import in_order
from .counting.sampling import Acceptance, acceptance, draw, fill, stratified
from .elastic.layout import MAX_VARIANTS, Homes, Site, Survey, layers_of, loop_sites
from .encoding import Encoder
from .genome import Decision, Genome
from .operator import Operator
from .plan import Loop, Once, Plan
from .stored.serialise import SCHEMA_VERSION, from_plain, to_plain
from .stored.versions import upgraded
from .variation.crossing import crossover
from .variation.distance import distance
from .variation.editing import settlers
from .variation.variation import mutate, neighbours

if TYPE_CHECKING:
    from .architecture import Architecture

__all__ = ["Space"]


class Space:
    """Architectures as a tree of decisions.

    embed, head: operators of those kinds. width: a number or a choice of numbers. body: `repeat(block, times)`, a `Block`,
    a choice of blocks, or a tuple of those, run in order. recursion: `Once()`, `Loop(...)` or a choice. norm: the final
    norm. constraints: declared rules over decisions and costs (see `constraints.words`), objectives with a bound, and
    functions of a resolved `Plan` that return whether it is allowed.

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
                 constraints: Sequence[Any] = ()):
        from .operators.rmsnorm import RMSNorm

        self.definition = {"embed": embed, "width": width, "body": body, "recursion": recursion or Once(),
                           "head": _for_embedding(head, embed), "norm": norm or RMSNorm()}
        self.constraints = listed(constraints)
        self._compile()
        check_space(self)

    def _compile(self) -> None:
        compiler = Compiler()                          # one for all fields, so that an object tied across them is seen
        self._nodes = {name: compiler.compile(part, name, DROPPED if name == "body" else None)
                       for name, part in self.definition.items()}
        self.genes: tuple[Gene, ...] = tuple({g.path: g for node in self._nodes.values() for g in node.genes}.values())
        self._gene_by_path = {g.path: g for g in self.genes}
        self.outline = Outline(tuple(self._nodes.values()))
        self._settlers = settlers(self._nodes)
        self._settled: Genome | None = None
        self.ruling = Ruling(self._nodes, self.constraints)

    def __repr__(self) -> str:
        return f"Space({len(self.genes)} genes, hash {self.hash[:8]})"

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self.definition, "constraints": self.constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.definition, self.constraints = state["definition"], state["constraints"]
        self._compile()

    # -- genomes -------------------------------------------------------------------------------------------------

    def sample(self, seed_or_rng: int | random.Random = 0) -> Architecture:
        """A random architecture that keeps the constraints: see `sample_genome`. An int seeds a fresh generator."""
        rng = seed_or_rng if isinstance(seed_or_rng, random.Random) else random.Random(seed_or_rng)
        drawn = draw(self, rng)
        return drawn.architecture or self.architecture(drawn.genome)

    def sample_genome(self, rng: random.Random) -> Genome:
        """A random canonical genome that keeps the constraints. Raises BodyplanError when none is found.

        Every decision is uniform over the options that the rules over decisions leave it; rules over costs reject. Where
        they accept almost nothing the draw is repaired, and `is_repaired` says so.
        """
        return draw(self, rng).genome

    def is_repaired(self, genome: Genome) -> bool:
        """Whether `sample_genome` has come by this genome by repair, which prefers some genomes to others."""
        return hash(genome) in self.ruling.repaired

    @property
    def acceptance(self) -> Acceptance:
        """How many random genomes keep the constraints that cannot be pruned by, with an interval."""
        return acceptance(self)

    def sample_uniform(self, rng: random.Random) -> Genome:
        """A genome of the space, each exactly as likely as any other; it need not be canonical.

        Raises NotCountable for a continuous gene, BodyplanError where constraints that are not counted reject nearly all.
        """
        return sample_uniform(self, rng)

    def sample_stratified(self, n: int, axis: str | Callable[[Architecture], float], rng: random.Random,
                          pool: int | None = None) -> list[Architecture]:
        """`n` architectures spread over a cost ("parameters", "macs", ..., or a function), from small to large."""
        return stratified(self, n, axis, rng, pool)

    def violated(self, genome: Genome) -> list[str]:
        """Names of the constraints that `genome` breaks."""
        return self.ruling.violated(genome, lambda: self.architecture(genome)) if self.constraints else []

    def _fill(self, known: Mapping[str, Decision], rng: random.Random) -> Genome:
        """Walk the space with the decisions in `known`, drawing the rest; rules over decisions come first."""
        if self.ruling.prunes:
            return fill(self, known, rng)
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

        Dead genes are dropped. An item of a stream without any sublayer moves out, or to the end where depth cannot
        shrink. A candidate that resolves to what another one is becomes that one (`Loop(times=1)` is `Once()`).
        """
        if genome is self._settled:
            return genome
        decisions = dict(genome)
        made: dict[str, Decision] = {}

        def decide(gene: Gene) -> Decision:
            made[gene.path] = decision = decisions[gene.path]
            return decision

        try:
            for settle in self._settlers:
                settle(decisions)
            self._resolve(decide)
        except (KeyError, IndexError, TypeError):
            self._check_decisions(genome)
            raise
        self._settled = Genome(made)                   # asked for again by the architecture of what was just drawn
        return self._settled

    def architecture(self, genome: Genome) -> Architecture:
        """The architecture of `genome`. Raises ValueError when the genome is not of this space."""
        from .architecture import Architecture

        return Architecture(self, genome)

    def plan(self, genome: Genome) -> tuple[Plan, Homes]:
        """The resolved plan, and what `layout.addresses` needs to say where its weights live."""
        try:
            parts = self._resolve(lambda gene: genome[gene.path])
        except (KeyError, IndexError, TypeError):
            self.validate(genome)
            raise
        layers, where = layers_of(parts["body"])
        values = {name: value for name, (value, _) in parts.items()}
        plan = Plan(values["embed"], values["width"], layers, values["recursion"], values["head"], values["norm"])
        return plan, (parts, layers, where)

    # -- variation -----------------------------------------------------------------------------------------------

    def mutate(self, genome: Genome, rng: random.Random) -> Genome:
        """Another genome near `genome`: a decision or subtree drawn anew, a number resized, layers edited (`variation`)."""
        return mutate(self, genome, rng)

    def crossover(self, a: Genome, b: Genome, rng: random.Random) -> Genome:
        """A child whose parts come whole from one parent or the other: a layer, a field, an element of a tuple."""
        return crossover(self, a, b, rng)

    def neighbours(self, genome: Genome) -> Iterator[Genome]:
        """Every canonical genome one edit away, each once, in a fixed order: one decision, or layers edited.

        New decisions stand at their first options. Every canonical genome is reached in the end where no constraint is
        in the way.
        """
        return neighbours(self, genome)

    def distance(self, a: Genome, b: Genome) -> float:
        """How far apart two genomes are, in decisions: a metric that aligns layers and counts numbers by their step."""
        return distance(self, a, b)

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
        """How many genomes `enumerate` yields, exactly.

        Raises NotCountable, naming what stands in the way: a continuous gene, a constraint of too many states.
        """
        return numbering(self).size

    def estimate_size(self, samples: int = 1000, seed: int = 0) -> SizeEstimate:
        """The size as an interval, from the share of uniform genomes that keep the constraints that are not counted."""
        return estimate_size(self, samples, seed)

    def enumerate(self) -> Iterator[Genome]:
        """Every genome that keeps the constraints, in a fixed order (dead genes are never in a genome)."""
        return (genome for genome in map(Genome, in_order(self.ruling.counter)) if not self.violated(genome))

    def index(self, genome: Genome) -> int:
        """The place of a genome in `enumerate`. Raises ValueError for one of another space, NotCountable as `size`."""
        self.validate(genome)
        return numbering(self).index(genome)

    def genome(self, index: int) -> Genome:
        """The genome at a place in `enumerate`, found without enumerating. Raises IndexError, NotCountable as `size`."""
        return numbering(self).genome(index)

    def complete(self, genome: Genome) -> dict[str, Decision]:
        """Every gene of the space: the genome's decisions, and the first option of inactive genes."""
        return {g.path: genome.get(g.path, (g.options or (g.low,))[0]) for g in self.genes}

    def from_complete(self, decisions: Mapping[str, Decision]) -> Genome:
        """The canonical genome of a complete assignment; inactive decisions are ignored."""
        return self.canonical(self._first(decisions))

    @cached_property
    def encoder(self) -> Encoder:
        """The layout of the vectors of `encode`."""
        return Encoder(self.genes)

    def encode(self, genome: Genome) -> np.ndarray:
        """Features of fixed length, float64: one-hot per choice (all zero when inactive), scaled number and activity."""
        return self.encoder.encode(genome)

    def decode(self, vector: np.ndarray) -> Genome:
        """The canonical genome of a vector: of `encode(genome)` that genome, of any other one the nearest option per gene.

        Constraints are not repaired. Continuous numbers are read back to twelve significant digits of their range.
        """
        return self.from_complete(self.encoder.decode(vector))

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
                "constraints": to_stored(self.ruling.rules)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Space:
        """Read what `to_json` wrote. Raises ValueError for constraints and operators that are code of the user's own."""
        stored = upgraded(stored, "space")
        rules = rules_from(stored["constraints"])
        return cls(**from_plain(stored["definition"]), constraints=rules)

    @property
    def hash(self) -> str:
        """SHA-256 of the definition: a journal refuses to go on with another one."""
        if not hasattr(self, "_hash"):
            text = json.dumps(self.to_json(), sort_keys=True)
            self._hash = hashlib.sha256(text.encode()).hexdigest()
        return self._hash

    def operators(self) -> Iterator[tuple[str, list[Operator]]]:
        """(weight address, variants) of every operator that may be built."""
        yield from ((site.address, site.operators) for site in self.sites())

    def sites(self) -> list[Site]:
        """Every place for weights; supernets lay them out from it."""
        return self._surveyed()[0]

    def loops(self) -> list[tuple[str, list[Loop], list[Site]]]:
        """(address, recursions, sites inside) of every loop that may be built."""
        return self._surveyed()[1]

    def _surveyed(self) -> tuple[list[Site], list[tuple[str, list[Loop], list[Site]]]]:
        if not hasattr(self, "_survey"):
            widths, ends, body = frozenset(self.widths()), Survey(), Survey()
            ends.visit(self._nodes["embed"], widths)
            leaving = body.visit(self._nodes["body"], widths)
            for name in ("norm", "head"):
                ends.visit(self._nodes[name], leaving)
            loops = [(home, found, body.sites) for home, found in loop_sites(self._nodes["recursion"])]
            self._survey = [*ends.sites, *body.sites], [*body.loops, *loops]
        return self._survey

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


