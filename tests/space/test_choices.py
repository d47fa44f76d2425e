"""The vocabulary: what every word decides, what it leaves out, and what it refuses."""

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

import bodyplan as bp
import pytest
from bodyplan.space.choices import (
    Absent,
    Choice,
    choice,
    integer,
    optional,
    permutation,
    real,
    repeat,
    subset,
    tied,
)
from bodyplan.space.compiled.compiling import DROPPED, Compiler
from bodyplan.space.compiled.spec import variants, walks
from bodyplan.space.grammar import rule
from bodyplan.space.macros.parallel import Parallel
from bodyplan.space.operator import Operator
from example_spaces import make
from random_spaces import genomes_of, random_space

ATTENTION = bp.Block(mixer=bp.Attention(heads=2))
MLP = bp.Block(channel=bp.MLP(ratio=2))
CONV = bp.Block(mixer=bp.ShortConv(kernel=3))


def resolved(item, absent=None):
    """The values of everything `item` may be, in the order of its options."""
    node = Compiler().compile(item, "x", absent)
    return list(walks(lambda decide: node.resolve(decide)[0], lambda gene: gene.options))


def bodies(body):
    """The layers of every architecture with this body, and of each layer its slot."""
    space = make(width=32, body=body, recursion=bp.Once())
    return [space.architecture(genome).plan.layers for genome in genomes_of(space)]


# -- subset and permutation ------------------------------------------------------------------------------------------


def test_a_subset_offers_every_combination_in_the_given_order():
    assert resolved(subset("a", "b", "c", size=(1, 2))) == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize("size", [0, 1, 3, (0, 4), (2, 3)])
def test_an_ordered_subset_offers_every_k_permutation(size):
    low, high = size if isinstance(size, tuple) else (size, size)
    wanted = [p for k in range(low, high + 1) for p in itertools.permutations("abcd", k)]
    assert resolved(subset(*"abcd", size=size, ordered=True)) == wanted


def test_a_permutation_offers_every_order():
    assert resolved(permutation(*"abcd")) == list(itertools.permutations("abcd"))
    assert len(resolved(permutation(*range(8)))) == math.factorial(8)


def test_permuted_layers_keep_their_weights():
    space = make(width=32, body=permutation(ATTENTION, MLP, CONV), recursion=bp.Once())
    homes = [set(space.architecture(genome).weight_addresses.values()) for genome in genomes_of(space)]
    assert len(homes) == 6
    assert all(home == homes[0] for home in homes)


# -- optional ----------------------------------------------------------------------------------------------------------


def test_what_is_absent_from_a_body_is_no_layer():
    assert bodies((optional(ATTENTION), MLP, optional(CONV))) == [
        (MLP,), (MLP, CONV), (ATTENTION, MLP), (ATTENTION, MLP, CONV)]
    assert bodies(optional(ATTENTION)) == [(), (ATTENTION,)]
    assert bodies(repeat(optional(MLP), times=2)) == [(), (MLP,), (MLP,), (MLP, MLP)]


def test_what_is_absent_from_a_block_is_identity():
    found = [layer.mixer for (layer,) in bodies(bp.Block(mixer=optional(bp.Attention(heads=2)), channel=bp.MLP()))]
    assert found == [bp.Identity(), bp.Attention(heads=2)]


def test_what_is_absent_from_a_field_is_none():
    assert [layer.mixer.window for (layer,) in bodies(bp.Block(mixer=bp.Attention(heads=2, window=optional(8))))] == [None, 8]


def test_what_is_absent_from_branches_and_tuples_is_left_out():
    both = bp.Block(mixer=Parallel(branches=(bp.Attention(heads=2), optional(bp.ShortConv()))))
    assert [len(layer.mixer.branches) for (layer,) in bodies(both)] == [1, 2]
    assert resolved((1, optional(2), choice(3, optional(4)))) == [(1, 3), (1,), (1, 4), (1, 2, 3), (1, 2), (1, 2, 4)]


def test_an_optional_is_a_choice_with_nothing_first():
    assert optional(4) == Choice((Absent(), 4))
    assert make(body=optional(MLP)).genes[1].labels[0] == "absent"


def test_a_tied_optional_is_one_decision_in_places_of_one_kind():
    shared = tied(optional(bp.Attention(heads=2)))
    pairs = bodies((bp.Block(mixer=shared, channel=bp.MLP()), bp.Block(mixer=shared, channel=bp.MLP())))
    assert [[type(layer.mixer).__name__ for layer in layers] for layers in pairs] == [["Identity"] * 2, ["Attention"] * 2]
    layer = tied(optional(ATTENTION))
    with pytest.raises(ValueError, match="places of one kind"):
        Compiler().compile((layer, Parallel(branches=layer)), "x")


# -- repeat --------------------------------------------------------------------------------------------------------------


