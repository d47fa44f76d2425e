"""What a sweep does, stage by stage. Each stage first looks into the journal and does only what is missing.

So running, resuming and extending a budget are one path: nothing is done twice, and a stage whose inputs changed
(a longer search, another front) does the difference.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random as Generator
from typing import TYPE_CHECKING, Any

from ..errors import BodyplanError
from .front import Front
from .journal import encode
from .loop import Budget, Loop
from .origin import SUPERNET_FILE, WEIGHTS_FOLDER
from .pareto import reference_point
from .placement import supernet_threads, told
from .progress import duration
from .resume import Ledger, is_screened, replay
from .session import Session, Subject
from .strategies.base import Strategy
from .strategies.random import Random

if TYPE_CHECKING:
    from ..evaluators.training import TrainingRecord
    from ..space.elastic.supernet import Supernet
    from .sweep import Sweep

__all__ = ["run_stages"]

LOST_WORKERS = 2            # how often all workers of a supernet's training are started again when one is lost
_RANDOM_PROBES = 3


def run_stages(session: Session) -> Front:
    """Everything from the first weight to the last line of the summary."""
    make_supernet(session)
    fix_reference(session)
    search(session)
    run_twin(session)
    measure_front(session)
    train_alone(session)
    measure_test(session)
    return conclude(session)


def make_supernet(session: Session) -> None:
    """Train the shared weights, or load them; checkpointed, so that an interruption costs a minute at most."""
    sweep, path = session.sweep, session.sweep.directory / SUPERNET_FILE
    if not sweep.supernet:
        return
    from ..evaluators.devices import release
    from ..space.elastic.supernet import Supernet

    if session.journal.last("supernet") is not None:
        session.weights = Supernet.load(sweep.space, path).state_numpy()
        return
    assert sweep.task is not None
    net = Supernet(sweep.space, seed=sweep.seed)
    session.reporter.begin("training the supernet", sweep.supernet_steps)

    def progress(done: int, steps: int, loss: float) -> None:
        session.reporter.advance(done, f"loss {loss:.3f} nats")
        session.stop.check()

    checkpoint = sweep.directory / "supernet.checkpoint.safetensors"
    record = _train_shared(sweep, net, strategy=sweep.supernet_strategy, seed=sweep.seed, dtype=sweep.dtype,
                           auxiliary=sweep.auxiliary, checkpoint=checkpoint, resume=True, progress=progress,
                           threads=supernet_threads(sweep))
    session.reporter.end()
    net.save(path)
    session.journal.append("supernet", {
        "steps": record.steps, "seconds": record.seconds, "tokens": record.tokens, "skipped": record.skipped,
        "strategy": sweep.supernet_label, "seed": sweep.seed, "file": path.name, **told(sweep),
        **_thinned(record.losses)})
    checkpoint.unlink(missing_ok=True)
    session.weights = net.state_numpy()
    release(net)                                            # the workers may need all the memory of this GPU


def _train_shared(sweep: Sweep, net: Supernet, **options: Any) -> TrainingRecord:
    """In this process, or on the workers of a Ray."""
    assert sweep.task is not None
    if sweep.supernet_workers == 1:
        from ..evaluators.training import train

        return train(net, sweep.task, sweep.supernet_steps, device=sweep.device, **options)
    from .data_parallel import train_supernet

    return train_supernet(net, sweep.task, sweep.supernet_steps, sweep.supernet_workers, address=sweep.ray_address,
                          gpus=sweep.device == "cuda", retries=LOST_WORKERS, **options)


def _thinned(losses: Sequence[float], points: int = 200) -> dict[str, list[float]]:
    """At most `points` means over equal stretches of steps, with the last step of each."""
    stretch = max(1, math.ceil(len(losses) / points))
    parts = [(min(i + stretch, len(losses)), [x for x in losses[i:i + stretch] if math.isfinite(x)])
             for i in range(0, len(losses), stretch)]
    kept = [(step, sum(part) / len(part)) for step, part in parts if part]
    return {"at": [step for step, _ in kept], "losses": [loss for _, loss in kept]}


def fix_reference(session: Session) -> None:
    """The reference point of the hypervolume: as declared, or 1.1 times the worst of a few probes.

    The probes are the smallest and the largest architecture, a few random ones and the user's own. Raises
    BodyplanError when none of them can be evaluated: then no candidate could be.
    """
    if session.journal.last("reference") is not None:
        return
    point: list[Any] = list(session.sweep.declared_reference)
    source = "declared"
    if None in point:
        probed = _probe(session)
        point = [declared if declared is not None else found for declared, found in zip(point, probed, strict=True)]
        source = "1.1 times the worst of the probes"
    session.journal.append("reference", {"point": point, "source": source,
                                         "objectives": [objective.name for objective in session.objectives]})


def _probe(session: Session) -> list[float]:
    space, rng = session.sweep.space, Generator(f"{session.sweep.seed} probes")
    genomes = [space.smallest(), space.largest(), *session.sweep.initial]
    genomes += [space.sample_genome(rng) for _ in range(_RANDOM_PROBES)]
    distinct = {space.architecture(genome).hash: genome for genome in reversed(genomes)}
    subjects = [Subject(number, genome, hash_) for number, (hash_, genome) in enumerate(reversed(distinct.items()))]
    bodies = session.evaluate("probe", "score", session.sweep.fidelity, subjects, session.objectives,
                              "placing the reference point", session.sweep.weights_folder)
    for body in bodies.values():
        session.cache.put(body["hash"], body)
    rows = [[body["values"][o.name] for o in session.objectives] for body in bodies.values()
            if body["state"] == "complete"]
    if not rows:
        failure = bodies[0]["failure"]
        raise BodyplanError(f"none of {len(bodies)} probes could be evaluated, so no candidate would be: "
                            f"{failure['reason']}\n{failure['traceback']}")
    return reference_point(rows, [objective.goal for objective in session.objectives])


def search(session: Session) -> None:
    """The search itself."""
    sweep = session.sweep
    if sweep.twin and session.journal.last("twin", "twin") is None:
        extra = "as many evaluations again" if sweep.trials is None else f"up to {sweep.trials} more evaluations"
        session.reporter.say(f"a random twin follows the search: {extra}, shared where both meet a candidate")
    budget = Budget(sweep.trials, session.deadline)
    _run_stream(session, "search", sweep.strategy, sweep.seed, budget, sweep.initial)


def run_twin(session: Session) -> None:
    """Random search with as many trials as the search made; what both meet is evaluated once."""
    if not session.sweep.twin:
        return
    trials = session.ledger("search").num_tried
    if session.journal.last("twin", "twin") is None:
        expected = trials * _mean_seconds(session) / max(1, session.executor.capacity)
        session.journal.append("twin", {"trials": trials, "expected_seconds": expected}, "twin")
        session.reporter.say(f"random twin: {trials} trials, about {duration(expected)} of evaluation")
    seed = Generator(f"{session.sweep.seed} twin").getrandbits(63)
    _run_stream(session, "twin", Random(), seed, Budget(trials), ())


def _mean_seconds(session: Session) -> float:
    spent = [trial.seconds for trial in session.journal.trials("search") if trial.seconds > 0]
    return sum(spent) / len(spent) if spent else 0.0


def _run_stream(session: Session, stream: str, strategy: Strategy, seed: int, budget: Budget, initial: Any) -> None:
    sweep = session.sweep
    strategy.start(sweep.space, sweep.objectives, seed)
    ledger = replay(session.journal, stream, strategy, session.objectives)
    if not ledger.untold and not budget.allows(ledger.num_tried):
        return
    loop = Loop(sweep.space, session.journal, ledger, strategy, session.dispatcher, session.cache, seed=sweep.seed,
                fidelity=sweep.fidelity, order=sweep.order, in_flight=sweep.in_flight,
                weights_folder=sweep.weights_folder, inherit=sweep.inherit, surrogates=session.surrogates,
                watch=_Watch(session, stream, ledger))
    session.reporter.begin(stream, budget.trials, _tried(ledger), budget.deadline)
    loop.run(budget, initial)
    session.reporter.end()
    if loop.is_exhausted:
        session.reporter.say(f"{stream}: the strategy finds no more new architectures after {ledger.num_new}")


def _tried(ledger: Ledger) -> int:
    """Results of candidates that were tried."""
    return len(ledger.results) - ledger.num_screened


class _Watch:
    """Shows the state of a stream after each result, and passes the result on to the tracker."""

    def __init__(self, session: Session, stream: str, ledger: Ledger):
        self._session, self._stream, self._ledger = session, stream, ledger
        self._reference = session.journal.last("reference")

    def __call__(self, number: int) -> None:
        session, done = self._session, _tried(self._ledger)
        session.tracker.notice()
        if session.reporter.is_due(done):
            session.reporter.advance(done, self._note())

    def _note(self) -> str:
        front = Front(self._session.journal.trials(self._stream), self._session.objectives,
                      self._reference.body["point"] if self._reference else None)
        failed = sum(result["state"] == "failed" and not is_screened(result) for result in self._ledger.results.values())
        volume = f", hypervolume {front.hypervolume():.4g}" if self._reference else ""
        return f"front {len(front)}{volume}" + (f", {failed} failed" if failed else "")


def measure_front(session: Session) -> None:
    """Measure what is on the front by a prediction, and what comes onto it thereby, until all of it was measured."""
    if session.surrogates is None:
        return
    for stream in ("search", "twin") if session.sweep.twin else ("search",):
        while points := [point for point in session.front(stream) if point.predicted]:
            for names in sorted({point.predicted for point in points}):
                _measure(session, stream, names, [point for point in points if point.predicted == names])


def _measure(session: Session, stream: str, names: Sequence[str], points: Sequence[Any]) -> None:
    """Raises BodyplanError where a measurement fails: then nobody knows what is on the front."""
    needed = [objective for objective in session.objectives if objective.name in names]
    for trained, subjects in _by_weights(session, points):
        bodies = session.evaluate("measured", "measure", {**session.sweep.fidelity, "measure": list(names)}, subjects, needed,
                                  "measuring what is on the front by prediction", trained=trained, stream=stream,
                                  again=True)
        for number, body in bodies.items():
            if body["state"] != "complete":
                raise BodyplanError(f"the front is measured: trial {number}, on it by a prediction, could not be "
                                    f"({body['failure']['reason']}); see why, then resume")


def _by_weights(session: Session, points: Iterable[Any]) -> Iterator[tuple[Path | None, list[Subject]]]:
    """Front members whose weights are kept, with the folder; then those that must be trained again."""
    folder = session.sweep.weights_folder
    found: dict[bool, list[Subject]] = {True: [], False: []}
    for point in points:
        is_kept = folder is not None and (folder / f"{point.hash}.safetensors").is_file()
        found[is_kept].append(Subject(point.number, point.genome, point.hash))
    yield from ((folder if is_kept else None, subjects) for is_kept, subjects in found.items() if subjects)


def train_alone(session: Session) -> None:
    """Train a sample of candidates and the front's best alone, and compare what they inherited with that."""
    sweep = session.sweep
    if not sweep.supernet or session.metric is None:
        return
    from .standalone import compare, draw_sample, train_each

    sample = draw_sample(session, sweep.fidelity_sample)
    chosen = {trial.number: trial for trial in [*session.front().best(sweep.retrain), *sample]}
    results = train_each(session, list(chosen.values()), sweep.steps)
    if sample and compare(session, sample, [results], sweep.steps) is None:
        session.reporter.say(f"rank correlation left out: of {len(sample)} candidates at least 3 must be trained alone")


