"""Trials copied into an Optuna storage as they finish, so that optuna-dashboard shows a running sweep.

The mirror reads the journal and never feeds back. A copy into SQLite costs 0.2 s a trial, so it is made by a thread of
its own; what is already there is left alone, so a resume goes on where the last run stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from optuna.trial import FrozenTrial, TrialState, create_trial

from ..errors import BodyplanError
from .front import Criterion
from .journal import Journal, Trial
from .resume import violation
from .strategies.optuna import distributions, new_study, parameters_of

if TYPE_CHECKING:
    from ..space.space import Space

__all__ = ["OptunaMirror"]

_PAUSE_SECONDS = 2.0


class OptunaMirror:
    """A context that keeps a study named after the sweep's directory equal to the journal's "search" stream.

    Raises BodyplanError when the storage cannot be reached, before any work starts.
    """

    def __init__(self, storage: str, directory: Path, space: Space, objectives: Sequence[Criterion]):
        self._directory, self._space, self._objectives = directory, space, tuple(objectives)
        self._distributions = distributions(space)
        try:
            self._study = new_study(objectives, storage=storage, study_name=directory.name, load_if_exists=True)
        except Exception as error:  # whatever the storage's driver raises
            raise BodyplanError(f"the Optuna storage must be reachable: {storage!r} answered {error}; for a file, "
                                "give sqlite:///path/to/optuna.db") from error
        self._done = {trial.user_attrs.get("number") for trial in self._study.get_trials(deepcopy=False)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="optuna-mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with Journal.open(self._directory) as journal:
            while not self._stop.wait(_PAUSE_SECONDS):
                self.copy(journal)
            self.copy(journal)

    def copy(self, journal: Journal) -> None:
        """Add the finished trials that the study does not have yet."""
        for trial in journal.trials("search"):
            if trial.state != "running" and trial.number not in self._done:
                self._study.add_trial(self._frozen(trial))
                self._done.add(trial.number)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        about: dict[str, Any] = {"number": trial.number, "hash": trial.hash, "seconds": trial.seconds,
                                 "labels": dict(trial.labels)}
        common = {"params": parameters_of(self._space, trial.genome), "distributions": self._distributions}
        if trial.state == "failed":
            reason = (trial.failure or {}).get("reason", "")
            return create_trial(state=TrialState.FAIL, user_attrs={**about, "failure": reason}, **common)
        return create_trial(values=[trial.values[o.name] for o in self._objectives], user_attrs=about,
                            constraints={"bounds": violation(trial.values, self._objectives)}, **common)


