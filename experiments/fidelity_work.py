"""What the study of supernet fidelity does with one candidate or one supernet, and the file it keeps the answers in."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..search.executors.base import Job

if TYPE_CHECKING:
    from ..evaluators.tasks.base import Task
    from ..space.elastic.supernet import Supernet
    from ..space.model import SequenceModel
    from ..space.space import Space

__all__ = ["STRATEGIES", "Record", "Work", "study_space", "training_strategy"]

STRATEGIES = ("single_path", "multi_path", "fair", "sandwich", "sandwich_plain", "progressive_shrinking", "attentive",
              "two_stage")
_POINTS = 100           # of a stored loss curve
_TIMED_STEPS = 12       # of a candidate alone


def study_space() -> Space:
    """Hybrid decoders of two to four layers and 50,000 to 240,000 parameters, about 17 million of them.

    They differ in size as the candidates of a search do, and in which mixer stands in which layer, its heads, state,
    window and kernel, the kind of channel mixer, and whether the body runs twice. Size alone ranks well over the whole
    range and says nothing inside a bin of equal parameters, so both are reported.
    """
    import bodyplan as bp

    mixer = bp.choice(
        bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2), window=bp.choice(None, 16)),
        bp.GatedDeltaNet(heads=bp.choice(1, 2)),
        bp.Mamba2(state=bp.choice(8, 16), head_dim=16),
        bp.ShortConv(kernel=bp.choice(3, 5)),
        bp.Hyena())
    channel = bp.choice(bp.SwiGLU(ratio=2), bp.MLP(ratio=3, activation=bp.choice("gelu", "squared_relu")))
    space: Space = bp.Space(
        embed=bp.TokenEmbedding(vocab=256), width=bp.choice(48, 64),
        body=bp.repeat(bp.Block(mixer=mixer, channel=channel, norm=bp.RMSNorm()), times=bp.integer(2, 4)),
        recursion=bp.choice(bp.Once(), bp.Loop(times=2)),
        head=bp.LanguageHead(tied=True))
    return space


def training_strategy(name: str) -> Any:
    """The training strategy called `name`: a registered one, or "sandwich_plain", the sandwich without distillation.

    Raises ValueError with the nearest known name.
    """
    from ..evaluators.strategies import resolve
    from ..evaluators.strategies.sandwich import Sandwich

    return Sandwich(distill=False) if name == "sandwich_plain" else resolve(name)


@dataclass
class Work:
    """Runs the jobs of the study in a worker. The text is split in three, and no part serves two purposes:

    every training, of a supernet or of a candidate alone, reads the first 95 %; inherited weights are scored on the next
    2.5 %; candidates trained alone are measured on the last 2.5 %. Held-out windows are the same for every model.

    Timings are in seconds of the processor, which a worker's one thread has all to itself on a quiet machine: the strategies
    get the same work where others take turns on the cores, however busy those were while one of them was timed.

    Kinds of job, by the `fidelity` they carry:

        time_alone     seconds per training step of a candidate, over a few steps, and of a score
        time_supernet  seconds per training step of a strategy, over `steps` of a short training
        alone          the test score of a candidate after `steps` steps, and that on the scoring split
        supernet       `strategy` for `steps` steps; the weights go to a file in `folder`
        score          the scoring-split score of a candidate with the weights of `strategy`, as inherited and after
                       `adapt_steps` steps of training from them
        adapted        the same after `steps` steps

    Every answer holds the seconds of the processor that it took.
    """

    folder: Path
    batch: int
    length: int
    held_out: int
    lr: float
    supernet_lr: float
    adapt_steps: int = 0
    adapt_lr: float = 0.005

    def tasks(self) -> tuple[Task, Task]:
        """The task of training, and that of scoring: the same text, in larger batches."""
        import bodyplan as bp

        return (bp.tasks.text(length=self.length, batch=self.batch),
                bp.tasks.text(length=self.length, batch=4 * self.batch, held_out_batches=self.held_out))

    def setup(self) -> None:
        """Build the space and read the text once."""
        self.space: Space = study_space()
        self.task, self.scoring = self.tasks()
        self.task.batch("train", 0, 0)
        self.loaded: tuple[str, Supernet] | None = None

    def run(self, job: Job) -> dict[str, Any]:
        """The answer to one job; what it raises fails the job."""
        began = time.process_time()
        answer: dict[str, Any] = getattr(self, f"_{job.kind}")(job)
        return {**answer, "cpu_seconds": round(time.process_time() - began, 3)}

    def _time_alone(self, job: Job) -> dict[str, Any]:
        from ..evaluators.training import step_seconds

        module = self.space.architecture(job.genome).build(seed=job.seed)
        seconds = step_seconds(module, self.task, _TIMED_STEPS, time.process_time, lr=self.lr)
        self.scoring.score(module, "validation", 1)
        began = time.process_time()
        self.scoring.score(module, "validation", 1)
        return {"step_seconds": seconds,
                "score_seconds": (time.process_time() - began) * self.scoring.num_batches("validation")}

    def _time_supernet(self, job: Job) -> dict[str, Any]:
        from ..evaluators.training import step_seconds
        from ..space.elastic.supernet import Supernet

        net, strategy = Supernet(self.space, seed=job.seed), training_strategy(job.fidelity["strategy"])
        return {"step_seconds": step_seconds(net, self.task, int(job.fidelity["steps"]), time.process_time,
                                             strategy=strategy, lr=self.supernet_lr, seed=job.seed)}

    def _alone(self, job: Job) -> dict[str, Any]:
        from ..evaluators.training import train

        module = self.space.architecture(job.genome).build(seed=job.seed)
        record = train(module, self.task, int(job.fidelity["steps"]), lr=self.lr, seed=job.seed)
        return {"test": self.scoring.score(module, "test"), "scoring": self.scoring.score(module, "validation"),
                "train_seconds": record.seconds}

    def _supernet(self, job: Job) -> dict[str, Any]:
        from ..evaluators.training import train
        from ..space.elastic.supernet import Supernet

        path = self._weights(job.fidelity["strategy"])
        checkpoint = path.with_suffix(".checkpoint")
        net, strategy = Supernet(self.space, seed=job.seed), training_strategy(job.fidelity["strategy"])
        record = train(net, self.task, int(job.fidelity["steps"]), strategy=strategy, lr=self.supernet_lr, seed=job.seed,
                       checkpoint=checkpoint, resume=True)
        net.save(path)
        checkpoint.unlink(missing_ok=True)
        return {"train_seconds": record.seconds, "tokens": record.tokens, "skipped": record.skipped,
                "losses": _thinned(record.losses)}

    def _score(self, job: Job) -> dict[str, Any]:
        module = self._inherited(job)
        answer = {"scoring": self.scoring.score(module, "validation")}
        if self.adapt_steps:
            answer["adapted"] = self._after(module, self.adapt_steps, job.seed)
        return answer

    def _adapted(self, job: Job) -> dict[str, Any]:
        return {"adapted": self._after(self._inherited(job), int(job.fidelity["steps"]), job.seed)}

    def _after(self, module: SequenceModel, steps: int, seed: int) -> float:
        """The scoring-split score after a short training."""
        from ..evaluators.training import train

        train(module, self.task, steps, lr=self.adapt_lr, seed=seed)
        return self.scoring.score(module, "validation")

    def _inherited(self, job: Job) -> SequenceModel:
        """The candidate with the weights of a strategy."""
        from ..space.elastic.supernet import Supernet

        name = job.fidelity["strategy"]
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = name, Supernet.load(self.space, self._weights(name))
        return self.loaded[1].extract(self.space.architecture(job.genome))

    def _weights(self, strategy: str) -> Path:
        return self.folder / f"{strategy}.safetensors"


def _thinned(losses: Sequence[float]) -> list[float]:
    """At most a hundred means over equal stretches, without the steps that broke."""
    stretch = max(1, math.ceil(len(losses) / _POINTS))
    parts = ([x for x in losses[i:i + stretch] if math.isfinite(x)] for i in range(0, len(losses), stretch))
    return [round(sum(part) / len(part), 4) for part in parts if part]


class Record:
    """A file of one JSON object a line, each with a kind and a time, written as soon as there is something to say.

    A process killed while writing leaves a torn last line, which is cut off when the file is opened again. One process
    writes at a time; readers open with `write=False`.
    """

    def __init__(self, path: Path, write: bool = True):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            whole, _, torn = path.read_bytes().rpartition(b"\n")
            self.lines = [json.loads(line) for line in whole.splitlines()]
            if torn and write:
                os.truncate(path, len(whole) + bool(whole))

    def append(self, kind: str, **body: Any) -> None:
        """Write one line; it is on its way to the disk when this returns."""
        line = {"kind": kind, "time": round(time.time(), 2), **body}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines.append(line)

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The lines of one kind, oldest first."""
        return (line for line in self.lines if line["kind"] == kind)

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest line of a kind, None where there is none."""
        return next((line for line in reversed(self.lines) if line["kind"] == kind), None)

    def seconds_spent(self) -> float:
        """Wall time of all runs: from each one's "run" line to its last line."""
        spent, began, last = 0.0, None, 0.0
        for line in self.lines:
            if line["kind"] == "run":
                spent += 0.0 if began is None else last - began
                began = line["time"]
            last = line["time"]
        return spent + (0.0 if began is None else last - began)