def test_any_layers_are_kept_with_their_own_decisions_and_weights():
    layers = repeat(bp.Block(mixer=bp.Attention(heads=choice(1, 2))), times=choice(1, 3), keep="any")
    space = make(width=32, body=layers, recursion=bp.Once())
    assert space.size() == 3 * 2 + 2 ** 3
    homes = {}
    for genome in genomes_of(space):
        found = {a.split(".")[0] for a in space.architecture(genome).weight_addresses.values() if a.startswith("body")}
        homes.setdefault(genome["body.kept"], found)
    assert homes[(1,)] == {"body[1]"}
    assert homes[(0, 1, 2)] == {"body[0]", "body[1]", "body[2]"}


def test_what_stands_for_several_layers_is_spliced_in():
    inner = (ATTENTION, repeat(MLP, times=2))
    assert bodies(repeat((inner, optional(CONV)), times=2))[0] == (ATTENTION, MLP, MLP) * 2
    assert bodies(choice(subset(MLP, CONV, size=2), inner)) == [(MLP, CONV), (ATTENTION, MLP, MLP)]


def test_every_position_has_a_slot_of_its_own_also_when_layers_are_tied():
    row = tied((ATTENTION, optional(bp.Block(channel=bp.MLP(ratio=choice(1, 2))))))
    space = make(width=32, body=(repeat(row, times=2), row), recursion=bp.Once())
    full = space.architecture(space.largest())
    assert len(full.plan.layers) == 6
    assert len(set(full.weight_addresses.values())) == len(full.weight_addresses)
    assert set(full.weight_addresses.values()) <= set(bp.Supernet(space).tensors)


# -- rule ----------------------------------------------------------------------------------------------------------------


def count_trees(depth):
    """Binary trees of at most `depth` levels: 1, 1 + 1, 1 + 2^2, ..."""
    return 1 if depth == 1 else 1 + count_trees(depth - 1) ** 2


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_rule_makes_every_tree_down_to_its_depth(depth):
    body = rule(lambda itself: choice(MLP, (ATTENTION, itself, itself)), depth=depth)
    space = make(width=32, body=body, recursion=bp.Once())
    assert space.size() == count_trees(depth) == len(set(genomes_of(space)))


def test_a_rule_leaves_out_what_cannot_end():
    def at_last_level(item):
        return rule(lambda itself: choice(1, item(itself)), depth=1).unrolled

    assert at_last_level(lambda itself: (2, itself)) == choice(1)
    assert at_last_level(lambda itself: (2, optional(itself))) == choice(1, (2, Choice((Absent(),))))
    assert at_last_level(lambda itself: repeat(itself, times=integer(0, 2))) == choice(1, ())
    assert at_last_level(lambda itself: subset(2, 3, itself, size=(1, 3))) == choice(1, subset(2, 3, size=(1, 2)))
    assert at_last_level(lambda itself: permutation(2, itself)) == choice(1)
    assert at_last_level(lambda itself: tied((2, itself))) == choice(1)
    assert at_last_level(lambda itself: bp.Block(mixer=Parallel(branches=(itself, itself)))) == choice(1)


def test_rules_call_each_other_and_keep_ties_across_levels():
    heads = tied(choice(1, 2))
    attention = bp.Block(mixer=bp.Attention(heads=heads))
    body = rule(lambda outer: choice(attention, (MLP, rule(lambda inner: choice(outer, (CONV, inner)), depth=2))), depth=2)
    space = make(width=32, body=body, recursion=bp.Once())
    assert [gene.path for gene in space.genes if gene.path.endswith("heads")] == ["body.0.mixer.heads"]
    assert {tuple(type(layer.mixer).__name__ for layer in layers) for layers in bodies(body)} == {
        ("Attention",), ("Identity", "Attention"), ("Identity", "ShortConv", "Attention")}


def test_a_symbol_outside_its_rule_is_refused():
    escaped = []
    rule(lambda itself: escaped.append(itself) or choice(MLP, (MLP, itself)), depth=2)
    with pytest.raises(ValueError, match=r"only inside the rule: got one at body\.0"):
        make(body=(escaped[0],))


# -- dataclasses of the user's own -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    size: Any = 1
    marks: Any = ()


@dataclass(frozen=True)
class _Shaped(Operator):
    shape: Any = Shape()
    more: Any = ()

    def axes(self, width):
        return {}


def test_any_frozen_dataclass_holds_choices():
    layer = bp.Block(mixer=_Shaped(shape=choice(Shape(), Shape(size=integer(2, 3), marks=subset("a", "b", size=1))),
                                   more=(1, Shape(size=optional(5)))))
    found = [layer.mixer for (layer,) in bodies(layer)]
    shapes = [Shape(), *(Shape(size, (mark,)) for size in (2, 3) for mark in "ab")]
    assert found == [_Shaped(shape, (1, Shape(size))) for shape in shapes for size in (None, 5)]


