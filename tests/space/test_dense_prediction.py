"""A decoder of what layers give: its parts against torch's, what it reads, sizes, costs, what it refuses."""

from __future__ import annotations

import random

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter
from bodyplan.testing import built

torch.set_num_threads(1)

LAYER = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), channel=bp.MLP(ratio=1), norm=bp.LayerNorm())


def model(layers=4, reads=4, image=(12, 20), width=8, out_width=6, **head):
    body = bp.DensePrediction((LAYER,) * layers, width=out_width, reads=reads)
    space = bp.Space(embed=bp.PatchEmbedding(4, 1, image, grid=True), width=width, body=body,
                     head=bp.DenseHead(3, **head), norm=bp.NoNorm())
    return space.sample(0)


def pixels(*size, seed=0):
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolved(weight, x):
    """3 x 3 around every place, tap by tap."""
    padded = F.pad(x, (1, 1, 1, 1))
    rows, columns = x.shape[2:]
    return sum(torch.einsum("ed,bdhw->behw", weight[:, :, i, j], padded[:, :, i:i + rows, j:j + columns])
               for i in range(3) for j in range(3))


def unit(module, x):
    return x + convolved(module.second, convolved(module.first, x.clamp(min=0)).clamp(min=0))


def reassembled(module, x):
    """A token at a time: it becomes a square, or every second one with its neighbours."""
    y = (x @ module.project.weight.T).permute(0, 3, 1, 2)
    if module.factor == 1:
        return y
    if module.factor < 0:
        return convolved(module.weight, y)[:, :, ::2, ::2]
    squares = torch.einsum("bdhw,deij->behiwj", y, module.weight)
    return squares.flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize(("layers", "reads"), [(4, 4), (5, 3), (7, 2), (2, 1)])
def test_the_map_is_the_papers_of_what_was_read(layers, reads):
    module = model(layers, reads).build(seed=0).double().layers[0]
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    after, y = [], x
    for layer in module.layers:
        y = layer(y)
        after.append(y)
    maps = [reassembled(part, after[read - 1]) for part, read in zip(module.reassemble, module.reads, strict=True)]
    fused = None
    for i in reversed(range(reads)):
        fuse = module.fuse[i]
        together = maps[i] if fused is None else fused + unit(fuse.side, maps[i])
        size = maps[i - 1].shape[2:] if i else [2 * n for n in maps[0].shape[2:]]
        larger = F.interpolate(unit(fuse.body, together), size=tuple(size), mode="bilinear", align_corners=True)
        fused = torch.einsum("ed,bdhw->behw", fuse.mix.weight, larger)
    torch.testing.assert_close(module(x), fused.permute(0, 2, 3, 1), rtol=1e-9, atol=1e-10)
    assert module.reads[-1] == layers and list(module.reads) == sorted(set(module.reads))


def test_every_read_reaches_the_map():
    module = model(4, 4).build(seed=0).double().layers[0]
    x = torch.randn(1, 3, 5, 8, dtype=torch.float64)
    whole = module(x)
    for part in module.reassemble:
        with torch.no_grad():
            kept = part.project.weight.clone()
            part.project.weight.zero_()
            assert not torch.allclose(module(x), whole)
            part.project.weight.copy_(kept)
    assert torch.equal(module(x), whole)


@pytest.mark.parametrize("head", [{}, {"hidden": 4}, {"hidden": 4, "up": 2}, {"up": 4}], ids=str)
def test_a_score_per_place_of_eight_times_the_resolution_and_costs_as_declared(head):
    architecture = model(4, 4, **head)
    scores = architecture.build()(pixels(12, 20).float())
    up = 8 * head.get("up", 1)
    assert scores.shape == (2, 3 * up, 5 * up, 3)
    assert macs_flop_counter(architecture.build(), pixels(12, 20)[:1].float()) == architecture.cost().macs
    assert architecture.cost().parameters == sum(p.numel() for p in architecture.build(device="meta").parameters())


def test_a_head_without_a_convolution_scores_every_place_alone():
    head, x = built(bp.DenseHead(3), 8), torch.randn(2, 4, 5, 8)
    assert torch.equal(head(x), F.linear(x, head.scores.weight, head.scores.bias))


def test_a_decoder_in_a_space_is_the_same_as_a_view_and_as_a_copy():
    space = bp.Space(embed=bp.PatchEmbedding(4, 1, 12, grid=True), width=bp.choice(8, 12), head=bp.DenseHead(1, hidden=4),
                     body=bp.DensePrediction(bp.repeat(LAYER, bp.integer(3, 5)), width=bp.choice(4, 6),
                                             reads=bp.choice(2, 3)))
    net = bp.Supernet(space, seed=0)
    for seed in range(3):
        architecture = space.sample(random.Random(seed))
        copy, given = net.extract(architecture), pixels(12, 12).float()
        assert torch.allclose(net.subnet(architecture)(given), copy(given), rtol=1e-4, atol=1e-5)
        copy(given).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in copy.parameters())


@pytest.mark.parametrize(("macro", "text"), [
    (bp.DensePrediction((LAYER,) * 3), "reads is at most 4, and at most the number of layers, at body[0]: got 4 and 3"),
    (bp.DensePrediction((LAYER,) * 6, reads=5), "reads is at most 4"),
    (bp.DensePrediction((LAYER,) * 6, width=0), "width must be a whole number of at least 1 at body[0]: got 0"),
    (bp.DensePrediction((LAYER, bp.ConvEmbedding()), reads=2), "layers keep width and resolution at body[0]: ConvEmbedding"),
])
def test_what_cannot_be_built_is_named(macro, text):
    with pytest.raises(ValueError) as caught:
        macro.check(8, "body[0]")
    assert text in str(caught.value)
