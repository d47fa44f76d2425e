"""Random small spaces, for properties that must hold in every space.

`random_space(seed)` holds nested choices, ties, repeats, subsets, permutations, optionals, rules and macros, at most `limit`
genomes, and is the same for the same seed; `spaces()` is the hypothesis strategy. `genomes_of` lists its genomes.
"""

import itertools
import random

import bodyplan as bp
from bodyplan.space.choices import choice, integer, optional, permutation, real, repeat, subset, tied
from bodyplan.space.grammar import rule
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.parallel import Parallel
from hypothesis import strategies as st

LIMIT = 500


def spaces(limit=LIMIT, constraints=()):
    """Random spaces of 2 to `limit` genomes; a failing example is named by its seed."""
    return st.integers(0, 100_000).map(lambda seed: random_space(seed, limit, constraints))


def random_space(seed, limit=LIMIT, constraints=()):
    """The space of a seed."""
    rng = random.Random(seed)
    while True:
        draft = _Draft(rng)
        try:
            space = bp.Space(embed=bp.TokenEmbedding(vocab=8), width=draft.width(), body=draft.body(),
                             recursion=draft.recursion(), head=bp.LanguageHead(tied=True), constraints=constraints)
        except ValueError:                       # equal candidates, or nothing in parallel: drawn again
            continue
        if 2 <= len(genomes_of(space, limit + 1)) <= limit:
            space.seed = seed
            return space


def genomes_of(space, limit=None):
    """The first genomes of a space."""
    return list(itertools.islice(space.enumerate(), limit))


class _Draft:
    """One space in the making. Ties are shared between all its parts."""

    def __init__(self, rng):
        self.rng = rng
        self.heads = tied(choice(1, 2))
        self.kernel = tied(choice(3, 4))
        self.layer = tied(bp.Block(mixer=bp.Attention(heads=choice(1, 2))))
        self.times = tied(integer(1, 2))

    def width(self):
        return self.rng.choice([8, 8, choice(8, 16), tied(choice(8, 16))])

    def recursion(self):
        return self.rng.choice([bp.Once(), bp.Once(), choice(bp.Once(), bp.Loop(times=2)),
                                choice(bp.Loop(times=choice(1, 2)), bp.Once())])

    def body(self):
        return self.rng.choice([lambda: self.item(2), lambda: repeat(self.item(1), self.counts()),
                                lambda: (self.item(1), self.item(1))])()

    def item(self, depth):
        """Something that may stand in a body."""
        if depth == 0:
            return self.rng.choice([self.block, self.block, self.block, lambda: self.layer])()
        kinds = [self.block, self.row, self.one_of, self.maybe, self.layers, self.layers, self.some, self.ordered,
                 self.nested, self.looped, lambda: tied(self.item(depth - 1))]
        made = self.rng.choice(kinds)
        return made() if made in (self.block, self.nested) or made.__name__ == "<lambda>" else made(depth - 1)

    def row(self, depth):
        return self.item(depth), self.item(depth)

    def one_of(self, depth):
        return choice(self.item(depth), self.item(depth))

    def maybe(self, depth):
        return optional(self.item(depth))

    def layers(self, depth):
        keep = self.rng.choice(["first", "first", "any"])
        return repeat(self.item(depth), self.counts() if keep == "any" or self.rng.random() < 0.8 else self.times, keep)

    def some(self, depth):
        return subset(*(self.item(depth) for _ in range(3)), size=self.rng.choice([1, 2, (0, 2), (1, 3)]),
                      ordered=self.rng.random() < 0.3)

    def ordered(self, depth):
        return permutation(*(self.item(depth) for _ in range(self.rng.choice([2, 3]))))

    def looped(self, depth):
        return Looped(layers=self.item(depth), recursion=choice(bp.Once(), bp.Loop(times=2)))

    def nested(self):
        return rule(lambda itself: choice(self.block(), (self.block(), itself)), depth=2)

    def counts(self):
        return self.rng.choice([2, integer(0, 2), integer(1, 2), integer(1, 3), choice(1, 3), choice(3, 0)])

    def block(self):
        return bp.Block(mixer=self.mixer(), channel=self.channel())

    def mixer(self):
        return self.rng.choice([
            lambda: bp.Identity(), lambda: bp.Attention(heads=self.rng.choice([1, choice(1, 2), self.heads])),
            lambda: bp.ShortConv(kernel=self.rng.choice([3, self.kernel])),
            lambda: optional(bp.Attention(heads=2, window=optional(8))),
            lambda: choice(bp.Identity(), bp.ShortConv(kernel=choice(3, 4)), optional(bp.Attention(heads=1))),
            lambda: Parallel(branches=(bp.Attention(heads=1), choice(bp.Identity(), bp.ShortConv()))),
            lambda: Parallel(branches=repeat(choice(bp.ShortConv(), bp.Identity()), integer(1, 2)))])()

    def channel(self):
        return self.rng.choice([
            lambda: bp.Identity(), lambda: bp.MLP(ratio=self.rng.choice([1, real(1.0, 2.0, step=0.5), integer(1, 3)])),
            lambda: choice(bp.MLP(ratio=choice(2, 1)), bp.Identity()), lambda: optional(bp.MLP(ratio=2))])()
