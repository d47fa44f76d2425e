"""The parent's side of one child process of the local executor: pipes, crash file, process group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from ..worker import THREAD_VARIABLES, frames_in, send_frame
from .base import Job

__all__ = ["Child", "anonymous_file"]

_PROGRAM = "bodyplan.search.worker"
_STACK_SECONDS = 0.3           # how long a child may take to write its stack before it is killed


def anonymous_file(content: bytes = b"") -> BinaryIO:
    """A file without a name, in memory where the system can (Linux); gone once everyone has closed it."""
    stream: BinaryIO
    if hasattr(os, "memfd_create"):
        stream = os.fdopen(os.memfd_create("bodyplan"), "w+b", buffering=0)
    else:
        stream = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its life is the executor's
    left = memoryview(content)
    while left:
        left = left[stream.write(left):]
    return stream


class Child:
    """One worker process: starting, then `ready`; with a `job` while it runs one; `deaf` once it is lost.

    Attributes:
        outcomes: the descriptor to select on; it is readable when the child says something or is gone.
        job: what it was handed at `started` (time.monotonic), and whether it has `begun` with it.
    """

    def __init__(self, name: str, evaluator: BinaryIO, threads: int, logs: Path | None):
        self.name = name
        self.ready = False
        self.deaf = False
        self.job: Job | None = None
        self.begun = False
        self.started = 0.0
        self._buffer = bytearray()
        self._crash = anonymous_file()
        jobs, self._jobs = os.pipe()
        self.outcomes, outcomes = os.pipe()
        os.set_blocking(self.outcomes, False)
        inherited = (jobs, outcomes, evaluator.fileno(), self._crash.fileno())
        try:
            self._process = _spawn(name, inherited, threads, logs)
        finally:
            os.close(jobs)
            os.close(outcomes)

    @property
    def is_idle(self) -> bool:
        return self.ready and self.job is None and not self.deaf

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def memory_gb(self) -> float:
        """Resident memory in 10^9 bytes; 0 when the process is gone."""
        try:
            return float(psutil.Process(self._process.pid).memory_info().rss) / 1e9
        except psutil.NoSuchProcess:
            return 0.0

    def take(self, job: Job) -> bool:
        """Hand it a job; False when it turns out to be lost."""
        self.job, self.begun, self.started = job, False, time.monotonic()
        try:
            send_frame(self._jobs, job.to_json())
        except BrokenPipeError:
            self.job, self.deaf = None, True
        return not self.deaf

    def messages(self) -> Iterator[dict[str, Any]]:
        """Everything it has said by now; `deaf` is set when there will be no more."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.outcomes, 1 << 16):
                self._buffer += chunk
            self.deaf = True
        yield from frames_in(self._buffer)

    def dump_stack(self) -> None:
        """Have it write where it is into its crash file, even in the middle of C code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR1)
        limit, before = time.monotonic() + _STACK_SECONDS, ""
        while time.monotonic() < limit and (not before or self.last_words() != before):
            before = self.last_words()
            time.sleep(0.01)

    def last_words(self) -> str:
        """What the crash file holds: the traceback of a failed set-up, or the stack at a crash."""
        descriptor = self._crash.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def dismiss(self) -> None:
        """Let an idle child leave by itself: the end of its pipe is the sign."""
        if self._jobs >= 0:
            os.close(self._jobs)
            self._jobs = -1

    def wait(self, seconds: float) -> None:
        """Wait for it to leave, no longer than `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def bury(self) -> int:
        """Kill it and every process it started, free what it held; returns the exit status (-9: SIGKILL)."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self.dismiss()
        os.close(self.outcomes)
        self._crash.close()
        return status


def _spawn(name: str, inherited: tuple[int, ...], threads: int, logs: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", _PROGRAM, *map(str, inherited),
               "--name", name, "--threads", str(threads)]
    if threading.current_thread() is threading.main_thread():   # to Linux a parent is a *thread*
        command += ["--parent", str(os.getpid())]
    environment = {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONUNBUFFERED": "1",
    }
    with contextlib.ExitStack() as stack:
        output: Any = 2 if logs is None else stack.enter_context(open(logs / f"{name}.log", "ab"))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                env=environment, pass_fds=inherited, start_new_session=True)
