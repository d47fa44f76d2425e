"""Trainings that one process and a group of processes must do alike; each process of a group runs `run_rank`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import bodyplan as bp
import torch
import torch.distributed as dist
from bodyplan.evaluators.distributed import Group
from bodyplan.evaluators.strategies import Visit
from bodyplan.evaluators.tasks.language import TextTask
from bodyplan.evaluators.training import train
from torch import nn


def make_space() -> bp.Space:
    block = bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2)),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.MLP()))
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                    body=bp.repeat(block, times=bp.integer(1, 2)), head=bp.LanguageHead(tied=True))


def two_subnets(space: bp.Space, step: int, steps: int, seed: int) -> list[Visit]:
    return [Visit(space.sample(100 * seed + 2 * step)), Visit(space.sample(100 * seed + 2 * step + 1))]


@dataclass(frozen=True)
class Breaking(TextTask):
    """A text that cannot be read at one step, on any rank."""

    at: ClassVar[int | None] = 2

    def batch(self, split: str, step: int, seed: int) -> Any:
        if split == "train" and step == self.at:
            raise OSError("the disk is gone")
        return super().batch(split, step, seed)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2))
        return found


SGD = {"optimizer": "sgd", "lr": 0.1, "warmup": 0.0}
SCENARIOS: dict[str, dict[str, Any]] = {
    "one SGD step of two subnets": {"strategy": two_subnets, "steps": 1, **SGD},
    "sandwich": {"strategy": "sandwich", "steps": 3, **SGD},
    "fewer visits than ranks": {"strategy": "single_path", "steps": 3, **SGD},
    "parts of parts": {"strategy": "multi_path", "steps": 2, "accumulate": 2, **SGD},
    "adam": {"strategy": "fair", "steps": 3, "lr": 1e-3},
    "a fixed teacher": {"strategy": "two_stage", "steps": 4, **SGD},
    "resumed": {"strategy": "sandwich", "steps": 4, **SGD},
    "plain": {"steps": 3, **SGD},
    "statistics": {"steps": 2, **SGD},
}


def run(name: str, folder: Path, group: Group) -> dict[str, torch.Tensor]:
    """The weights after one scenario; ranks start with different weights, of which the first rank's count."""
    task = TextTask(None, 16, 4, 2)
    if name in ("plain", "statistics"):
        torch.manual_seed(group.rank)
        model: nn.Module = make_space().sample(1).build(seed=group.rank) if name == "plain" else Normed()
    else:
        model = bp.Supernet(make_space(), seed=group.rank)
    if name == "resumed" and group.size > 1:
        path = folder / "checkpoint"
        try:
            train(model, Breaking(None, 16, 4, 2), **SCENARIOS[name], checkpoint=path, group=group)
        except OSError:
            model = bp.Supernet(make_space(), seed=7 + group.rank)
        Breaking.at = None
        record = train(model, Breaking(None, 16, 4, 2), **SCENARIOS[name], checkpoint=path, resume=True, group=group)
    else:
        record = train(model, task, **SCENARIOS[name], group=group)
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return {**found, "losses": torch.tensor(record.losses), "tokens": torch.tensor(record.tokens)}


def run_rank(rank: int, size: int, folder: str) -> None:
    """One process of a group: every scenario in turn, its weights into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    found = {name: run(name, Path(folder), Group.current()) for name in SCENARIOS}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
