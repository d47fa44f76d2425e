"""Getting hold of a Ray: a private one for as long as it is needed, or one that runs already.

Everything that Ray would send, write or print on its own is switched off here: usage reports, the
dashboard, the token file in the home directory, a paragraph on standard output for every worker that is
lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ...errors import BodyplanError

__all__ = ["checked_address", "joined_ray", "knock", "own_paths", "private_ray"]

_KNOCK_SECONDS = 5.0          # how long a cluster's port may take to answer
_LONGEST_TEMPORARY = 24       # characters: Ray appends up to 80, and the path of a socket may have 107
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = 4


@contextlib.contextmanager
def private_ray(cpus: int) -> Iterator[ModuleType]:
    """A Ray of `cpus` CPUs on this machine, gone with its files at the end; takes five to ten seconds to start.

    Ray listens on every interface, so it gets a random token instead of no authentication; in the
    environment, since Ray would otherwise keep one in the home directory. A Ray that this process already
    uses is taken instead, and stays.
    """
    with contextlib.ExitStack() as stack:
        if _is_initialized():
            stack.enter_context(_environment(_QUIET))
        else:
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            stack.callback(_reread_authentication)
            stack.enter_context(_environment({**_QUIET, **token}))
            _reread_authentication()
            home = tempfile.mkdtemp(prefix="bp-ray-", dir=_short_temporary())
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            stack.enter_context(_running(address="local", num_cpus=max(1, cpus), include_dashboard=False,
                                         _temp_dir=home))
        import ray

        yield ray


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[ModuleType]:
    """The cluster at `address`, left running at the end; BodyplanError within seconds where there is none."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(_QUIET))
        knock(address)
        import ray

        if not ray.is_initialized():
            try:
                stack.enter_context(_running(address=address))
            except (OSError, ImportError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise BodyplanError(_unreachable(address, error)) from error
        yield ray


def checked_address(address: str) -> str:
    """`address`, or ValueError unless it has a form that Ray understands."""
    if address != "auto" and not re.fullmatch(r"(ray://)?(\[[^\]]+\]|[^:/\s]+):\d{1,5}", address):
        raise ValueError(f"a Ray address is host:port, ray://host:port or auto: got {address!r}; "
                         "leave it out to start a private Ray")
    return address


def own_paths() -> str:
    """The entries of `sys.path` that are not the interpreter's own, as PYTHONPATH for the actors."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    entries = [os.path.abspath(entry) for entry in sys.path if os.path.exists(entry or ".")]
    return os.pathsep.join(dict.fromkeys(entry for entry in entries if not entry.startswith(installed)))


def _is_initialized() -> bool:
    """Whether this process uses a Ray already, without importing it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextlib.contextmanager
def _running(**settings: Any) -> Iterator[None]:
    import ray

    try:
        ray.init(logging_level="error", log_to_driver=False, **settings)
        with _without_reports(ray):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_reports(ray: ModuleType) -> Iterator[None]:
    """Keep Ray from printing about lost workers: `log_to_driver` does not cover that, no public setting does."""
    worker, switch = ray._private.worker, "_worker_logs_enabled"
    before = getattr(worker, switch, None)
    if before is None:
        yield
        return
    setattr(worker, switch, False)
    try:
        yield
    finally:
        setattr(worker, switch, before)


def _reread_authentication() -> None:
    """Have a Ray that is imported look at RAY_AUTH_* again: it keeps what it saw first (2.59 and later)."""
    core = getattr(sys.modules.get("ray"), "_raylet", None)
    if core is not None and hasattr(core, "AuthenticationTokenLoader"):
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set those variables that are not set already; take them back afterwards."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _short_temporary() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_TEMPORARY else "/tmp"


def knock(address: str) -> None:
    """Raise BodyplanError unless a gRPC server answers at `address`: Ray itself would try for minutes."""
    if address == "auto":                                   # Ray knows at once whether it runs one here
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_http2(line):
                raise OSError("something else listens there")
    except (OSError, OverflowError) as error:
        raise BodyplanError(_unreachable(address, error)) from error


def _speaks_http2(line: socket.socket) -> bool:
    """Whether the other side, like every gRPC server, answers the client's hello with its settings."""
    line.sendall(_HTTP2_HELLO)
    header = line.recv(9, socket.MSG_WAITALL)
    return len(header) == 9 and header[3] == _HTTP2_SETTINGS


def _unreachable(address: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return (f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, correct "
            "address=, or leave it out to start a private Ray")