def measure_test(session: Session) -> None:
    """Measure the front again on the test split, which nothing was chosen by, with the weights it was judged by."""
    metric = session.metric
    if metric is None:
        return
    for trained, subjects in _by_weights(session, session.front()):
        session.evaluate("test", "test", {**session.sweep.fidelity, "split": "test"}, subjects, [metric],
                         "measuring the front on the test split", trained=trained)


def conclude(session: Session) -> Front:
    """Write down the front, export its knee, close the views, and say what was found."""
    from .summary import summarise

    front = session.front()
    twin = session.front("twin") if session.sweep.twin else None
    body = {"numbers": [point.number for point in front], "knee": front.knee().number if len(front) else None,
            "hypervolume": front.hypervolume(), "reference": front.reference,
            "twin_hypervolume": twin.hypervolume() if twin is not None else None,
            "trials": len(session.journal.trials("search"))}
    if not _is_last(session, "front", body):
        session.journal.append("front", body)
    exported = export_knee(session, front)
    drop_weights(session, front)
    write_report(session)
    if not _is_last(session, "finished", {"trials": body["trials"]}):
        session.journal.append("finished", {"seconds": time.monotonic() - session.began, "trials": body["trials"]})
    summarise(session, front, twin, exported)
    return front


def write_report(session: Session) -> None:
    """The static page of the sweep in its directory; it opens from disk."""
    from .results import Results, pages

    text = pages.get("report.html")(Results.read(session.journal))
    (session.sweep.directory / "report.html").write_text(text, encoding="utf-8")


