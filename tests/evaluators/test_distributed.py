"""Several ranks: each visits other subnets, and together they take the step of one rank that visits all."""

from collections import Counter

import pytest
import torch
import training_ranks
from bodyplan.evaluators.distributed import Group, Share
from torch import multiprocessing


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("visits", [1, 2, 3, 4, 7])
def test_every_visit_is_dealt_exactly_once_and_ranks_get_about_the_same(size, visits):
    dealt = [Group(rank, size).deal(visits) for rank in range(size)]
    done = Counter()
    for share in (share for shares in dealt for share in shares):
        assert 0 <= share.part < share.parts
        done[share.visit] += 1 / share.parts
    assert set(done) == set(range(visits)) and all(total == pytest.approx(1) for total in done.values())
    work = [sum(1 / share.parts for share in shares) for shares in dealt]
    assert max(work) - min(work) < (1 + 1e-9 if visits >= size else 1e-9)


def test_visits_go_round_robin_and_what_is_cut_stays_with_its_teacher():
    assert Group(1, 2).deal(3) == [Share(1)] and Group(0, 2).deal(3) == [Share(0), Share(2)]
    assert {share.part for share in Group(2, 4).deal(3)} == {2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found in every scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(training_ranks.run_rank, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", training_ranks.SCENARIOS)
def test_two_ranks_end_with_identical_weights(ranks, name):
    first, second = (found[name] for found in ranks)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in training_ranks.SCENARIOS if name != "statistics"])
def test_two_ranks_take_the_step_of_one_rank_that_makes_all_visits(ranks, name, tmp_path):
    alone, together = training_ranks.run(name, tmp_path, Group()), ranks[0][name]
    start = training_ranks.bp.Supernet(training_ranks.make_space()).state_dict()
    assert alone.keys() == together.keys()
    relative = 0.0 if name == "one SGD step of two subnets" else 1e-5
    for key in alone.keys() - {"losses"}:
        torch.testing.assert_close(together[key], alone[key], rtol=relative, atol=1e-6,
                                   msg=lambda m, key=key: f"{key}: {m}")
    torch.testing.assert_close(together["losses"], alone["losses"], rtol=1e-5, atol=0)
    assert name == "plain" or any(not torch.equal(start[key], alone[key]) for key in start)


def test_statistics_take_the_changes_of_all_ranks(ranks):
    found = ranks[0]["statistics"]
    assert found["norm.num_batches_tracked"] == 4 and found["norm.running_var"].ne(1).all()


def test_what_neither_rank_touched_stays_to_the_bit(ranks):
    space = training_ranks.make_space()
    net = training_ranks.bp.Supernet(space)
    used = [net.subnet(visit.architecture) for visit in training_ranks.two_subnets(space, 0, 1, 0)]
    from bodyplan.evaluators.weights import touch_masks

    masks, after = touch_masks(used, net.tensors), ranks[0]["one SGD step of two subnets"]
    names = {id(p): name for name, p in net.named_parameters()}
    still = 0
    for address, before in net.tensors.items():
        now = after[names[id(before)]]
        mask = masks.get(address, torch.zeros(before.shape, dtype=torch.bool))
        if mask is not None:
            assert torch.equal(now[~mask], before.detach()[~mask])
            still += int((~mask).sum())
    assert still > 0
