"""Trials shown in MLflow while a sweep runs, without the sweep waiting for it.

The journal is the queue: a thread of its own reads what was appended and brings the store up to date. So nothing is
held in memory that could be lost, a resumed sweep goes on where its runs end, and `rebuild` is the same code run once.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

from ..errors import BodyplanError
from .journal import Journal
from .results import shown_path
from .saved_views import front_link

if TYPE_CHECKING:
    from .runs import Runs

__all__ = ["MLflowTracker", "check_tracking", "default_uri", "rebuild"]

Children = Literal["all", "front"]

_PAUSE_S = 0.5         # between two looks at the journal, so that what comes together is written together
_REFRESH_S = 20.0      # between two updates of the front's tags, the table and the note
_PAGES_S = 120.0       # between two drawings of the front's page
_RETRY_S = 10.0        # after an error
_CONNECT_S = 3.0       # a server that takes longer to answer counts as unreachable
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def default_uri(directory: str | os.PathLike[str]) -> str:
    """The store in a sweep's own directory: `sqlite:///<directory>/mlflow.db`."""
    return f"sqlite:///{Path(directory).resolve() / 'mlflow.db'}"


def check_tracking(uri: str | None) -> None:
    """Answer a bad tracking URI before any work starts; None stands for the sweep's own directory.

    Takes three seconds at most and sends one request to an HTTP server.

    Raises:
        ValueError: the URI is of a kind MLflow keeps no runs under.
        BodyplanError: mlflow is not installed, the server does not answer, or the folder of a database is missing.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise BodyplanError("tracking needs mlflow, which is not installed; pip install mlflow, or give tracking=False")
    if uri is None:
        return
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        _check_database(uri)
    elif scheme in _PORTS:
        _check_server(uri, scheme)
    elif scheme != "databricks":
        raise ValueError(f"a tracking URI begins with sqlite://, http://, https:// or that of a database server: got "
                         f"{uri!r}; for a local store write sqlite:////full/path/mlflow.db")


class MLflowTracker:
    """Shows a sweep in MLflow from a thread of its own. A context: leaving it writes what is left and the final views.

    A store that fails never stops the sweep: it is reported once, tried again every ten seconds and at the end, and
    the journal has everything for `rebuild`. Only one tracker may serve a sweep at a time.

    Args:
        directory: of the sweep; its journal must exist by the time the context is entered.
        tracking_uri: of the MLflow store; None for a SQLite file in `directory`, with its artifacts beside it.
        experiment: its name in the store; None for the name of the directory.
        children: which candidates get a run, see `Runs`. Those of the random twin get none.

    Raises what `check_tracking` raises.
    """

    def __init__(self, directory: str | os.PathLike[str], tracking_uri: str | None = None,
                 experiment: str | None = None, children: Children = "all"):
        if children not in ("all", "front"):
            raise ValueError(f"children must be 'all' or 'front': got {children!r}")
        check_tracking(tracking_uri)
        self.directory = Path(directory).resolve()
        self.uri = tracking_uri or default_uri(self.directory)
        self.error: Exception | None = None
        self._experiment, self._children = experiment, children
        self._experiment_id: str | None = None
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin to follow the journal. Returns at once; the first run appears some seconds later."""
        self._thread = threading.Thread(target=self._follow, name="bodyplan-mlflow", daemon=True)
        self._thread.start()
        return self

    def notice(self) -> None:
        """Tell the tracker that the journal grew. Costs a microsecond; without it a change is seen within seconds."""
        self._news.set()

    def close(self, timeout: float | None = None) -> None:
        """Write what is left and the final views, for at most `timeout` seconds (None: until it is done)."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    @property
    def link(self) -> str:
        """Where to look: the address of the Pareto view on a server, or the command that starts one."""
        if self.uri.startswith(("http://", "https://")) and self._experiment_id is not None:
            return front_link(self.uri, self._experiment_id)
        return f"bodyplan ui {shown_path(self.directory)}"

    def lines(self) -> list[str]:
        """What to tell a person at the end of a sweep."""
        return [f"MLflow: {self.link}"]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _follow(self) -> None:
        """The thread: keep up until closed, then finish; after an error, begin again from what the store holds."""
        while True:
            try:
                with Journal.open(self.directory) as journal:
                    self._keep_up(journal)
                return
            except Exception as error:  # any failure of a store or its client ends here: a view must not end a sweep
                self._report(error)
                if self._closing.wait(_RETRY_S):
                    self._try_last()
                    return

    def _keep_up(self, journal: Journal) -> None:
        runs = self._open(journal)
        refreshed = drawn = time.monotonic()
        while not self._closing.is_set():
            self._news.wait(timeout=5.0)
            self._news.clear()
            runs.add_new()
            if time.monotonic() - refreshed > _REFRESH_S:
                runs.refresh()
                refreshed = time.monotonic()
            if time.monotonic() - drawn > _PAGES_S:
                runs.draw_pages("pareto.html")
                drawn = time.monotonic()
            self._closing.wait(_PAUSE_S)
        runs.finish()

    def _open(self, journal: Journal) -> Runs:
        from .runs import Runs

        runs = Runs(journal, self.uri, self._experiment, self._children)
        self._experiment_id = runs.experiment_id
        return runs

    def _try_last(self) -> None:
        try:
            with Journal.open(self.directory) as journal:
                self._open(journal).finish()
        except Exception as error:  # as above
            self._report(error)

    def _report(self, error: Exception) -> None:
        if self.error is None:
            again = f"`bodyplan ui {shown_path(self.directory)}` rebuilds the views from its journal"
            warnings.warn(f"MLflow at {self.uri} does not take the trials ({type(error).__name__}: {error}); the sweep "
                          f"goes on, and {again}", RuntimeWarning, stacklevel=2)
        self.error = error


def rebuild(directory: str | os.PathLike[str], tracking_uri: str | None = None, experiment: str | None = None,
            children: Children = "all") -> str:
    """Bring an MLflow store up to date with a sweep's journal, from nothing or from where it stands.

    Returns:
        The id of the experiment.

    Raises:
        BodyplanError: the directory holds no journal, or what `check_tracking` says.
    """
    from .runs import Runs

    check_tracking(tracking_uri)
    with Journal.open(directory) as journal:
        runs = Runs(journal, tracking_uri or default_uri(directory), experiment, children)
        runs.finish()
        return runs.experiment_id


def _check_database(uri: str) -> None:
    path = Path(uri.split(":///", 1)[-1])
    if not path.parent.is_dir():
        raise BodyplanError(f"a tracking database lies in a folder that exists: {path.parent} does not; create it, or "
                            "leave tracking=True for one in the sweep's directory")


def _check_server(uri: str, scheme: str) -> None:
    parts = urlsplit(uri)
    host, port = parts.hostname, parts.port or _PORTS[scheme]
    if host is None:
        raise ValueError(f"a tracking URI names a host: got {uri!r}; write {scheme}://host:port")
    try:
        if scheme in ("http", "https"):
            _ask(scheme, host, port, parts.path)
        else:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except (OSError, http.client.HTTPException) as error:
        raise BodyplanError(f"the tracking server does not answer at {host}:{port} ({error}); start it, correct the "
                            "URI, or give tracking=True for a store in the sweep's directory") from error


def _ask(scheme: str, host: str, port: int, path: str) -> None:
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=_CONNECT_S)
    try:
        connection.request("GET", f"{path.rstrip('/')}/health")
        connection.getresponse()  # any answer will do: a proxy may ask for a password here and not later
    finally:
        connection.close()
