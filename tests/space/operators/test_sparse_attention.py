"""Sparse attention: what it equals when nothing is left out, what it reads, what it costs, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.bucketed import newest_members, sorted_members
from bodyplan.testing import built

torch.set_num_threads(1)

CAUSAL = {
    "combiner": bp.Combiner(heads=2, block=64), "log combiner": bp.Combiner(heads=2, pattern="logsparse"),
    "axial combiner": bp.Combiner(heads=2, pattern="axial", block=128),
    "landmarks": bp.LandmarkAttention(heads=2, block=51, chosen=2),
    "hashes": bp.LSHAttention(heads=2, rounds=2, buckets=64, members=32),
    "clusters": bp.RoutingAttention(heads=2, clusters=64, members=64, window=64),
}
BOTH_WAYS = {
    "tree": bp.HierarchicalAttention(heads=2),
    "balanced clusters": bp.RoutingAttention(heads=2, clusters=128, members=128, window=64, bidirectional=True),
    "regions": bp.BiLevelRoutingAttention(heads=2, regions=64, chosen=2), "pooling": bp.PoNet(heads=2),
}


def tokens(*size, width=16, seed=1, dtype=torch.float64):
    return torch.randn(2, *size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(config, width=16, dtype=torch.float64):
    return built(config, width, dtype=dtype)


def full(ours, x, causal, heads=2, key="key", turn=None):
    """Softmax attention over all tokens with the weights of a module, before its last projection."""
    q, k, v = (getattr(ours, name)(x.flatten(1, -2)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for name in ("query", key, "value"))
    if turn is not None:
        q, k = turn(q), turn(k)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- nothing left out --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("head_dim", [8, 24, 64])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (63,)], ids=str)
@pytest.mark.parametrize("regions", [1, 3])
def test_regions_that_read_all_regions_are_attention_over_the_grid(size, regions, head_dim):
    ours = module(bp.BiLevelRoutingAttention(heads=2, regions=regions, chosen=regions**2, kernel=None, head_dim=head_dim))
    x = tokens(*size)
    assert_same(ours(x), ours.out(full(ours, x, causal=False)).view(x.shape))


@pytest.mark.parametrize("length", [1, 63, 100])
@pytest.mark.parametrize("config", [
    bp.Combiner(heads=2, block=100), bp.Combiner(heads=2, block=1), bp.Combiner(heads=2, pattern="axial", block=100),
    bp.Combiner(heads=2, block=128, head_dim=24)], ids=str)
def test_a_combiner_of_one_block_or_of_blocks_of_one_token_is_full_attention(config, length):
    ours, x = module(config), tokens(length)
    assert_same(ours(x), ours.out(full(ours, x, causal=True)))


def test_two_tokens_have_no_region_of_more_than_one_token_by_their_binary_digits():
    ours, x = module(bp.Combiner(heads=2, pattern="logsparse")), tokens(2)
    assert_same(ours(x), ours.out(full(ours, x, causal=True)))


@pytest.mark.parametrize("config", [bp.Combiner(heads=2, block=5), bp.Combiner(heads=2, pattern="logsparse"),
                                    bp.Combiner(heads=2, pattern="axial", block=9)], ids=str)
def test_every_token_before_has_a_part_in_a_combiner_s_average(config):
    ours, x = module(config), tokens(63)
    x.requires_grad_()
    reach = torch.autograd.grad(ours(x)[0, -1].square().sum(), x)[0][0].abs().sum(-1)
    assert (reach > 0).all()


@pytest.mark.parametrize("length", [1, 4, 63, 100])
@pytest.mark.parametrize("rotary", [True, False])
def test_landmarks_that_choose_all_blocks_are_those_that_read_all(length, rotary):
    every = bp.LandmarkAttention(heads=2, block=7, rotary=rotary, head_dim=24)
    x = tokens(length)
    assert_same(module(every)(x), module(replace(every, chosen=20))(x))


def test_a_block_that_has_not_ended_has_no_landmark_so_attention_is_full():
    ours, x = module(bp.LandmarkAttention(heads=2, block=64, rotary=False)), tokens(63)
    assert_same(ours(x), ours.out(full(ours, x, causal=True)))
    assert_same(ours(x), module(bp.LandmarkAttention(heads=2, block=64, rotary=False, chosen=1))(x))


def test_landmarks_themselves_are_read_by_nobody_after_them():
    """A landmark's value moves its own output alone; its key is how its block is found."""
    ours, x = module(bp.LandmarkAttention(heads=2, block=4, rotary=False)), tokens(16)
    with torch.no_grad():
        ours.key.weight.zero_()
    changed = x.clone()
    changed[:, 7] += 1.0
    moved = (ours(changed) - ours(x)).abs().amax((0, 2)) > 1e-12
    assert moved.nonzero().flatten().tolist() == [7]


