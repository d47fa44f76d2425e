"""Small image transformers that tests of token reductions share."""

import bodyplan as bp
import torch
from example_macros import space

BLOCK = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), channel=bp.MLP(ratio=2))
PIXELS = {"embed": bp.PatchEmbedding(patch=4, image=20), "head": bp.ClassifierHead(classes=5), "width": 16}
GRID = PIXELS | {"embed": bp.PatchEmbedding(patch=4, image=20, grid=True)}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(body, seed=1, **more):
    return space(body, **(PIXELS | more)).sample(0).build(seed=seed).eval()


def images(batch=3):
    return random(batch, 1, 20, 20).float()