# -- variants ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_variants_are_all_the_values_there_are(seed):
    space = random_space(seed)
    node = space.node("body")
    wanted = set(walks(lambda decide: node.resolve(decide)[0], lambda gene: gene.options))
    found = list(variants(node, 4096))
    assert set(found) == wanted


def test_variants_of_too_many_hold_both_ends_and_every_option():
    heads = [integer(1, 64) for _ in range(4)]
    ends = set(variants(Compiler().compile(tuple(heads), "x"), 100))
    assert ends == set(itertools.product((1, 64), repeat=4))
    many = list(variants(Compiler().compile(tuple(choice(*range(9)) for _ in range(9)), "x"), 50))
    assert {(0,) * 9, (8,) * 9} <= set(many)
    assert all({values[place] for values in many} == set(range(9)) for place in range(9))
    assert len(many) < 500


# -- genes -------------------------------------------------------------------------------------------------------------------


def test_a_decision_must_be_an_option_of_the_same_type():
    gene = Compiler().compile(integer(1, 3), "x").genes[0]
    assert gene.contains(1)
    assert not any(gene.contains(wrong) for wrong in (True, 1.0, 4, (1,), [1], None))


@pytest.mark.parametrize("number", [real(0.1, 0.7), real(1e-6, 1e-1, log=True), real(-3.0, 1e6), real(2.5, 2.5)])
def test_continuous_decisions_are_round_decimals_inside_their_range(number):
    gene, rng = Compiler().compile(number, "x").genes[0], random.Random(0)
    for _ in range(50):
        drawn = gene.sample(rng)
        assert gene.contains(drawn)
        assert gene.rounded(drawn) == drawn


def test_what_is_dropped_leaves_neither_value_nor_address():
    assert Compiler().compile(Absent(), "x", DROPPED).resolve(None) == ((), ())


REFUSED = {
    "no candidates": (lambda: choice(), ValueError, "at least one candidate"),
    "one list": (lambda: choice([1, 2]), TypeError, r"write choice\(\*candidates\)"),
    "equal candidates": (lambda: choice(1, 2, 1), ValueError, "candidates of a choice must differ: 1 stands twice"),
    "off the grid": (lambda: integer(4, 9, step=2), ValueError, "use high=8 or high=10"),
    "bounds swapped": (lambda: integer(9, 4), ValueError, "swap them"),
    "not whole": (lambda: integer(1, 2.5), TypeError, r"integer\(high=\) must be an int: got 2.5"),
    "no step": (lambda: integer(1, 2, step=0), ValueError, "step of at least 1"),
    "real off the grid": (lambda: real(0, 1, step=0.3), ValueError, "use high=0.9 or high=1.2"),
    "real of text": (lambda: real("a", 1), TypeError, r"real\(low=\) must be a number"),
    "infinite": (lambda: real(0, math.inf), ValueError, "finite"),
    "negative step": (lambda: real(0, 1, step=-1), ValueError, "positive step"),
    "logarithm of zero": (lambda: real(0, 1, log=True), ValueError, "low > 0"),
    "step and logarithm": (lambda: real(1, 3, step=1, log=True), ValueError, "not both"),
    "subset too large": (lambda: subset(1, 2, size=3), ValueError, "0 <= size <= 2"),
    "subset of half": (lambda: subset(1, 2, size=0.5), TypeError, "must be an int or two of them"),
    "subset of equals": (lambda: subset(1, 1, size=1), ValueError, "candidates of a subset must differ"),
    "too many subsets": (lambda: subset(*range(20), size=(0, 20)), ValueError, "got 1048576"),
    "nine permuted": (lambda: permutation(*range(9)), ValueError, "at most 8 items, which have 40320 orders: got 9"),
    "none permuted": (lambda: permutation(), ValueError, "at least one item"),
    "optional nothing": (lambda: optional(None), ValueError, "what may be absent"),
    "twice optional": (lambda: optional(optional(1)), ValueError, "decides twice"),
    "any of many": (lambda: repeat(MLP, integer(0, 13), keep="any"), ValueError, "at most 4096 sets of layers: got 8192"),
    "any of tied": (lambda: repeat(MLP, tied(integer(0, 3)), keep="any"), ValueError, "cannot be tied"),
    "keep what": (lambda: repeat(MLP, 2, keep="last"), ValueError, "'first' or 'any'"),
    "rule of no function": (lambda: rule(MLP, depth=2), TypeError, "takes a function"),
    "rule without depth": (lambda: rule(lambda itself: MLP, depth=0), ValueError, "at least 1"),
    "endless rule": (lambda: rule(lambda itself: (MLP, itself), depth=3), ValueError, "a rule must end"),
    "exploding rule": (lambda: rule(lambda itself: choice(MLP, (itself,) * 8), depth=9), ValueError, "at most 20000 places"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_words_refuse_what_cannot_be_meant(case):
    write, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        write()
