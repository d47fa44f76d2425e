"""Toy models that a test trains for a second, and their loss."""

import bodyplan as bp
import torch
import torch.nn.functional as F

__all__ = ["IDS", "batch", "built", "layer", "loss_of", "train_on", "trained"]

IDS = torch.randint(32, (3, 11), generator=torch.Generator().manual_seed(9))


def batch(step, length=12):
    """Each token is to be said again two tokens later."""
    ids = torch.randint(32, (16, length), generator=torch.Generator().manual_seed(step))
    return ids, ids.roll(2, 1)


def loss_of(model, steps=range(900, 904)):
    with torch.no_grad():
        found = [F.cross_entropy(model(ids)[:, 2:].flatten(0, 1), wanted[:, 2:].flatten())
                 for ids, wanted in map(batch, steps)]
    return float(torch.stack(found).mean())


def built(*layers, seed=1, width=16, **more):
    return bp.Space(embed=bp.TokenEmbedding(vocab=32), width=width, body=layers,
                    **{"head": bp.LanguageHead(tied=True), **more}).sample(0).build(seed)


def train_on(model, steps):
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    for step in range(steps):
        ids, wanted = batch(step)
        loss = F.cross_entropy(model(ids)[:, 2:].flatten(0, 1), wanted[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def trained(*layers, steps=60, **more):
    return train_on(built(*layers, **more), steps)


def layer(**options):
    return bp.Block(mixer=bp.Attention(**{"heads": 4, "head_dim": 4, **options}), channel=bp.SwiGLU(ratio=2))
