"""A trained transformer as a supernet, pruned by search to half its multiply-adds.

    python -m bodyplan.experiments.pruning_study --out runs/pruning [--quick]
    python -m bodyplan.experiments.pruning_study --out runs/pruning --report

The first command trains a byte-level transformer, orders its axes by importance so that the leading part of every layer
is its best, and searches that supernet for the subnet of half the multiply-adds with the lowest loss as it stands: which
layers and sublayers stay, how many heads and hidden units each has. Beside it stands magnitude pruning, the same fraction
of every layer by weight norm. All learn from the original for the same few steps, and the sizes found are trained from
scratch as well. Training, scoring of candidates and the final numbers use three different splits. One core; every
training keeps a checkpoint, so that the same command continues a study that was stopped. The result is `pruning.json`;
the second command writes docs/pruning.md from it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bodyplan as bp
import torch
from torch import nn

from ..evaluators.strategies.two_stage import TwoStage
from ..space.constraints import cost
from .pruning_page import write_page

__all__ = ["QUICK", "Settings", "evolve", "main", "study", "supernet_space", "uniform_genome"]

LEAST = 0.9             # of the multiply-adds allowed
Score = Callable[[bp.Genome], float]
QUICK = {"width": 32, "layers": 2, "heads": 2, "ratios": (0.25, 0.5, 1.0), "length": 16, "batch": 4, "steps": 6,
         "short_steps": 3, "share": 0.7, "evaluations": 8, "scoring_batches": 1, "test_batches": 2, "calibration_batches": 1}


@dataclass(frozen=True)
class Settings:
    """What the study does. steps: of the original; short_steps: of a distillation, and of the same size from scratch.

    share: of the original's multiply-adds that may stay. evaluations: candidates of the search. scoring_batches: that
    each is scored on. criteria: of importance, for the searched network; magnitude pruning goes by "weight".
    """

    width: int = 128
    layers: int = 6
    heads: int = 4
    ratios: tuple[float, ...] = tuple(k / 16 for k in range(4, 33))
    length: int = 128
    batch: int = 8
    steps: int = 1500
    short_steps: int = 400
    share: float = 0.5
    evaluations: int = 400
    scoring_batches: int = 6
    test_batches: int = 32
    calibration_batches: int = 8
    criteria: str = "activation"
    lr: float = 3e-3
    seed: int = 0

    def task(self) -> Any:
        """Shipped text; as many held-out batches as the test takes."""
        return bp.tasks.text(length=self.length, batch=self.batch, held_out_batches=self.test_batches)


def supernet_space(settings: Settings, macs: float | None = None) -> bp.Space:
    """Any of the layers, each with or without attention and feed-forward, of any number of heads and any ratio.

    macs: an upper bound on the multiply-adds of one sequence, as a constraint; networks far below it are left out too.
    """
    head_dim = settings.width // settings.heads
    attention = bp.Attention(heads=bp.choice(*range(1, settings.heads + 1)), head_dim=head_dim)
    block = bp.Block(mixer=bp.choice(attention, bp.Identity()),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(*settings.ratios)), bp.Identity()))
    found = cost("macs", settings.length)
    bounds = [] if macs is None else [found <= macs, found >= LEAST * macs]
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=settings.width, head=bp.LanguageHead(tied=True),
                    body=bp.repeat(block, times=bp.integer(1, settings.layers), keep="any"), constraints=bounds)


def evolve(score: Score, space: bp.Space, start: list[bp.Genome], evaluations: int, seed: int,
           parents: int = 16) -> tuple[bp.Genome, list[float]]:
    """The best of `evaluations` genomes of `space`, and the best score after each of them; lower is better.

    A quarter is drawn at random beside `start`; then the best sixteen are changed by mutation, or by crossover one time
    in four (regularised evolution without ageing, after Real et al., 2018).
    """
    rng = random.Random(seed)
    scores: dict[bp.Genome, float] = {}
    trace: list[float] = []
    for turn in range(50 * evaluations):
        if len(scores) >= evaluations:
            break
        if turn < len(start):
            genome = start[turn]
        elif len(scores) < max(2, evaluations // 4):
            genome = space.sample_genome(rng)
        else:
            best = sorted(scores, key=scores.__getitem__)[:parents]
            genome = (space.crossover(rng.choice(best), rng.choice(best), rng) if rng.random() < 0.25
                      else space.mutate(rng.choice(best), rng))
        if genome not in scores:
            scores[genome] = score(genome)
            trace.append(min(scores.values()))
    return min(scores, key=scores.__getitem__), trace


def uniform_genome(space: bp.Space, settings: Settings, macs: float) -> bp.Genome:
    """Every layer with the same number of heads and the same ratio, the fractions of both as equal as `macs` lets them be.

    For each number of heads the largest ratio that fits is taken. Raises ValueError where none fits.
    """
    found, complete = [], space.complete(space.largest())
    for heads in range(settings.heads):
        for ratio in reversed(range(len(settings.ratios))):
            option = {"heads": heads, "ratio": ratio}
            genome = space.from_complete({path: option.get(path.rpartition(".")[2], held) for path, held in complete.items()})
            if space.architecture(genome).cost(settings.length).macs <= macs:
                kept = (heads + 1) / settings.heads, settings.ratios[ratio] / settings.ratios[-1]
                found.append((abs(kept[0] - kept[1]), heads, genome))
                break
    if not found:
        raise ValueError(f"a uniform network of at most {macs:,.0f} multiply-adds stands beside the searched one: there is "
                         "none; raise share, or give smaller ratios")
    return min(found, key=lambda entry: entry[:2])[2]


def bits(model: nn.Module, task: Any, split: str, batches: int) -> list[float]:
    """Bits per byte of each of the first batches of a held-out split."""
    found = []
    model.eval()
    with torch.inference_mode():
        for step in range(min(batches, task.num_batches(split))):
            batch = task.batch(split, step, 0)
            total, predictions = task.tally(model(batch.inputs), batch)
            found.append(total / predictions)
    return found


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


class Study:
    """One run of the study: the original, its supernets, and the networks that come of them."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings, self.folder, self.task = settings, folder, settings.task()
        self.space = supernet_space(settings)
        self.seconds: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, model: nn.Module, steps: int, teacher: nn.Module | None = None) -> None:
        """Train in place, from the folder's checkpoint where there is one; learning from a teacher when given."""
        began = time.perf_counter()
        strategy = "sandwich" if teacher is None else TwoStage(teacher=teacher)
        bp.train(model, self.task, steps=steps, strategy=strategy, lr=self.settings.lr, seed=self.settings.seed,
                 checkpoint=self.folder / f"{name}.safetensors", resume=True, threads=1)
        self.seconds[name] = round(time.perf_counter() - began, 1)

    def report(self, name: str, architecture: bp.Architecture, before: nn.Module | None, after: nn.Module | None) -> None:
        """A row of the result: sizes, and bits per byte of every test batch before and after training."""
        found, batches = architecture.cost(self.settings.length), self.settings.test_batches
        self.rows.append({
            "network": name, "genome": architecture.genome.to_json(), "parameters": found.parameters, "macs": found.macs,
            "before": None if before is None else bits(before, self.task, "test", batches),
            "after": None if after is None else bits(after, self.task, "test", batches)})

    def original(self) -> nn.Module:
        """The largest network of the space, trained."""
        architecture = self.space.architecture(self.space.largest())
        model: nn.Module = architecture.build(seed=self.settings.seed)
        self.train("original", model, self.settings.steps)
        self.report("original", architecture, model, None)
        return model

    def supernet(self, model: nn.Module, criteria: str) -> bp.Supernet:
        """The model with its axes in the order of importance."""
        calibration = range(self.settings.calibration_batches)
        batches = [self.task.batch("train", step, self.settings.seed + 1) for step in calibration]
        return bp.Supernet.from_model(self.space, model, order=criteria, batches=batches)

    def search(self, net: bp.Supernet, macs: float, start: list[bp.Genome]) -> tuple[bp.Genome, list[float]]:
        """The subnet of at most `macs` multiply-adds with the lowest inherited loss on the scoring split."""
        began = time.perf_counter()

        def score(genome: bp.Genome) -> float:
            model = net.extract(self.space.architecture(genome))
            return mean(bits(model, self.task, "validation", self.settings.scoring_batches))

        found = evolve(score, supernet_space(self.settings, macs), start, self.settings.evaluations, self.settings.seed)
        self.seconds["search"] = round(time.perf_counter() - began, 1)
        return found

    def distilled(self, label: str, name: str, net: bp.Supernet, genome: bp.Genome, teacher: nn.Module) -> None:
        """Take a subnet out, let it learn from the original for a short time, and report both."""
        architecture = self.space.architecture(genome)
        model = net.extract(architecture)
        before = net.extract(architecture)
        self.train(label, model, self.settings.short_steps, teacher)
        self.report(name, architecture, before, model)

    def from_scratch(self, label: str, name: str, genome: bp.Genome, steps: int) -> None:
        architecture = self.space.architecture(genome)
        model = architecture.build(seed=self.settings.seed)
        self.train(label, model, steps)
        self.report(name, architecture, None, model)


