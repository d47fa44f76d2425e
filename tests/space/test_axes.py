"""Takes against plain numpy indexing, for every kind of axis, nested and combined; which of them are views."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from bodyplan.space.axes import Axis, Dim, Param, axis, flat_indices, largest, param, take
from bodyplan.space.elastic.taking import taker
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)


# -- the oracle: straight from the definitions, one dimension at a time ------------------------------------------------

def chosen(have: Axis, want: Axis) -> list[int]:
    if isinstance(want.select, tuple):
        return list(want.select)
    n, k = have.size, want.size
    if want.select == "spread":
        return [i * n // k for i in range(k)]
    middle = {"leading": 0, "trailing": n - k, "centre": (n - 1) // 2 - (k - 1) // 2}[want.select]
    return list(range(middle, middle + k))


def places(have, want) -> list[int]:
    """Which entries of a dimension (or a factor of one) are taken, in order."""
    if isinstance(have, Axis):
        return chosen(have, want)
    found, base = [], 0
    for h_factors, w_factors in zip(have.segments, want.segments, strict=True):
        sizes = [h.size for h in h_factors]
        whole = np.arange(base, base + int(np.prod(sizes))).reshape(sizes)
        picks = [places(h, w) for h, w in zip(h_factors, w_factors, strict=True)]
        found += whole[np.ix_(*picks)].ravel().tolist()
        base += whole.size
    return found


def naive_take(stored: np.ndarray, held: Param, wanted: Param) -> np.ndarray:
    return stored[np.ix_(*(places(h, w) for h, w in zip(held.dims, wanted.dims, strict=True)))]


# -- random declarations: held, and two smaller ones, each a part of the one before ------------------------------------

KINDS = ("leading", "trailing", "centre", "spread", "list")


@st.composite
def axis_triples(draw, kinds):
    name, kind = draw(st.sampled_from("abcd")), draw(st.sampled_from(kinds))
    if kind == "spread":
        k, a, b = (draw(st.integers(1, 2)) for _ in range(3))
        sizes = (k * a * b, k * a, k)
    else:
        sizes = tuple(sorted((draw(st.integers(0 if kind == "leading" else 1, 4)) for _ in range(3)), reverse=True))
    if kind != "list":
        return tuple(axis(name, n, kind) for n in sizes)
    picks = [tuple(draw(st.permutations(range(n)))[:k]) for n, k in itertools.pairwise(sizes)]
    return axis(name, sizes[0]), axis(name, sizes[1], picks[0]), axis(name, sizes[2], picks[1])


@st.composite
def dim_triples(draw, kinds, depth=1):
    """Concatenations of products of axes and, `depth` levels down, of concatenations."""
    def factor():
        nested = depth > 0 and draw(st.integers(0, 3)) == 0
        return draw(dim_triples(kinds, depth - 1)) if nested else draw(axis_triples(kinds))

    segments = [[factor() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 2)))]
    return tuple(Dim(tuple(tuple(f[i] for f in factors) for factors in segments)) for i in range(3))


@st.composite
def param_triples(draw, kinds=KINDS):
    dims = [draw(dim_triples(kinds)) for _ in range(draw(st.integers(1, 2)))]
    held, middle, small = (param(*(d[i] for d in dims)) for i in range(3))
    return held, middle, small


def numbered(declared: Param) -> torch.Tensor:
    return torch.arange(declared.numel, dtype=torch.float64).view(declared.shape)


@settings(max_examples=80, deadline=None)
@given(param_triples())
def test_a_take_reads_what_numpy_indexing_reads(triple):
    held, middle, small = triple
    stored = numbered(held)
    for wanted in (held, middle, small):
        if wanted is small and any(isinstance(a.select, tuple) for d in small.dims for a in d.axes()):
            continue                              # an index list speaks of the tensor it is taken from
        naive = naive_take(stored.numpy(), held, wanted)
        assert take(stored, held, wanted).numpy().tolist() == naive.tolist()
        assert flat_indices(held, wanted).tolist() == naive.ravel().tolist()


@settings(max_examples=60, deadline=None)
@given(param_triples())
def test_a_take_of_a_take_is_the_one_take(triple):
    held, middle, small = triple
    stored = numbered(held)
    twice = take(take(stored, held, middle), middle, small)
    assert twice.tolist() == naive_take(naive_take(stored.numpy(), held, middle), middle, small).tolist()
    assert twice.flatten().tolist() == flat_indices(held, middle)[flat_indices(middle, small)].tolist()
    if not any(isinstance(a.select, tuple) for p in triple for d in p.dims for a in d.axes()):
        assert torch.equal(twice, take(stored, held, small))


@settings(max_examples=60, deadline=None)
@given(param_triples(), st.integers(0, 10))
def test_gradients_land_on_the_taken_entries_and_nowhere_else(triple, seed):
    held, wanted, _ = triple
    stored = numbered(held).requires_grad_()
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((take(stored, held, wanted) * weight).sum(), stored)
    naive = np.zeros(held.numel)
    naive[naive_take(np.arange(held.numel).reshape(held.shape), held, wanted).ravel()] = weight.flatten().numpy()
    assert gradient.flatten().tolist() == naive.tolist()


@settings(max_examples=30, deadline=None)
@given(param_triples())
def test_gradients_of_gradients_pass_through_a_take(triple):
    held, wanted, _ = triple
    assume(wanted.numel)                           # a take of nothing gives a constant, which has no second derivative
    stored = numbered(held).requires_grad_()
    (gradient,) = torch.autograd.grad(take(stored, held, wanted).pow(3).sum(), stored, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), stored)
    naive = np.zeros(held.numel)
    index = naive_take(np.arange(held.numel).reshape(held.shape), held, wanted).ravel()
    naive[index] = 6 * index
    assert second.flatten().tolist() == naive.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(param_triples(("leading", "trailing", "list")).map(lambda t: t[1]), min_size=1, max_size=1),
       st.data())
def test_largest_is_the_maximum_of_every_axis(members, data):
    """Members of one structure, sizes drawn anew for every axis."""
    def resized(dim: Dim) -> Dim:
        return Dim(tuple(tuple(resized(f) if isinstance(f, Dim) else axis(f.name, data.draw(st.integers(0, 5)), f.select
                                                                          if not isinstance(f.select, tuple) else "leading")
                               for f in segment) for segment in dim.segments))

    members = members + [param(*map(resized, members[0].dims)) for _ in range(2)]
    held = largest(members)
    for d, dim in enumerate(held.dims):
        reached = zip(*([a.reach for a in member.dims[d].axes()] for member in members), strict=True)
        assert [a.size for a in dim.axes()] == [max(sizes) for sizes in reached]
    for member in members:
        assert take(numbered(held), held, member).shape == member.shape


# -- the kinds by name --------------------------------------------------------------------------------------------------

def picked(have: Axis | Dim, want: Axis | Dim) -> list[int]:
    held = param(have)
    return take(torch.arange(held.numel), held, param(want)).tolist()


@pytest.mark.parametrize(("select", "sizes", "entries"), [
    ("leading", (5, 2), [0, 1]), ("trailing", (5, 2), [3, 4]), ("centre", (7, 3), [2, 3, 4]), ("centre", (7, 1), [3]),
    ("centre", (6, 2), [2, 3]), ("centre", (7, 4), [2, 3, 4, 5]), ("spread", (14, 7), [0, 2, 4, 6, 8, 10, 12]),
    ("spread", (8, 3), [0, 2, 5])])
def test_each_kind_takes_the_entries_it_says(select, sizes, entries):
    assert picked(axis("a", sizes[0], select), axis("a", sizes[1], select)) == entries


def test_an_index_list_inside_a_product_keeps_the_inner_entries_together():
    assert picked(axis("layer", 4) * axis("w", 2), axis("layer", 2, (3, 1)) * axis("w", 2)) == [6, 7, 2, 3]
    assert picked(axis("w", 2) * axis("layer", 4), axis("w", 2) * axis("layer", 2, (3, 1))) == [3, 1, 7, 5]


def test_projections_packed_per_head_keep_queries_with_their_keys():
    """Two key/value heads, each with two queries, a key and a value, of two numbers: [q q k v] per head."""
    def packed(kv, group, size):
        g, r, p = axis("kv_heads", kv), axis("group", group), axis("head_dim", size)
        return g * ((r * p) + p + p)

    assert packed(2, 2, 2).size == 16
    assert picked(packed(2, 2, 2), packed(2, 1, 2)) == [0, 1, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15]
    assert picked(packed(2, 2, 2), packed(1, 2, 1)) == [0, 2, 4, 6]


def test_grouped_convolution_takes_channels_within_groups_on_both_sides():
    def weight(groups, channels, taps):
        g, o, i = axis("groups", groups), axis("group_out", channels), axis("group_in", channels)
        return param(g * o, i, axis("taps", taps, "trailing"))

    held, wanted = weight(3, 4, 5), weight(2, 3, 2)
    stored = torch.arange(held.numel).view(3, 4, 4, 5)
    assert torch.equal(take(stored.view(held.shape), held, wanted), stored[:2, :3, :3, 3:].reshape(wanted.shape))


@pytest.mark.parametrize(("held", "wanted", "is_view"), [
    (param(axis("a", 8), axis("w", 8)), param(axis("a", 4), axis("w", 6)), True),
    (param(axis("a", 8), axis("t", 5, "trailing")), param(axis("a", 8), axis("t", 3, "trailing")), True),
    (param(axis("g", 4) * axis("p", 8), axis("w", 8)), param(axis("g", 2) * axis("p", 8), axis("w", 4)), True),
    (param(axis("g", 1) * axis("p", 8), axis("w", 8)), param(axis("g", 1) * axis("p", 4), axis("w", 4)), True),
    (param(axis("g", 4) * axis("p", 8), axis("w", 8)), param(axis("g", 1) * axis("p", 4), axis("w", 4)), True),
    (param(axis("g", 4) * axis("p", 8)), param(axis("g", 3) * axis("p", 1)), True),       # one of each: a stride
    (param(axis("e", 4), axis("f", 8), axis("w", 8)), param(axis("e", 2), axis("f", 4), axis("w", 4)), True),
    (param(axis("y", 8, "spread"), axis("x", 6, "spread")), param(axis("y", 4, "spread"), axis("x", 2, "spread")), True),
    (param(axis("a", 8)), param(axis("a", 3, (1, 3, 5))), True),
    (param(axis("a", 4) + axis("b", 4)), param(axis("a", 4) + axis("b", 2)), True),       # one stretch over the seam
    (param(axis("a", 8)), param(axis("a", 3, (5, 3, 1))), False),
    (param(axis("g", 4) * axis("p", 8)), param(axis("g", 2) * axis("p", 4)), False),
    (param(axis("a", 4) + axis("b", 4), axis("w", 4)), param(axis("a", 2) + axis("b", 2), axis("w", 4)), False)])
def test_a_take_is_a_view_exactly_where_strides_allow(held, wanted, is_view):
    stored = torch.arange(float(held.numel)).view(held.shape)
    taken = take(stored, held, wanted)
    assert taker(held, wanted).is_view == is_view
    assert (taken.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()) == is_view
    assert taken.numpy().tolist() == naive_take(stored.numpy(), held, wanted).tolist()


def test_taking_everything_is_the_tensor_itself():
    held = param(axis("g", 2) * axis("p", 3) + axis("q", 2), axis("w", 4))
    stored = torch.zeros(held.shape)
    assert take(stored, held, held) is stored


def test_a_scattered_index_list_is_gathered():
    order = tuple(int(i) for i in np.random.default_rng(0).permutation(97))
    held, wanted = param(axis("a", 2) * axis("n", 97), axis("w", 3)), param(axis("a", 2) * axis("n", 97, order), axis("w", 2))
    stored = numbered(held).requires_grad_()
    taken = take(stored, held, wanted)
    assert taken.tolist() == naive_take(stored.detach().numpy(), held, wanted).tolist()
    taken.sum().backward()
    assert stored.grad.sum() == taken.numel()


@pytest.mark.parametrize(("want", "text"), [
    (axis("heads", 8), "axis 'heads' takes at most what is stored: got 8 of 4; build the supernet from a space"),
    (axis("heads", 2, (0, 4)), r"axis 'heads' takes entries that are stored: got \(0, 4\) of 4")])
def test_a_take_of_more_than_is_stored_is_refused(want, text):
    with pytest.raises(ValueError, match=text):
        take(torch.zeros(4), param(axis("heads", 4)), param(want))


@pytest.mark.parametrize("entries", [(0, 1), (0, 1, 1)])
def test_an_index_list_of_another_length_or_with_an_entry_twice_is_refused(entries):
    with pytest.raises(ValueError, match="one entry of its own per position at axis 'a'"):
        axis("a", 3, entries)


def test_largest_may_exceed_every_member_and_counts_index_lists_to_their_last_entry():
    assert largest([param(axis("h", 2) * axis("p", 32)), param(axis("h", 4) * axis("p", 16))]).shape == (128,)
    assert largest([param(axis("layer", 2, (6, 1))), param(axis("layer", 3))]).shape == (7,)


def test_declarations_survive_pickling_with_a_hash_of_the_new_process():
    declared = param(axis("h", 2) * axis("p", 32), axis("w", 3))
    assert hash(declared) == declared._hash
    again = pickle.loads(pickle.dumps(declared))
    assert "_hash" not in again.__dict__
    assert again == declared and hash(again) == hash(declared)