def test_tokens_of_a_block_share_its_landmark_s_weight():
    """With equal scores a query weighs its own tokens and each landmark alike, and a landmark's weight is split."""
    ours = module(bp.LandmarkAttention(heads=1, block=3, rotary=False), 1)
    for weight in (ours.query, ours.key):
        torch.nn.init.zeros_(weight.weight)
    for weight in (ours.value, ours.out):
        torch.nn.init.ones_(weight.weight)
    reads = [ours(torch.eye(5, dtype=torch.float64)[None, :, [j]].contiguous())[0, 4, 0].item() for j in range(5)]
    assert reads == pytest.approx([1 / 6, 1 / 6, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("length", [2, 63, 100])
@pytest.mark.parametrize("head_dim", [8, 24])
def test_one_bucket_is_full_attention_with_shared_queries_and_keys(length, head_dim):
    ours, x = module(bp.LSHAttention(heads=2, rounds=1, buckets=1, members=128, head_dim=head_dim)), tokens(length)
    q, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (ours.query, ours.value))
    k = q / q.norm(dim=-1, keepdim=True)
    scores = (q @ k.mT / math.sqrt(head_dim)).masked_fill(torch.ones(length, length, dtype=torch.bool).triu(0), -torch.inf)
    scores[..., 0, 0] = 0.0                                       # the first token has nobody but itself
    assert_same(ours(x), ours.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


def test_more_rounds_of_one_bucket_change_nothing():
    once, often = (module(bp.LSHAttention(heads=2, rounds=r, buckets=1, members=9)) for r in (1, 5))
    assert_same(once(tokens(40)), often(tokens(40)))


def test_tokens_hash_alike_when_they_point_the_same_way():
    ours = module(bp.LSHAttention(heads=2, rounds=8, buckets=16))
    q = ours.query(tokens(30)).unflatten(-1, (2, -1)).transpose(1, 2)
    assert torch.equal(ours.hashed(q), ours.hashed(3 * q))
    assert not torch.equal(ours.hashed(q), ours.hashed(-q))
    assert ours.hashed(q).unique().numel() > 8


@pytest.mark.parametrize("bidirectional", [True, False])
def test_one_cluster_of_all_tokens_is_full_attention_of_shared_normalised_queries_and_keys(bidirectional):
    ours = module(bp.RoutingAttention(heads=2, local_heads=0, clusters=1, members=64, bidirectional=bidirectional))
    x = tokens(63)

    def unit(q):
        return torch.nn.functional.layer_norm(q, q.shape[-1:])

    assert_same(ours(x), ours.out(full(ours, x, not bidirectional, key="query", turn=unit)))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 63])
def test_local_heads_are_windows(bidirectional, length):
    window = bp.Attention(heads=2, window=9, rotary=False, bidirectional=bidirectional)
    ours = module(bp.RoutingAttention(heads=3, local_heads=2, window=9, head_dim=8, bidirectional=bidirectional))
    whole, x = module(window), tokens(length)
    with torch.no_grad():
        whole.query.weight.copy_(ours.query.weight[8:])
        whole.value.weight.copy_(ours.value.weight[8:])
        whole.key.weight.copy_(ours.key.weight)
        whole.out.weight.copy_(ours.out.weight[:, 8:])
        ours.out.weight[:, :8] = 0
    assert_same(ours(x), whole(x))


def test_balanced_clusters_take_the_same_number_of_tokens():
    """A token that no cluster takes reads nothing; with as many members as tokens there is none."""
    x = tokens(40)
    few, all_of_them = (module(bp.RoutingAttention(heads=2, local_heads=0, clusters=2, members=m, bidirectional=True))(x)
                        for m in (3, 40))
    assert (few.abs().amax(-1) == 0).sum(1).min() >= 40 - 2 * 2 * 3
    assert (all_of_them.abs().amax(-1) > 0).all()


