"""A sweep: space, task, objectives, strategy, budget, executor. What a user writes down and runs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BodyplanError
from . import checks
from .definition import check_same, definition
from .executors.base import Evaluator, Executor, available_cpus
from .front import Front
from .journal import FILE_NAME, Journal, check_free
from .origin import WEIGHTS_FOLDER, SweepOrigin
from .placement import check_placement
from .strategies.base import Strategy, resolve
from .surrogates import check_predictor

if TYPE_CHECKING:
    from ..evaluators.objectives import Objective
    from ..evaluators.predictors import Predictor
    from ..evaluators.strategies import TrainingStrategy
    from ..evaluators.tasks.base import Task
    from ..space.architecture import Architecture
    from ..space.genome import Genome
    from ..space.space import Space
    from .forecast import Forecast

__all__ = ["Sweep"]


class Sweep:
    """A search, checked completely here and started by `run`.

    Args:
        space: what to search.
        task: what models are trained and scored on; may be left out when no objective needs it.
        objectives: names and `Objective`s, at least one.
        strategy: a name ("random", "evolution", "local_search", "optuna:tpe", "optuna:nsga2") or a strategy.
        trials: how many distinct architectures to evaluate, failed ones included.
        hours: wall time after which no more are asked for, supernet training and earlier runs included; what
            follows the search (twin, retraining) comes on top. With both limits, the first one reached counts.
        supernet: train shared weights once and judge candidates by what they inherit. Otherwise every candidate
            that needs a model is trained alone for `steps` steps, or, without a task, measured untrained.
        executor: "inline", "local", "ray" or an `Executor`. Default: "local" where a model is needed, else "inline".
        workers: parallel evaluations; default: one per CPU (inline: one).
        directory: where everything goes; default: a new one under `runs/`.
        initial: architectures (or genomes) of this space that are evaluated first, such as today's model.
        twin: run a random search of the same budget beside it, sharing evaluations.
        order: "ask" tells the strategy results in the order it asked, which makes deterministic sweeps repeatable on
            every executor; "completion" as they come, which keeps slow candidates from holding up a cluster.
            Default: "completion" on Ray, else "ask".
        in_flight: candidates asked for and not yet told; default: enough to keep the workers busy, at least 4.
        tracking: True for MLflow in the directory, a tracking URI, or False.
        optuna_storage: URL of an Optuna storage that trials are copied into, for optuna-dashboard.
        retrain: how many of the front's best are trained alone at the end (supernet sweeps).
        fidelity_sample: how many candidates, spread over size, are trained alone to measure the rank correlation of
            inherited with standalone scores (supernet sweeps); 0 leaves it out.
        supernet_steps, supernet_strategy: how the shared weights are trained; a name, or a strategy with settings.
        supernet_workers: processes that train the shared weights together, each of them other subnets of the same
            step; the result is that of one, to rounding. More than one need executor="ray", and with a cluster a
            directory that its machines share.
        steps: training steps of a candidate trained alone.
        inherit: such a candidate starts from the weights of the nearest one that the strategy was told of
            (`space.distance`, `inherited`), the first ones from fresh weights. It then has the steps of its line behind
            it, so scores compare candidates of one sweep and are no measure of an architecture alone.
        auxiliary: losses that layers have beside the task's, by name, each with its weight: "ratio", "routing", "gate" and
            others, see `bp.train`. Shared weights and candidates trained alone get them where they have such layers.
        predictor: learns while the sweep runs what its measured objectives say (`bp.latency`): a name such as "gaussian",
            or a `bp.Predictor`. A candidate predicted to break a bound, even at the better end of the interval, is not
            tried and counts for no trial; others are measured only where the prediction leaves open whether they are on
            the front. What is on the front in the end is measured.
        timeout: seconds, memory_gb: 10^9 bytes, for one evaluation; beyond, it is a failed trial.
        address: of a running Ray cluster to join ("host:port" or "auto"); without it, "ray" starts a private one.
        device: where supernet and candidates are trained and scored: "cpu", "cuda", "cuda:1"; for every worker that
            of its own machine. On Ray each worker reserves a GPU ("cuda"); `RayExecutor(gpus=0.5)` lets two share one.
            A latency is measured on the device it names.
        dtype: what they compute in: "float32", or "bfloat16" or "float16" for mixed precision; weights stay in float32.
        reference: reference point of the hypervolume, a number per objective or some of them by name; what is not
            declared is fixed before the search as 1.1 times the worst of a few probes.

    Raises:
        ValueError, TypeError: whatever is wrong with the arguments, before any work.

    Example:
        >>> import tempfile
        >>> import bodyplan as bp
        >>> space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16),
        ...                  body=bp.repeat(bp.Block(bp.Attention(heads=bp.choice(1, 2))), times=bp.integer(1, 3)),
        ...                  head=bp.LanguageHead(tied=True))
        >>> sweep = bp.Sweep(space, objectives=["parameters", "macs"], trials=5, tracking=False,
        ...                  directory=tempfile.mkdtemp(), quiet=True)
        >>> len(sweep.run()) >= 1
        True
    """

    def __init__(self, space: Space, task: Task | None = None,
                 objectives: Sequence[str | Objective] = ("loss", "parameters"),
                 strategy: str | Strategy = "evolution", trials: int | None = None, hours: float | None = None,
                 supernet: bool = False, executor: str | Executor | None = None, workers: int | None = None,
                 directory: str | os.PathLike[str] | None = None, seed: int = 0,
                 initial: Sequence[Architecture | Genome] = (), twin: bool = False,
                 order: Literal["ask", "completion"] | None = None, in_flight: int | None = None,
                 tracking: bool | str = True, optuna_storage: str | None = None, retrain: int = 3,
                 fidelity_sample: int = 12, supernet_steps: int = 2000,
                 supernet_strategy: str | TrainingStrategy = "sandwich", steps: int = 500,
                 timeout: float | None = None, memory_gb: float | None = None, address: str | None = None,
                 reference: Mapping[str, float] | Sequence[float] | None = None, quiet: bool = False,
                 device: str = "cpu", dtype: str = "float32", supernet_workers: int = 1,
                 inherit: bool = False, auxiliary: Mapping[str, float] | None = None,
                 predictor: str | Predictor | None = None):
        self.space = checks.check_space(space)
        checks.check_task(task, space)
        self.task = task
        self.objectives = checks.resolve_objectives(objectives, task)
        self.strategy = resolve(strategy)
        checks.check_budget(trials, hours)
        self.trials, self.hours = trials, hours
        checks.check_count("seed", seed, least=0)
        self.seed, self.twin, self.quiet = seed, bool(twin), quiet
        self.supernet = bool(supernet)
        checks.check_training(self.supernet, self.trains, task, self.twin)
        checks.check_inherit(inherit, self.supernet, self.trains)
        self.inherit = bool(inherit)
        self._set_effort(supernet_steps, supernet_strategy, steps, retrain, fidelity_sample)
        self._set_executor(executor, workers, order, in_flight, timeout, memory_gb, address)
        self.device, self.dtype, self.supernet_workers = device, dtype, supernet_workers
        check_placement(self)
        self.auxiliary = checks.check_auxiliary(auxiliary, space, self.trains)
        self.initial = checks.resolve_initial(initial, space)
        self.predictor = check_predictor(predictor, self.objectives)
        self.declared_reference = checks.resolve_reference(reference, self.objectives)
        checks.check_tracking(tracking)
        self.tracking, self.optuna_storage = tracking, optuna_storage
        self.directory = _directory(directory)
        self.source: dict[str, str] | None = None   # the file and name it was launched from, for `bodyplan resume`

    def _set_effort(self, supernet_steps: int, supernet_strategy: str | TrainingStrategy, steps: int, retrain: int,
                    fidelity_sample: int) -> None:
        for name, value, least in (("supernet_steps", supernet_steps, 1), ("steps", steps, 1),
                                   ("retrain", retrain, 0), ("fidelity_sample", fidelity_sample, 0)):
            checks.check_count(name, value, least)
        self.supernet_label = checks.check_training_strategy(supernet_strategy) if self.supernet else ""
        self.supernet_steps, self.supernet_strategy, self.steps = supernet_steps, supernet_strategy, steps
        self.retrain, self.fidelity_sample = retrain, fidelity_sample

    def _set_executor(self, executor: str | Executor | None, workers: int | None, order: str | None,
                      in_flight: int | None, timeout: float | None, memory_gb: float | None, address: str | None) -> None:
        self.executor = executor or ("local" if self.needs_model else "inline")
        checks.check_executor(self.executor, workers, timeout, memory_gb, address)
        if order not in (None, *checks.ORDERS):
            raise ValueError(f"order must be one of {', '.join(checks.ORDERS)}: got {order!r}")
        if in_flight is not None:
            checks.check_count("in_flight", in_flight)
        self.workers, self.timeout, self.memory_gb, self.address = workers, timeout, memory_gb, address
        self.order = order or ("completion" if self.executor_name == "ray" else "ask")
        self._defaulted = [name for name, value in (("order", order), ("in_flight", in_flight)) if value is None]
        busy = 1 if self.executor == "inline" else workers or available_cpus()
        self.in_flight = in_flight or (max(4, 2 * busy) if self.order == "ask" else busy + 1)

    @property
    def executor_name(self) -> str:
        if isinstance(self.executor, str):
            return self.executor
        return type(self.executor).__name__.removesuffix("Executor").lower()

    @property
    def ray_address(self) -> str | None:
        """Of the cluster that the workers are on, None where they are on this machine."""
        return self.address or getattr(self.executor, "address", None)

    @property
    def needs_model(self) -> bool:
        """Whether some objective judges a module and not the architecture alone."""
        return any(objective.needs == "model" for objective in self.objectives)

    @property
    def trains(self) -> bool:
        """Whether weights are trained: shared ones, or every candidate's own."""
        return self.supernet or (self.task is not None and self.needs_model)

    @property
    def fidelity(self) -> dict[str, Any]:
        """What a candidate is judged by during the search, as it enters evaluation seeds and the cache."""
        if self.supernet:
            return {"weights": "inherited"}
        return {"weights": "nearest" if self.inherit else "own", "steps": self.steps} if self.trains else {}

    def evaluator(self, weights: Mapping[str, Any] | None = None) -> Evaluator:
        """What judges this sweep's candidates in a worker; `weights` are the supernet's, as numpy arrays."""
        from ..evaluators.evaluation import Evaluator

        return Evaluator(self.space, self.task, self.objectives, weights=weights, device=self.device, dtype=self.dtype,
                         auxiliary=self.auxiliary)

    @property
    def weights_folder(self) -> Path | None:
        """Where candidates that are trained alone leave their weights during the search, None where none are."""
        return self.directory / WEIGHTS_FOLDER if self.trains and not self.supernet else None

    def run(self, resume: bool = False) -> Front:
        """Search until the budget is spent, and answer with the front.

        With `resume`, continue what the directory holds: finished candidates are never evaluated again, those in
        flight when it stopped come first; a larger budget than before extends the sweep. The first Ctrl-C lets what is
        running finish and then raises KeyboardInterrupt, the second raises it at once; either can be resumed.

        Raises:
            BodyplanError: the directory already holds a sweep (without `resume`), holds none or another one (with it),
                or is being written by another process; a worker cannot start; training diverged.
        """
        from .session import Session, Surroundings
        from .stages import run_stages

        if not resume:
            check_free(self.directory)
        surroundings = Surroundings(self)
        with self._open(resume) as journal, Session(self, journal, surroundings) as session:
            return run_stages(session)

    def measure_fidelity(self, candidates: int | None = None, steps: int | None = None, seeds: int = 1) -> dict[str, Any]:
        """How well the scores of this sweep rank candidates, against training a sample of them alone.

        The sweep must have candidates already. What the journal holds is not trained again, and an interrupted call
        goes on where it stopped.

        Args:
            candidates: how many, spread over parameters; default: `fidelity_sample`, or 12.
            steps: of a training alone; default: the sweep's own.
            seeds: 1, or 2 for the ceiling as well: how well one training alone ranks beside another of the same.

        Returns:
            The body of the journal's "fidelity" event, see `search.fidelity.measure_fidelity`.

        Raises:
            ValueError: numbers out of range.
            BodyplanError: the sweep has no objective that is trained for, fewer than three candidates, or is being
                written by another process.
        """
        from .session import Session, Surroundings
        from .stages import write_report
        from .standalone import measure

        checks.check_sample(candidates, steps, seeds)
        surroundings = Surroundings(self)
        with self._open(resume=True) as journal, Session(self, journal, surroundings) as session:
            body = measure(session, candidates, steps, seeds)
            write_report(session)
            return body

    def dry_run(self) -> Forecast:
        """Size of the space, ten samples, and what the sweep would take, by timing two evaluations and training steps.

        Writes nothing. `print` it, or use its fields.
        """
        from .forecast import forecast

        return forecast(self)

    def front(self) -> Front:
        """The front as the journal in the directory has it, without running anything."""
        with Journal.open(self.directory) as journal:
            check_same(journal, self)
            return Front.from_journal(journal, SweepOrigin.of(self))

    def _open(self, resume: bool) -> Journal:
        if not resume:
            return Journal.create(self.directory, definition(self))
        if not (self.directory / FILE_NAME).exists():
            raise BodyplanError(f"a resume continues a sweep: {self.directory} holds no {FILE_NAME}; call run() to "
                                "start one there")
        journal = Journal.open(self.directory, write=True)
        try:
            self._adopt(journal.definition)
            check_same(journal, self)
        except BaseException:
            journal.close()
            raise
        return journal

    def _adopt(self, before: Mapping[str, Any]) -> None:
        """Take over from the first run what was left to a default that depends on the machine."""
        for name in self._defaulted:
            setattr(self, name, before.get(name, getattr(self, name)))


def _directory(directory: str | os.PathLike[str] | None) -> Path:
    if directory is not None:
        path = Path(directory).expanduser().resolve()
        checks.check_directory(path)
        return path
    stem = Path("runs", time.strftime("%Y%m%d-%H%M%S")).resolve()
    path, attempt = stem, 1
    while path.exists():
        attempt += 1
        path = stem.with_name(f"{stem.name}-{attempt}")
    return path
