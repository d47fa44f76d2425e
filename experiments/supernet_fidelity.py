"""Which way of training a supernet ranks candidates best: every strategy at equal wall time, against training alone.

    python -m bodyplan.experiments.supernet_fidelity --out runs/fidelity [--minutes 60] [--candidates 50] [--quick]
    python -m bodyplan.experiments.supernet_fidelity --out runs/fidelity --horizons 150 300 --of sandwich
    python -m bodyplan.experiments.supernet_fidelity --out runs/fidelity --report

The first command does the study: it draws candidates spread over parameters, times their training steps and those of
every strategy, divides the minutes, trains every candidate alone (some with a second seed, for the ceiling) and one
supernet per strategy for the same time each, and scores all candidates with the weights of every supernet. All of it
happens in worker processes of one torch thread. Every answer is a line of `study.jsonl` as soon as it is there; the same
command continues a study that was stopped, and adds strategies to one that is finished. The second asks how much training
from inherited weights changes the ranking: it scores every candidate after so many steps. The third writes the tables of
`docs/fidelity.md` from that file alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import BodyplanError
from ..search.dispatch import Dispatcher, StopRequest
from ..search.executors import Executor, Job, make_executor
from ..search.fidelity import stratified_indices
from ..search.lock import FileLock
from ..space.genome import Genome
from .fidelity_work import STRATEGIES, Record, Work, study_space, training_strategy

__all__ = ["Settings", "Study", "main"]

POOL = 30               # random architectures per candidate that the sample is drawn from
USABLE = 0.88           # of the minutes: the rest is for start-up, timing, and a worker that waits for the last job
QUICK = {"candidates": 6, "repeated": 4, "length": 32, "batch": 4, "held_out": 2, "steps": 12, "supernet_seconds": 3.0,
         "adapt_steps": 3, "timed_steps": 4, "minutes": 2.0, "strategies": ["single_path", "sandwich"]}
Task = tuple[str, dict[str, Any], Job]     # the kind of a line, what identifies it, and the job that makes it


@dataclass(frozen=True)
class Settings:
    """What a study measures; it may not change between its runs.

    repeated: candidates that are trained alone with a second seed.
    held_out: batches of a score, each of four training batches.
    steps: of a training alone, and supernet_seconds: of each supernet; None takes what fits into the minutes.
    alone_share: of the usable time, for trainings alone.
    adapt_steps: of a short training from inherited weights, after which a candidate is scored a second time, at a peak
        rate of adapt_lr; 0 for none.
    timed_steps: of the short training that times a strategy.
    """

    candidates: int = 50
    repeated: int = 50
    batch: int = 4
    length: int = 128
    held_out: int = 16
    lr: float = 0.01
    supernet_lr: float = 0.01
    seed: int = 0
    minutes: float = 60.0
    workers: int = 2
    steps: int | None = None
    supernet_seconds: float | None = None
    alone_share: float = 0.3
    adapt_steps: int = 60
    adapt_lr: float = 0.005
    timed_steps: int = 40

    def __post_init__(self) -> None:
        if self.candidates < 3 or not 0 <= self.repeated <= self.candidates:
            raise ValueError(f"a study ranks at least 3 candidates, and repeats at most all of them: got {self.candidates} "
                             f"and {self.repeated}")

    @property
    def seeds(self) -> list[int]:
        """How often each candidate is trained alone; the repeated ones lie evenly between the smallest and the largest."""
        marks = [index * self.repeated // self.candidates for index in range(self.candidates + 1)]
        return [1 + after - before for before, after in zip(marks, marks[1:], strict=False)]


class Study:
    """One study in its folder. `run` does what is missing.

    Raises ValueError when the folder holds a study with other settings or of another space.
    """

    def __init__(self, folder: Path, settings: Settings, strategies: Sequence[str], command: str = "",
                 horizons: Sequence[int] = (), of: Sequence[str] = ()):
        for name in (*strategies, *of):
            training_strategy(name)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings, self.strategies, self.command = folder, settings, tuple(strategies), command
        self.horizons, self.of = tuple(horizons), tuple(of)
        self.space = study_space()
        self.record = Record(folder / "study.jsonl")
        design = self.record.last("design")
        if design is not None:
            self._check_same(design)
        else:
            self.record.append("design", settings=asdict(settings), space=self.space.hash, size=str(self.space.size()),
                               data=self._work().tasks()[1].describe(), candidates=self._drawn())
        self.candidates: list[dict[str, Any]] = (self.record.last("design") or {})["candidates"]

    def _check_same(self, design: dict[str, Any]) -> None:
        now = {**asdict(self.settings), "space": self.space.hash}
        before = {**design["settings"], "space": design["space"]}
        odd = [f"{name} {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value]
        if odd:
            raise ValueError(f"a study is continued with the settings it was started with: {self.folder} has "
                             f"{'; '.join(odd)}; give the same, or another folder")

    def _drawn(self) -> list[dict[str, Any]]:
        """The candidates: random architectures, one from each of as many bins of equal membership over parameters."""
        found = {a.hash: a for a in (self.space.sample(seed) for seed in range(POOL * self.settings.candidates))}
        pool = sorted(found.values(), key=lambda a: a.hash)
        sizes = [a.cost().parameters for a in pool]
        chosen = [pool[index] for index in stratified_indices(sizes, self.settings.candidates, self.settings.seed)]
        return [{"genome": a.genome.to_json(), "hash": a.hash, "parameters": a.cost().parameters,
                 "macs": a.cost(self.settings.length).macs} for a in chosen]

    def _work(self) -> Work:
        s = self.settings
        return Work(self.folder, s.batch, s.length, s.held_out, s.lr, s.supernet_lr, s.adapt_steps, s.adapt_lr)

    def run(self, executor: Executor | None = None) -> None:
        """Do what is missing. Raises KeyboardInterrupt after Ctrl-C, once what is running is finished and written, and
        BodyplanError while another process writes this study.
        """
        lock = FileLock(self.folder / "study.lock")
        if not lock.acquire():
            raise BodyplanError(f"one process writes a study at a time: {self.folder} is being written by process "
                                f"{lock.holder()}; wait for it or stop it first")
        try:
            self._run(executor)
        finally:
            lock.release()

    def _run(self, executor: Executor | None) -> None:
        from ..evaluators.devices import device_fingerprint

        self.record.append("run", command=self.command, machine={**device_fingerprint("cpu"), "threads": 1},
                           date=datetime.now(UTC).date().isoformat(), pid=os.getpid())
        executor = executor or make_executor("local", workers=self.settings.workers, log_directory=self.folder / "logs")
        stop = StopRequest(print)
        with executor, stop.listening():
            executor.start(self._work())
            self.dispatcher = Dispatcher(executor, stop)
            self._do(self._timings())
            self._plan()
            self._do([*self._supernets(), *self._trainings()])
            self._do(self._scores())
            self._do(self._longer())

    def _do(self, tasks: Iterable[Task]) -> None:
        """Run jobs and write their answers; those with an answer are left out, those that failed are tried again."""
        answered = {_key(line["kind"], line) for line in self.record.lines if "failure" not in line}
        todo = [task for task in tasks if _key(task[0], task[1]) not in answered]
        jobs = [(place, task[2]) for place, task in enumerate(todo)]
        for number, (place, _, outcome) in enumerate(self.dispatcher.each(jobs), start=1):
            assert isinstance(place, int)
            kind, about, _ = todo[place]
            answer = outcome.values if outcome.failure is None else {"failure": outcome.failure.reason}
            self.record.append(kind, **about, **(answer or {}), seconds=round(outcome.seconds, 2))
            print(f"{kind} {number}/{len(todo)}: {_said(about)}, {_said(answer or {})}", flush=True)

    def _job(self, kind: str, candidate: int | None = None, replicate: int = 0, **how: Any) -> Job:
        """Seeds are those of a replicate: candidates trained alone see the same batches (common random numbers)."""
        genome = self.space.smallest() if candidate is None else Genome.from_json(self.candidates[candidate]["genome"])
        return Job(0, kind, genome, self.settings.seed + replicate, how, replicate)

    def _timings(self) -> Iterable[Task]:
        for index in range(len(self.candidates)):
            yield "time_alone", {"candidate": index}, self._job("time_alone", index)
        for name in self.strategies:
            yield "time_supernet", {"strategy": name}, self._job("time_supernet", strategy=name,
                                                                 steps=self.settings.timed_steps)

    def _plan(self) -> None:
        """How the time is divided, once: strategies that are added later get as much as the others had."""
        if self.record.last("plan") is not None:
            return
        s = self.settings
        times = {line["candidate"]: line for line in self.record.of("time_alone") if "failure" not in line}
        if len(times) < len(self.candidates):
            raise BodyplanError("every candidate is timed before the minutes are divided: "
                                f"{len(self.candidates) - len(times)} failed, {self.record.path} says why")
        scores = len(self.strategies) * (2 if s.adapt_steps else 1)
        scoring = sum(times[index]["score_seconds"] * (2 * count + scores)
                      + times[index]["step_seconds"] * s.adapt_steps * len(self.strategies)
                      for index, count in enumerate(s.seeds))
        one_step = sum(times[index]["step_seconds"] * count for index, count in enumerate(s.seeds))
        left = 60 * s.minutes * s.workers * USABLE - scoring
        steps = s.steps or int(left * s.alone_share / one_step) // 10 * 10
        seconds = s.supernet_seconds or (left - steps * one_step) / len(self.strategies)
        if steps < 1 or seconds <= 0:
            raise ValueError(f"{s.minutes:g} minutes are too few: scoring alone takes {scoring:.0f} s and a step of all "
                             f"candidates {one_step:.1f} s; give more minutes, or fewer candidates or strategies")
        self.record.append("plan", steps=steps, supernet_seconds=round(seconds, 2))

    def _supernets(self) -> Iterable[Task]:
        plan = self.record.last("plan") or {}
        times = {line["strategy"]: line["step_seconds"] for line in self.record.of("time_supernet")
                 if "failure" not in line}
        for name in self.strategies:
            if name in times:
                steps = max(1, round(plan["supernet_seconds"] / times[name]))
                yield "supernet", {"strategy": name, "steps": steps}, self._job("supernet", strategy=name, steps=steps)

    def _trainings(self) -> Iterable[Task]:
        steps = (self.record.last("plan") or {})["steps"]
        for replicate in range(2):
            for index, count in enumerate(self.settings.seeds):
                if replicate < count:
                    yield ("alone", {"candidate": index, "replicate": replicate, "steps": steps},
                           self._job("alone", index, replicate, steps=steps))

    def _scores(self) -> Iterable[Task]:
        trained = {line["strategy"] for line in self.record.of("supernet") if "failure" not in line}
        for name in self.strategies:
            for index in range(len(self.candidates) if name in trained else 0):
                yield "score", {"strategy": name, "candidate": index}, self._job("score", index, strategy=name)

    def _longer(self) -> Iterable[Task]:
        trained = {line["strategy"] for line in self.record.of("supernet") if "failure" not in line}
        for name in (name for name in self.of if name in trained):
            for steps in self.horizons:
                for index in range(len(self.candidates)):
                    yield ("adapted", {"strategy": name, "candidate": index, "horizon": steps},
                           self._job("adapted", index, strategy=name, steps=steps))


def _key(kind: str, about: dict[str, Any]) -> tuple[Any, ...]:
    """What makes an answer the answer to a question."""
    return kind, about.get("strategy"), about.get("candidate"), about.get("replicate"), about.get("horizon")


def _said(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in numbers.items() if not isinstance(value, list))


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the study and print its tables, or write the page with `--report`."""
    from .fidelity_page import tables, write_page

    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(given)
    if options.report:
        print(f"wrote {write_page(options.page, options.out / 'study.jsonl')}")
        return
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    command = f"python -m bodyplan.experiments.supernet_fidelity {shlex.join(given)}"
    Study(options.out, settings, options.strategies, command, options.horizons, options.of).run()
    print(tables(Record(options.out / "study.jsonl", write=False)))


def _options(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fidelity"), help="the folder of the study")
    parser.add_argument("--quick", action="store_true", help="six candidates and a few steps: does it run?")
    parser.add_argument("--report", action="store_true", help="write the page from a study that is there")
    parser.add_argument("--page", type=Path, default=Path("docs/fidelity.md"), help="whose tables --report writes")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--horizons", nargs="+", type=int, default=[], help="steps of training from inherited weights")
    parser.add_argument("--of", nargs="+", default=[], metavar="NAME", help="strategies whose candidates take them")
    for name, default in asdict(Settings()).items():
        kind = {"steps": int, "supernet_seconds": float}.get(name, type(default))
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, metavar=kind.__name__.upper())
    if "--quick" in given:
        parser.set_defaults(**QUICK)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