def test_centroids_move_towards_their_tokens_and_stay_without_any():
    ours = module(bp.RoutingAttention(heads=2, local_heads=1, clusters=3))
    x = tokens(50)
    moved = ours.moved(x, decay=0.5)
    vectors = ours.projected(x)[0][:, :1]
    nearest = ours.affinity(vectors).argmax(-1)
    for c in range(3):
        mine = vectors[nearest == c]
        wanted = (ours.centroids[0, c] + mine.mean(0)) / 2 if len(mine) else ours.centroids[0, c]
        assert_same(moved[0, c], wanted.detach())
    torch.testing.assert_close(ours.moved(x, decay=1.0), ours.centroids.detach())
    assert not moved.requires_grad


@pytest.mark.parametrize("length", [1, 63, 100])
def test_a_predictor_that_keeps_all_is_full_attention(length):
    ours, x = module(bp.Sparsifiner(heads=2, keep=1.0, rank=8, tokens=50)), tokens(length)
    assert_same(ours(x), ours.out(full(ours, x, causal=False)))


def test_the_predictor_keeps_what_it_estimates_largest():
    ours, x = module(bp.Sparsifiner(heads=2, keep=0.1, rank=8, tokens=40)), tokens(40)
    estimate = ours.estimate(x)
    assert estimate.min() >= 0
    scores = torch.zeros_like(estimate).masked_fill(estimate < estimate.topk(4).values[..., -1:], -torch.inf)
    q, k, v = ours.projected(x)
    y = ((q @ k.mT / math.sqrt(8) + scores).softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert_same(ours(x), ours.out(y))


def test_a_segment_or_a_window_over_all_tokens_gives_them_one_maximum():
    ours, x = module(bp.PoNet(heads=2, segment=100, window=201)), tokens(63)
    q, k, v = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (ours.query, ours.key, ours.value))
    whole = ((q.mean(2, keepdim=True) @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    y = (whole + ours.segments(x).amax(1, keepdim=True)) * ours.gate(x) + ours.local(x).amax(1, keepdim=True)
    assert_same(ours(x), ours.out(y))


@pytest.mark.parametrize("length", [1, 2, 63, 100])
@pytest.mark.parametrize("head_dim", [8, 24])
def test_a_tree_of_one_family_is_full_attention(length, head_dim):
    ours, x = module(bp.HierarchicalAttention(heads=2, fan_out=100, head_dim=head_dim)), tokens(length)
    assert_same(ours(x), ours.out(full(ours, x, causal=False)))


def test_equal_tokens_under_a_node_lose_nothing_to_its_one_weight():
    """Where all tokens of every node of a level are alike, softmax attention is tied already."""
    ours = module(bp.HierarchicalAttention(heads=2, fan_out=4))
    x = tokens(4).repeat_interleave(4, 1)
    assert_same(ours(x), ours.out(full(ours, x, causal=False)))


def test_of_all_tied_distributions_the_tree_s_is_nearest_to_softmax():
    """Gradient descent over tied distributions of six tokens in threes finds the same one."""
    ours, x = module(bp.HierarchicalAttention(heads=1, fan_out=3), 6), tokens(6, width=6)[:1]
    with torch.no_grad():
        ours.value.weight.copy_(torch.eye(6))
        ours.out.weight.copy_(torch.eye(6))
        q, k = ours.query(x)[0], ours.key(x)[0]
        target = (q @ k.T / math.sqrt(6)).softmax(-1)
        inverse = torch.linalg.inv(x[0])
        tied = ours(x)[0] @ inverse                                # y = weights x
    free, far = torch.zeros(6, 3, dtype=x.dtype, requires_grad=True), torch.zeros(2, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([free, far], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def weights():
        other = far.sigmoid()[:, None, None].expand(2, 3, 3)
        own = free.softmax(-1).view(2, 3, 3)
        first = torch.cat([(1 - other[0]) * own[0], other[0] / 3], -1)
        return torch.cat([first, torch.cat([other[1] / 3, (1 - other[1]) * own[1]], -1)])

    def divergence():
        optimizer.zero_grad()
        loss = (weights() * (weights().log() - target.log())).sum()
        loss.backward()
        return loss

    optimizer.step(divergence)
    torch.testing.assert_close(tied, weights().detach(), rtol=1e-3, atol=1e-4)


def test_every_token_of_the_memory_goes_to_one_centre():
    ours, x = module(bp.KMeansCrossAttention()), tokens(5)
    memory = tokens(40, seed=3)
    nearest = (ours.query(x) @ ours.key(memory).mT).argmax(1)
    v = ours.value(memory)
    wanted = torch.stack([torch.stack([v[b][nearest[b] == t].sum(0) for t in range(5)]) for b in range(2)])
    assert_same(ours(x, {"memory": memory}), ours.out(wanted))
    assert all(p.grad is not None and p.grad.any() for p in after_backward(ours, ours(x, {"memory": memory})))


def test_a_mean_of_centres_does_not_grow_with_the_memory():
    ours, x, memory = module(bp.KMeansCrossAttention(mean=True)), tokens(5), tokens(40, seed=3)
    assert_same(ours(x, {"memory": memory}), ours(x, {"memory": memory.repeat(1, 3, 1)}))


def after_backward(ours, y):
    y.square().sum().backward()
    return list(ours.parameters())


# -- tokens that layers hand on ----------------------------------------------------------------------------------------

def persistent(tokens=4, dense=1, again=(), layers=5, heads=2):
    attention = bp.Block(mixer=bp.SelectiveAttention(heads=heads, tokens=tokens), channel=bp.MLP(ratio=1))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=True), body=bp.Stack(
        (attention,) * layers, bp.PersistentSelection(dense=dense, again=again)))
    return space.sample(0)


def ids(length, seed=0):
    return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(seed))


def test_layers_read_all_choose_and_read_what_was_chosen():
    names = [type(m).__name__ for m in persistent(dense=1, again=(3,)).build().modules()]
    assert [n for n in names if "Tokens" in n] == ["AllTokens", "ChoosingTokens", "ChosenTokens", "ChoosingTokens",
                                                   "ChosenTokens"]


def test_choosing_all_tokens_is_full_attention_in_every_layer():
    every, none = persistent(tokens=100).build(), persistent(tokens=100, dense=5).build()
    none.load_state_dict(every.state_dict())
    torch.testing.assert_close(every(ids(63)), none(ids(63)), rtol=1e-5, atol=1e-5)


def test_a_layer_that_reads_chosen_tokens_reads_no_others():
    chosen, x = module(bp.SelectiveAttention(heads=2, reads="chosen", rotary=False)), tokens(9)
    index = torch.tensor([0, 3])[None, None, None].expand(2, 2, 9, 2).clone()
    index[:, :, :3, 1] = -1
    y = chosen(x, {"chosen": index})
    changed = x.clone()
    changed[:, [1, 2, 4, 5, 6, 7]] += 1
    assert_same(y[:, [0, 3, 8]], chosen(changed, {"chosen": index})[:, [0, 3, 8]])
    q, k, v = chosen.query(x)[:, 8], chosen.key(x)[:, [0, 3]], chosen.value(x)[:, [0, 3]]
    q, k, v = q.unflatten(-1, (2, 8)), k.unflatten(-1, (2, 8)), v.unflatten(-1, (2, 8))
    weights = (torch.einsum("bhp,bshp->bhs", q, k) / math.sqrt(8)).softmax(-1)
    assert_same(y[:, 8], chosen.out(torch.einsum("bhs,bshp->bhp", weights, v).flatten(1)))


@pytest.mark.parametrize("length", [1, 2, 40])
def test_what_is_chosen_in_a_prompt_is_chosen_token_by_token(length):
    model = persistent(again=(3,)).build()
    with torch.no_grad():
        whole, state, steps = model(ids(length)), model.init_state(2), []
        for t in range(length):
            logits, state = model.step(ids(length)[:, t:t + 1], state)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5)


