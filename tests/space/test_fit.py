"""Groups and latents: which token reads which, ragged groups, costs, and what they equal without latents."""

from __future__ import annotations

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.testing.costs import count_macs

torch.set_num_threads(1)

BLOCK = bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=1))
BOTH = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True), channel=bp.SwiGLU(ratio=1))


def space(body, width=16):
    return bp.Space(embed=bp.TokenEmbedding(vocab=32), width=width, body=body, head=bp.LanguageHead(tied=False))


def model(body, seed=0):
    torch.manual_seed(seed)
    return space(body).sample(0).build()


def ids(length, seed=0):
    return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reach(built, length, place):
    """Which outputs move when one token changes."""
    before, changed = built(ids(length)), ids(length)
    changed[:, place] = (changed[:, place] + 1) % 32
    return ((built(changed) - before).abs().amax((0, 2)) > 0).nonzero().flatten().tolist()


def test_a_token_reaches_its_group_and_all_groups_after_it():
    built = model(bp.FIT(local=BLOCK, overall=BLOCK, group=4, latents=2))
    assert reach(built, 14, 5) == list(range(5, 14))


def test_without_layers_among_latents_it_reaches_the_next_group_alone():
    built = model(bp.FIT(local=BLOCK, overall=(), group=4, latents=2))
    assert reach(built, 14, 5) == list(range(5, 12))


def test_latents_of_the_own_group_let_every_token_reach_every_other():
    body = bp.FIT(local=BOTH, overall=BOTH, group=4, latents=2, shifted=False)
    assert not body.causal
    assert reach(model(body), 14, 5) == list(range(14))


@pytest.mark.parametrize("length", [1, 3, 4, 9, 14])
def test_later_tokens_change_no_bit_of_earlier_outputs(length):
    built = model(bp.FIT(local=(BLOCK, BLOCK), overall=(BLOCK, BLOCK), group=4, latents=2, rounds=2))
    with torch.no_grad():
        for kept in range(1, length):
            changed = torch.cat([ids(length)[:, :kept], ids(length, seed=1)[:, kept:]], 1)
            assert torch.equal(built(changed)[:, :kept], built(ids(length))[:, :kept])


def test_the_first_group_is_its_local_layers_alone():
    built = model(bp.FIT(local=BLOCK, overall=BLOCK, group=8, latents=2))
    macro = built.layers[0]
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(macro(x), macro.local[0](x))
    torch.testing.assert_close(macro(torch.cat([x, x[:, :3]], 1))[:, :8], macro.local[0](x))


def test_a_shorter_last_group_is_that_of_the_shorter_sequence():
    """No filling up: bidirectional layers of the last group see its tokens alone."""
    macro = model(bp.FIT(local=BOTH, overall=(), group=5, latents=2, shifted=False)).layers[0]
    x = torch.randn(2, 13, 16)
    torch.testing.assert_close(macro(x)[:, 10:], macro(x[:, 10:]))


@pytest.mark.parametrize("length", [64, 512])
def test_costs_are_those_that_torch_counts(length):
    architecture = space(bp.FIT(local=BOTH, overall=BOTH, group=8, latents=2, shifted=False)).sample(0)
    executed = count_macs(architecture.build().to("meta"), ids(length)[:1].to("meta"))   # where fused attention counts
    assert architecture.cost(length=length).macs == pytest.approx(executed, rel=0.02)


def test_groups_of_the_cube_root_cost_far_less_than_attention():
    def macs(body, length):
        architecture = space(body).sample(0)
        return architecture.cost(length=length).macs

    assert macs(bp.FIT(local=BLOCK, overall=BLOCK, group=64, latents=4), 2**15) < 0.1 * macs(BLOCK, 2**15)


def test_sizes_and_layers_of_it_are_searched_in_one_supernet():
    body = bp.FIT(local=bp.repeat(BLOCK, 2), overall=bp.repeat(bp.Block(
        mixer=bp.Attention(heads=bp.choice(1, 2)), channel=bp.SwiGLU(ratio=bp.choice(1, 2))), 2),
        group=bp.choice(3, 4), latents=bp.choice(1, 2), rounds=bp.choice(1, 2))
    net = bp.Supernet(space(body, width=bp.choice(8, 16)), seed=0)
    for seed in range(5):
        architecture = net.space.sample(random.Random(seed))
        torch.testing.assert_close(net.subnet(architecture)(ids(10)), net.extract(architecture)(ids(10)))


@pytest.mark.parametrize(("body", "text"), [
    (bp.FIT(local=BLOCK, overall=BLOCK, rounds=2), "rounds must divide the number of local layers.*got 2 and 1"),
    (bp.FIT(local=BLOCK, overall=BLOCK, latents=0), "latents must be a whole number"),
    (bp.FIT(local=BLOCK, overall=BLOCK, heads=3), "heads must divide width"),
])
def test_numbers_that_cannot_be_built_are_refused(body, text):
    with pytest.raises(ValueError, match=text):
        body.check(16, "here")
