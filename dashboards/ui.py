"""MLflow's own interface on a sweep, on this machine only, opened at its Pareto front."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ..errors import BodyplanError
from ..search.journal import Journal
from ..search.saved_views import front_link
from ..search.tracking import default_uri, rebuild

__all__ = ["serve", "server"]

_HOST = "127.0.0.1"
_START_S = 120.0
_STOP_S = 10.0


def serve(sweep_dir: str | Path, port: int = 0, out: Callable[[str], object] = print) -> None:
    """Start MLflow's server on a sweep, print the full link of the Pareto view, and stay until Ctrl-C or SIGTERM.

    Views are brought up to date from the journal first (unless the sweep is running: then its own tracker does it).

    Args:
        port: on the loopback interface; 0 takes a free one.
        out: is given one line at a time.

    Raises:
        BodyplanError: no journal there, the port is taken, or the server does not start.
    """
    out("bringing MLflow up to date with the journal")
    experiment_id = prepare(sweep_dir)
    with server(default_uri(sweep_dir), port) as base, _stopping_on_sigterm():
        out(f"Pareto front: {front_link(base, experiment_id)}")
        out("Ctrl-C stops the server")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def prepare(sweep_dir: str | Path) -> str:
    """Bring the store in a sweep's directory up to date and answer its experiment's id.

    A store that was made in another place holds paths that lead nowhere now: it is set aside as `mlflow.db.moved` and
    made again from the journal. While the sweep runs, the store is left to the sweep.
    """
    directory = Path(sweep_dir).resolve()
    experiment_id = _running_experiment(directory)
    if experiment_id is not None:
        return experiment_id
    if _was_moved(directory):
        database = directory / "mlflow.db"
        database.replace(database.with_name("mlflow.db.moved"))
    return rebuild(directory)


@contextlib.contextmanager
def server(uri: str, port: int = 0) -> Iterator[str]:
    """An MLflow server on a store for as long as the context lasts; gives its base address once it answers."""
    port = _claim(port)
    base = f"http://{_HOST}:{port}"
    with tempfile.TemporaryFile() as log:
        process = _launch(uri, port, log)
        try:
            _wait(process, base, log)
            yield base
        finally:
            _stop(process)


def _launch(uri: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """The lightest server MLflow has: one worker and no job runner, 2 processes instead of 10 (0.5 GB, not 1.3)."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", _HOST,
               "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
                                "DO_NOT_TRACK": "true"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                            start_new_session=True)


def _wait(process: subprocess.Popen[bytes], base: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BodyplanError(f"MLflow's server ended with status {process.returncode}:\n{_tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), \
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{base}/health", timeout=2):
            return
        time.sleep(0.2)
    raise BodyplanError(f"MLflow's server did not answer at {base} within {_START_S:.0f} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, which live in a session of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
            return


def _claim(port: int) -> int:
    """The port if it is free, a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise BodyplanError(f"port {port} cannot be served on {_HOST}: {error}; choose another, or 0 for a free "
                                "one") from error
        return int(probe.getsockname()[1])


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _running_experiment(directory: Path) -> str | None:
    """The experiment of a sweep that another process is writing right now, once its tracker has made it."""
    try:
        Journal.open(directory, write=True).close()
    except BodyplanError:
        Journal.open(directory).close()  # raises when the reason was that there is no journal
        return _stored_experiment(directory)
    return None


def _stored_experiment(directory: Path) -> str | None:
    named = [experiment_id for experiment_id, name, _ in _experiments(directory) if name == directory.name]
    return named[0] if named else None


def _was_moved(directory: Path) -> bool:
    expected = (directory / "mlartifacts").as_uri()
    return any(location != expected for _, _, location in _experiments(directory))


def _experiments(directory: Path) -> list[tuple[str, str, str]]:
    """Id, name and artifact location of the experiments in a sweep's own store; none while it is being made.

    Read with sqlite3, since MLflow keeps the files it has opened open, and this one may be set aside.
    """
    path = directory / "mlflow.db"
    if not path.is_file():
        return []
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT experiment_id, name, artifact_location FROM experiments "
                                    "WHERE experiment_id != 0 AND lifecycle_stage = 'active'").fetchall()
        except sqlite3.OperationalError:
            return []
    return [(str(experiment_id), name, location) for experiment_id, name, location in rows]


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that a supervisor's stop leaves no server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
