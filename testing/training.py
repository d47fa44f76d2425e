"""Trainability: two layers of an operator learn a task in a small fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..evaluators.training import train
from ..space.operator import Operator
from ..space.operators.attention import Attention
from ..space.operators.embedding import FrameEmbedding, PatchEmbedding, TokenEmbedding
from ..space.operators.head import ClassifierHead, LanguageHead
from ..space.operators.short_conv import ShortConv
from ..space.operators.swiglu import SwiGLU
from ..space.plan import Block
from ..space.space import Space
from .modules import hold

if TYPE_CHECKING:
    from ..evaluators.tasks.base import Task
    from ..space.architecture import Architecture

__all__ = ["RATES", "STEPS", "Trained", "check_trains", "small_model", "trained_error"]

WIDTH = 32
STEPS = 300
RATES = (1e-2, 3e-3)            # the second where the first falls short


@dataclass(frozen=True)
class Trained:
    """What a training reached: the task's metric on held-out examples, the learning rate, the wall time it took."""

    error: float
    lr: float
    seconds: float


def small_model(config: Operator | None, task: Task, width: int = WIDTH) -> Architecture:
    """Two layers of an operator between the embedding and the head that fit a task; None leaves its place empty.

    A mixer stands before a SwiGLU of ratio 2, behind one layer with a short convolution, which tells tokens of their
    neighbours (Zoology, Arora et al., 2023). A channel mixer stands behind attention with two heads. On grids there is no
    convolution before.
    """
    if config is not None and config.kind == "channel":
        layer = Block(mixer=Attention(heads=2), channel=config)
    else:
        layer = Block(channel=SwiGLU(ratio=2)) if config is None else Block(mixer=config, channel=SwiGLU(ratio=2))
    embed, head = _ends(task)
    before = () if getattr(embed, "grid", False) else (Block(mixer=ShortConv(kernel=3)),)
    space = Space(embed=embed, width=width, body=(*before, layer, layer), head=head)
    task.check(space)
    return space.sample(0)


def _ends(task: Any) -> tuple[Operator, Operator]:
    """An embedding that takes the task's inputs, and a head that gives its answers."""
    if hasattr(task, "num_tokens"):
        return TokenEmbedding(vocab=task.num_tokens), LanguageHead()
    if hasattr(task, "features"):
        return FrameEmbedding(features=task.features, stack=1), ClassifierHead(classes=task.num_classes)
    if hasattr(task, "num_classes"):
        channels, height, width = task.shape
        return (PatchEmbedding(patch=4, channels=channels, image=(height, width), grid=True),
                ClassifierHead(classes=task.num_classes))
    return TokenEmbedding(vocab=256), LanguageHead()


def trained_error(config: Operator | None, task: Task, steps: int = STEPS, lr: float = RATES[0], seed: int = 0,
                  width: int = WIDTH) -> Trained:
    """Train `small_model` with AdamW and score it on the task's validation split."""
    module = small_model(config, task, width).build(seed=seed)
    record = train(module, task, steps, lr=lr, seed=seed)
    return Trained(task.score(module), lr, record.seconds)


def check_trains(config: Operator, task: Task, beats: float, steps: int = STEPS, seed: int = 0, width: int = WIDTH) -> None:
    """Two layers of the operator reach a metric better than `beats` in `steps` steps, at one of two learning rates."""
    reached = []
    for lr in RATES:
        reached.append(trained_error(config, task, steps, lr, seed, width).error)
        if reached[-1] < beats:
            return
    hold(False, f"two layers of an operator learn {task.name} to below {beats:g} {task.unit} of {task.metric} in "
                f"{steps} steps: {config} reaches {' and '.join(f'{error:.1f}' for error in reached)} at rates of "
                f"{' and '.join(map(str, RATES))}")
