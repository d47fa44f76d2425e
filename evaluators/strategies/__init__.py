"""Which subnets a training step of a supernet visits, and what each of them learns from: one file per strategy.

    base.py         Visit, TrainingStrategy, the registry of names, resolve()
    draw.py         drawing a subnet: siblings are dealt, sizes are chosen; what kind of size a gene is
    single_path.py  one random subnet
    fair.py         every sibling once per step
    multi_path.py   several random subnets, each on its part of the batch
    sandwich.py     largest, smallest, random, with in-place distillation
    attentive.py    the sandwich with the best or the worst of several random subnets
    shrinking.py    the largest first, then one kind of size after the other opens
    growing.py      shallow first, then deeper
    two_stage.py    the largest first, then subnets learn from it, or from a given teacher
    learngene.py    layers on a line first, then any other strategy; linear_expansion()
"""

from __future__ import annotations

from .base import TrainingStrategy, Visit, resolve, sampling_strategies

__all__ = ["TrainingStrategy", "Visit", "resolve", "sampling_strategies"]