def drop_weights(session: Session, front: Front) -> None:
    """Keep the weights of candidates trained alone where somebody may want them: the front, and what was retrained.

    Where candidates inherit all stay: later ones may start from any of them, and none can be made again from its seed.
    """
    if session.sweep.inherit:
        return
    kept = {point.hash for point in front} | {event.body["hash"] for event in session.journal.events("standalone")}
    for file in (session.sweep.directory / WEIGHTS_FOLDER).glob("*.safetensors"):
        if file.stem not in kept:
            file.unlink()


def _training(session: Session) -> dict[str, Any]:
    """What the model card says of the weights."""
    sweep = session.sweep
    assert sweep.task is not None, "only sweeps with a task train"
    how = (f"inherited from a supernet ({sweep.supernet_label}, {sweep.supernet_steps} steps)" if sweep.supernet
           else f"from the nearest candidate, trained for {sweep.steps} steps" if sweep.inherit
           else f"trained alone for {sweep.steps} steps")
    return {"weights": how, "data": sweep.task.describe(), "seed": sweep.seed, **told(sweep), "torch": version("torch")}


def _is_last(session: Session, kind: str, body: dict[str, Any]) -> bool:
    """Whether the newest event of a kind says this already."""
    last = session.journal.last(kind)
    return last is not None and {key: last.body.get(key) for key in body} == json.loads(encode(body))


def export_knee(session: Session, front: Front) -> str | None:
    """The knee as a folder under `exported/`, once; None where no model was judged."""
    if not len(front) or not session.sweep.trains:
        return None
    knee = front.knee()
    path = session.sweep.directory / "exported" / f"{knee.number}-{knee.short}"
    if not path.exists():
        from ..space.export import export

        export(knee, path, card={"objectives": session.objectives, "training": _training(session)})
    body = {"number": knee.number, "path": str(path)}
    if not _is_last(session, "export", body):
        session.journal.append("export", body)
    return str(path)