def test_the_chosen_tokens_are_those_with_the_highest_scores():
    choosing, x, shared = module(bp.SelectiveAttention(heads=2, reads="choose", tokens=3, rotary=False)), tokens(20), {}
    choosing(x, shared)
    q, k = (part(x).unflatten(-1, (2, 8)).transpose(1, 2) for part in (choosing.query, choosing.key))
    scores = (q @ k.mT).masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(1), -torch.inf)
    assert torch.equal(shared["chosen"][:, :, 5:].sort(-1).values, scores.topk(3).indices[:, :, 5:].sort(-1).values)
    assert shared["chosen"][:, :, 0].tolist() == [[[0, -1, -1]] * 2] * 2


@pytest.mark.parametrize(("residual", "text"), [
    (bp.PersistentSelection(dense=-1), "dense is a number of layers at body.residual: got -1"),
    (bp.PersistentSelection(dense=2, again=(2,)), "again names layers after number 2.*got .2,."),
])
def test_selections_that_cannot_be_are_refused(residual, text):
    with pytest.raises(ValueError, match=text):
        residual.check("body.residual")


def test_a_layer_that_finds_nothing_chosen_says_what_to_do():
    with pytest.raises(ValueError, match="needs one before it that chooses them.*PersistentSelection"):
        module(bp.SelectiveAttention(heads=2, reads="chosen"))(tokens(3), {})
    with pytest.raises(ValueError, match="got 2 heads after 3"):
        module(bp.SelectiveAttention(heads=2, reads="chosen"))(tokens(3), {"chosen": torch.zeros(2, 3, 3, 1).long()})