def study(settings: Settings, folder: Path) -> dict[str, Any]:
    """Do the whole study, and return what `pruning.json` holds."""
    torch.set_num_threads(1)
    run = Study(settings, folder)
    model = run.original()
    whole = run.space.architecture(run.space.largest()).cost(settings.length).macs
    ordered, by_norm = run.supernet(model, settings.criteria), run.supernet(model, "weight")
    uniform = uniform_genome(run.space, settings, settings.share * whole)
    best, trace = run.search(ordered, settings.share * whole, [uniform])
    run.distilled("searched", "searched", ordered, best, model)
    run.distilled("magnitude", "magnitude, uniform", by_norm, uniform, model)
    run.distilled("uniform", f"{settings.criteria}, uniform", ordered, uniform, model)
    run.from_scratch("scratch", "searched size from scratch, same steps", best, settings.short_steps)
    run.from_scratch("scratch_uniform", "uniform size from scratch, same steps", uniform, settings.short_steps)
    run.from_scratch("scratch_long", "searched size from scratch, steps of original and distillation", best,
                     settings.steps + settings.short_steps)
    full = ordered.extract(run.space.architecture(run.space.largest()))
    return {"settings": asdict(settings), "rows": run.rows, "search": trace, "seconds": run.seconds,
            "ordered_full_size": bits(full, run.task, "test", settings.test_batches),
            "searched": run.space.architecture(best).draw(), "uniform": run.space.architecture(uniform).draw(),
            "task": run.task.describe(), "size": str(run.space.size()), "date": time.strftime("%Y-%m-%d"),
            "machine": _machine()}


def _machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "cpus": os.cpu_count(), "threads": 1, "torch": str(torch.__version__)}


def main(arguments: list[str] | None = None) -> None:
    """Do the study, or write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the study")
    parser.add_argument("--quick", action="store_true", help="a toy size that takes seconds and shows nothing")
    parser.add_argument("--report", action="store_true", help="write the page from the study that is there")
    parser.add_argument("--page", type=Path, default=Path("docs/pruning.md"))
    options = parser.parse_args(arguments)
    result = options.out / "pruning.json"
    if options.report:
        print(f"wrote {write_page(result, options.page)}")
        return
    found = study(Settings(**QUICK) if options.quick else Settings(), options.out)               # type: ignore[arg-type]
    command = f"python -m bodyplan.experiments.pruning_study --out {options.out}" + " --quick" * options.quick
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps({"command": command, **found}, indent=1))
    os.replace(partial, result)
    print(f"wrote {result}", file=sys.stderr)


if __name__ == "__main__":
    main()
