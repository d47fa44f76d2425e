"""Patches left out while training, and positions by row and column: against plain indexing, and PaSST from its parts."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.patchout import PatchesLeftOut
from example_macros import space
from reduced_models import BLOCK, GRID, images, model, random

PASST = {"embed": bp.PatchEmbedding(patch=4, kernel=6, image=(20, 28), position=False, grid=True)}


def passt(**out):
    before = (bp.FactoredPositions(5, 7), bp.Patchout(**out), bp.ClassToken(2))
    return model((*before, BLOCK, BLOCK, bp.Reduce(bp.FirstTokens(2))), **PASST)


def spectrograms(batch=2):
    return random(batch, 1, 20, 28).float()


@pytest.mark.parametrize("out", [{"rows": 2}, {"columns": 3}, {"rows": 1, "columns": 2}])
def test_whole_rows_and_columns_are_left_out_of_the_whole_batch(out):
    x, module = random(2, 5, 7, 3), PatchesLeftOut(**({"rows": 0, "columns": 0, "tokens": 0, "protected": 0} | out)).train()
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        y = module(x)
        rows, columns = 5 - out.get("rows", 0), 7 - out.get("columns", 0)
        assert y.shape == (2, rows, columns, 3)
        at = [tuple((x[0] == y[0, i, j]).all(-1).nonzero()[0].tolist()) for i in range(rows) for j in range(columns)]
        down, across = sorted({i for i, _ in at}), sorted({j for _, j in at})
        assert torch.equal(y, x[:, down][:, :, across])
        seen.add((*down, -1, *across))
    assert len(seen) > 3


@pytest.mark.parametrize("protected", [0, 2])
def test_single_patches_are_left_out_in_the_order_of_the_sequence(protected):
    x, module = random(2, 11, 3), PatchesLeftOut(0, 0, 4, protected).train()
    left = []
    for seed in range(20):
        torch.manual_seed(seed)
        y = module(x)
        places = [int((x[0] == token).all(-1).nonzero()) for token in y[0]]
        assert places == sorted(places) and len(set(places)) == 7 and places[:protected] == list(range(protected))
        assert torch.equal(y, x[:, places])
        left += places
    assert set(left) == set(range(11))
    grid = random(2, 3, 4, 3)
    torch.manual_seed(1)
    assert module(grid).shape == (2, 8, 1, 3)
    assert PatchesLeftOut(99, 99, 99, 0).train()(grid).shape == (2, 1, 1, 3), "one stays"


@torch.no_grad()
def test_in_use_nothing_is_left_out():
    net, plain = passt(columns=3, tokens=4), passt()
    assert torch.equal(net(spectrograms()), plain(spectrograms()))
    assert net.architecture.cost((5, 7)).macs == plain.architecture.cost((5, 7)).macs
    assert len(plain.architecture.plan.layers) == len(net.architecture.plan.layers) - 1


def test_training_with_patchout_is_cheaper_and_learns_every_position():
    net, sizes = passt(rows=1, columns=2).train(), []
    net.layers[3].register_forward_hook(lambda _, given, out: sizes.append(given[0].shape[1]))
    for seed in range(8):
        torch.manual_seed(seed)
        net(spectrograms()).sum().backward()
    assert set(sizes) == {4 * 5 + 2}
    assert net.layers[0].row.grad.abs().sum(-1).all() and net.layers[0].column.grad.abs().sum(-1).all()


@torch.no_grad()
def test_positions_are_a_vector_per_row_plus_one_per_column():
    net = model((bp.FactoredPositions(6, 9), BLOCK), **GRID)
    x, module = random(2, 5, 5, 16).float(), net.layers[0]
    y = module(x)
    for i in range(5):
        for j in range(5):
            torch.testing.assert_close(y[:, i, j], x[:, i, j] + module.row[i] + module.column[j])
    with pytest.raises(ValueError, match="got 7 x 5 for 6 x 9"):
        module(random(1, 7, 5, 16))
    sequence = module(x[:, :, 0])
    torch.testing.assert_close(sequence, x[:, :, 0] + module.row[:5] + module.column[0])


def test_bad_numbers_are_refused():
    for item, message in ((bp.Patchout(rows=-1), "rows must be a whole number of at least 0 at body"),
                          (bp.FactoredPositions(0, 3), "rows must be a whole number of at least 1 at body")):
        with pytest.raises(ValueError, match=message):
            space((item, BLOCK), **GRID)
    assert model((bp.Patchout(tokens=3), BLOCK), **GRID)(images()).shape == (3, 5)
