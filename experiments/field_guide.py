"""The field guide: every mixer and channel mixer on small tasks, with its size and its speed.

    python -m bodyplan.experiments.field_guide --out runs/field_guide [--operators NAME ...] [--minutes N]
    python -m bodyplan.experiments.field_guide --out runs/field_guide --report

The first command trains two layers of every registered operator on every task, for the same few steps, and measures its
speed beside attention's; every answer is a line of `guide.jsonl` as soon as it is there. The same command continues a
guide that was stopped, and adds the operators that came since. The second writes the tables of `docs/operators.md`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluators import tasks
from ..evaluators.devices import device_fingerprint, on_threads
from ..evaluators.training import step_seconds
from ..space.model import initialise
from ..space.operator import Operator, operators
from ..space.operators.attention import Attention
from ..space.reach import reference_configs
from ..systems import load_operators
from ..testing.training import RATES, STEPS, WIDTH, small_model, trained_error
from .fidelity_work import Record

if TYPE_CHECKING:
    from ..evaluators.tasks.base import Task

__all__ = ["FRAME", "RATES", "TRIALS", "WIDTH", "Guide", "Trial", "main", "subject", "subjects"]

PAGE = Path(__file__).parent.parent / "docs" / "operators.md"
FRAME = "(none)"                # the model without an operator: what the layers around it reach
SPEEDS = ((4, 256), (1, 2048))  # batch and tokens
REPEATS = 7
LONGEST = 60.0                  # seconds of one core for one training; operators that need more are not trained
SPEED_WIDTH = 64
BATCH = 32


@dataclass(frozen=True)
class Trial:
    """One task of the guide: what it asks, the error that an operator has to stay below, chosen between what the frame
    alone reaches and what attention does, and how many steps it has for it."""

    asks: str
    beats: float
    make: Callable[[], Task]
    grid: bool = False
    steps: int = STEPS


TRIALS: dict[str, Trial] = {
    "recall": Trial("the values of 4 keys among 32 tokens; to know which values there were gives 75", 50.0,
                    lambda: tasks.mqar(pairs=4, length=32, vocab=64, batch=BATCH), steps=2 * STEPS),
    "copying": Trial("4 tokens among 23 blanks, in order; chance is 83", 50.0,
                     lambda: tasks.selective_copying(tokens=4, length=32, vocab=8, batch=BATCH)),
    "order": Trial("the product of up to 8 permutations of 3 things after every one; chance is 83", 55.0,
                   lambda: tasks.permutations(things=3, length=8, batch=BATCH)),
    "rows": Trial("which of 10 kinds of garment 28 rows of pixels show; chance is 90", 20.0,
                  lambda: tasks.fashion_rows(batch=BATCH, held_out_batches=16)),
    "patches": Trial("the same from a grid of 7 by 7 patches", 20.0,
                     lambda: tasks.images(batch=BATCH, held_out_batches=16), grid=True),
}


@cache
def _task(name: str) -> Task:
    return TRIALS[name].make()


def subject(kind: type[Operator]) -> Operator | None:
    """An operator as the guide takes it: its defaults, with one head where it has heads, since the models are small."""
    if kind.kind not in ("mixer", "channel") or kind.cross or getattr(kind, "is_zero", False):
        return None
    made = next(reference_configs(kind), None)
    if made is None or getattr(made[0], "reads_shared", False) is True:
        return None
    config = made[0]
    if any(f.name == "heads" for f in fields(config)):                                # type: ignore[arg-type]
        config = _checked(replace(config, heads=1)) or config                         # type: ignore[type-var]
    return _checked(config)


def _checked(config: Operator) -> Operator | None:
    try:
        config.check(WIDTH, "guide")
        config.check(SPEED_WIDTH, "guide")
    except ValueError:
        return None
    return config


def subjects() -> dict[str, Operator | None]:
    """The frame and every registered operator that can stand in it, by name."""
    load_operators()
    found: dict[str, Operator | None] = {FRAME: None}
    for name in operators.names():
        config = subject(operators.get(name))
        if config is not None:
            found[name] = config
    return found


class Guide:
    """One guide in its folder. `run` does what is missing, cheap answers first.

    An answer counts as long as the operator's config, the task and the steps are what they are now. steps: of every
    training; default what each task says.
    """

    def __init__(self, folder: Path, names: Sequence[str] = (), steps: int | None = None, command: str = ""):
        known = subjects()
        for name in names:
            if name not in known:
                operators.get(name)         # raises for a name that nobody registered
                raise ValueError(f"the guide trains mixers and channel mixers that stand alone: {name} does not; leave it "
                                 "out")
        folder.mkdir(parents=True, exist_ok=True)
        self.chosen = {name: known[name] for name in names or known}
        self.steps, self.command = steps, command
        self.record = Record(folder / "guide.jsonl")

    def missing(self) -> Iterator[tuple[str, str]]:
        """(operator, task) pairs without an answer, and (operator, "speed")."""
        done = {(line["operator"], line["what"]) for line in self.record.lines if self._is_current(line)}
        for name, config in self.chosen.items():
            for what in ("speed", *TRIALS):
                fits = config is not None if what == "speed" else config is None or TRIALS[what].grid == config.spatial
                if fits and (name, what) not in done:
                    yield name, what

    def _is_current(self, line: dict[str, Any]) -> bool:
        name, what = line.get("operator"), line.get("what")
        return name in self.chosen and line["key"] == self._key(str(name), str(what))

    def _key(self, name: str, what: str) -> str:
        """What an answer depends on."""
        if what not in TRIALS:
            return str(_timed(self.chosen[name]))
        return f"{self.chosen[name]} {_task(what).fingerprint} {self._steps(what)}"

    def _steps(self, what: str) -> int:
        return TRIALS[what].steps if self.steps is None else self.steps

    def run(self, minutes: float | None = None, say: Callable[[str], None] = print) -> None:
        """Answer what is missing until the minutes are over; an answer that was begun is finished."""
        ends = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        missing = list(self.missing())
        if missing:
            self.record.append("run", command=self.command, machine=device_fingerprint("cpu"),
                               date=f"{datetime.now(UTC):%Y-%m-%d}")
        with on_threads(1):
            for number, (name, what) in enumerate(missing, 1):
                if time.monotonic() >= ends:
                    say(f"{len(missing) - number + 1} answers are missing; the same command goes on")
                    return
                answer = self._answer(name, what)
                self.record.append("answer", operator=name, what=what, key=self._key(name, what), **answer)
                say(f"{number}/{len(missing)} {name} {what}: {_short(answer)}")

    def _answer(self, name: str, what: str) -> dict[str, Any]:
        try:
            return _speed(_timed(self.chosen[name])) if what == "speed" else self._trained(self.chosen[name], what)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            return {"failure": f"{type(error).__name__}: {error}"}

    def _trained(self, config: Operator | None, what: str) -> dict[str, Any]:
        """The best of the learning rates, tried until one is good enough; the seconds of a step where that takes too long."""
        step = step_seconds(small_model(config, _task(what)).build(seed=0), _task(what), 2, time.process_time)
        if step * self._steps(what) > LONGEST:
            return {"slow": round(step, 3)}
        tried = []
        for lr in RATES:
            tried.append(trained_error(config, _task(what), self._steps(what), lr))
            if tried[-1].error < TRIALS[what].beats or config is None:
                break
        best = min(tried, key=lambda trained: trained.error if trained.error == trained.error else float("inf"))
        size = sum(declared.numel for declared in small_model(config, _task(what)).parameters.values())
        error = best.error if best.error == best.error else 100.0
        return {"error": error, "lr": best.lr, "seconds": round(sum(t.seconds for t in tried), 2), "parameters": size}


def _timed(config: Operator | None) -> Operator:
    """An operator as its speed is measured: its defaults, where they fit the width."""
    assert config is not None
    default, width = next(reference_configs(type(config)))
    return default if width == SPEED_WIDTH else config


def _speed(config: Operator) -> dict[str, Any]:
    """Parameters at width 64, and tokens per second over attention's, forward and backward, each time one after the other.

    Where the defaults are for shorter sequences, of the same operator made for these.
    """
    try:
        return _timed_beside_attention(config)
    except ValueError:
        most = max(length for _, length in SPEEDS)
        short = {name: most for name in ("reach", "max_len") if isinstance(getattr(config, name, None), int)}
        if not short:
            raise
        return _timed_beside_attention(replace(config, **short))                      # type: ignore[type-var]


def _timed_beside_attention(config: Operator) -> dict[str, Any]:
    ratios = {}
    for batch, length in SPEEDS:
        ours, theirs = (_pass(each, batch, length) for each in (config, Attention(heads=4)))
        ours(), theirs()
        pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(REPEATS)]
        ratios[str(length)] = round(statistics.median(theirs / mine for mine, theirs in pairs), 3)
    return {"ratios": ratios, "parameters": sum(p.numel for p in config.axes(SPEED_WIDTH).values())}


def _pass(config: Operator, batch: int, length: int) -> Callable[[], None]:
    """One forward and backward pass over activations, as a function."""
    module, declared = config.build(SPEED_WIDTH), config.axes(SPEED_WIDTH)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        initialise(parameter.data, declared[name], generator)
    sides = (16, length // 16) if config.spatial else (length,)
    x_BTD = torch.randn(batch, *sides, SPEED_WIDTH, generator=generator).requires_grad_()
    return lambda: module(x_BTD).square().mean().backward()                           # type: ignore[no-any-return]


def _seconds(call: Callable[[], None]) -> float:
    """Processor time, which other processes of the machine do not lengthen."""
    began = time.process_time()
    call()
    return max(time.process_time() - began, 1e-6)


def _short(answer: dict[str, Any]) -> str:
    if "failure" in answer:
        return str(answer["failure"])
    if "slow" in answer:
        return f"not trained, a step takes {answer['slow']:.2f} s"
    return f"{answer['error']:.1f} % wrong" if "error" in answer else f"{answer['ratios']} of attention's tokens per second"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the guide."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.field_guide", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/field_guide"), help="the folder of the guide")
    parser.add_argument("--operators", nargs="+", default=(), metavar="NAME", help="only these")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    parser.add_argument("--report", action="store_true", help="only write the page from what is there")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page of --report")
    asked = parser.parse_args(arguments)
    if asked.report:
        from .field_guide_page import write_page

        print(f"wrote {write_page(asked.page, asked.out / 'guide.jsonl')}")
        return
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bodyplan.experiments.field_guide", *given])
    Guide(asked.out, asked.operators, command=command).run(asked.minutes)


if __name__ == "__main__":
    main()