# -- buckets -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("shuns_itself", [True, False])
@pytest.mark.parametrize("length", [1, 2, 63])
def test_sorting_buckets_finds_what_looking_them_up_for_every_token_finds(rounds, shuns_itself, length):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    bucket = torch.randint(4, (2, 3, rounds, length), generator=generator)
    ours = sorted_members(q, k, v, bucket, 5, shuns_itself)
    for t in range(length):
        alone = newest_members(q[:, :, t:t + 1], k[:, :, :t + 1], v[:, :, :t + 1], bucket[..., :t + 1], 5, shuns_itself)
        assert_same(ours[:, :, t:t + 1], alone)


# -- costs -------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", [*CAUSAL, *BOTH_WAYS])
def test_sixteen_thousand_tokens_cost_far_less_than_all_pairs_and_are_finite(name):
    config, length = (CAUSAL | BOTH_WAYS)[name], 16384
    size = (128, 128) if config.spatial else length
    projections = length * config.matrix_numel(16)
    assert config.macs(16, size) - projections < 0.15 * bp.Attention(heads=2, bidirectional=True).macs(16, length)
    x = tokens(*(size if config.spatial else (length,)), dtype=torch.float32)[:1]
    with torch.no_grad():
        assert built(config, 16)(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*CAUSAL, *BOTH_WAYS])
def test_half_precision_is_finite(name, dtype):
    config = (CAUSAL | BOTH_WAYS)[name]
    x = tokens(*((9, 9) if config.spatial else (130,)), dtype=torch.float32).to(dtype)
    with torch.no_grad():
        assert built(config, 16, dtype=dtype)(x).isfinite().all()


def test_a_combiner_keeps_less_than_a_cache():
    assert bp.Combiner(heads=2, block=64).state_numel(16, 16384) * 50 < bp.Attention(heads=2).state_numel(16, 16384)


# -- errors ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.BiLevelRoutingAttention(heads=2, regions=0), "regions must be a whole number of at least 1"),
    (bp.BiLevelRoutingAttention(heads=2, kernel=4), "kernel must be odd"),
    (bp.BiLevelRoutingAttention(heads=3), "heads must divide width"),
    (bp.Combiner(heads=2, pattern="axail"), "unknown pattern 'axail'.*did you mean 'axial'"),
    (bp.Combiner(heads=2, block=0), "block must be a whole number"),
    (bp.LandmarkAttention(heads=2, block=1), "block must be a whole number of at least 2.*one is the landmark"),
    (bp.LandmarkAttention(heads=2, chosen=0), "chosen must be a whole number.*use None to read all"),
    (bp.LandmarkAttention(heads=2, head_dim=3), "head_dim must be even.*got 3; use 4"),
    (bp.LSHAttention(heads=2, buckets=7), "buckets must be even, or 1, at here: got 7; use 8"),
    (bp.LSHAttention(heads=2, rounds=0), "rounds must be a whole number"),
    (bp.RoutingAttention(heads=2, local_heads=2), "at least one head must route.*use at most 1"),
    (bp.RoutingAttention(heads=2, clusters=0), "clusters must be a whole number"),
    (bp.Sparsifiner(heads=2, keep=0), "keep must be a share of the tokens"),
    (bp.Sparsifiner(heads=2, rank=8, threshold=0.2), "threshold must be at least 0 and below 1 / rank.*use 0.0312"),
    (bp.PoNet(heads=2, window=2), "window must be odd"),
    (bp.HierarchicalAttention(heads=2, fan_out=1), "fan_out must be a whole number of at least 2"),
    (bp.KMeansCrossAttention(inner=0), "inner must be a whole number"),
    (bp.SelectiveAttention(heads=2, tokens=0), "tokens must be a whole number"),
    (bp.SelectiveAttention(heads=2, reads="chose"), "unknown reads 'chose'.*did you mean"),
])
def test_numbers_that_cannot_be_built_are_refused(config, text):
    with pytest.raises(ValueError, match=text):
        config.check(16, "here")
