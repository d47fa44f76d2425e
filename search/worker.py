"""One child process of the local executor: it loads the evaluator once, then runs one job after another.

It is a program of its own (`python -P -m bodyplan.search.worker`), started fresh rather than forked or
spawned by multiprocessing, so the user's script is never imported again and needs no `__main__` guard. It
talks through pipes of its own; standard output stays free for whatever a candidate prints.

The wire, both ways: frames of a 4-byte big-endian length and that many bytes of JSON. The parent sends
jobs; the child sends `{"ready": true}` once it is set up, then `{"begun": id}` and `{"outcome": ...}` per
job. What the child cannot send any more (the traceback of a failed set-up, the stack at a crash) it leaves
in the crash file, which the parent reads when the child is gone.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO

from .executors.base import Evaluator, Job, attempt

__all__ = ["THREAD_VARIABLES", "frames_in", "main", "pin_threads", "send_frame"]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                    "VECLIB_MAXIMUM_THREADS")
_HEADER = struct.Struct("!I")
_PR_SET_PDEATHSIG = 1


def send_frame(descriptor: int, message: dict[str, Any]) -> None:
    """Write one message; raises BrokenPipeError when nobody reads any more."""
    body = json.dumps(message).encode()
    left = memoryview(_HEADER.pack(len(body)) + body)
    while left:
        left = left[os.write(descriptor, left):]


def frames_in(buffer: bytearray) -> Iterator[dict[str, Any]]:
    """The complete messages at the start of `buffer`, each taken out of it."""
    while len(buffer) >= _HEADER.size:
        end = _HEADER.size + _HEADER.unpack_from(buffer)[0]
        if len(buffer) < end:
            return
        body = bytes(buffer[_HEADER.size:end])
        del buffer[:end]
        yield json.loads(body)


def pin_threads(threads: int) -> None:
    """Hold torch, if it is loaded, to `threads` threads; the environment does it for later imports."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def main() -> None:
    """Run jobs until the parent closes the pipe or dies."""
    options = _options()
    for descriptor in (options.jobs, options.outcomes, options.evaluator, options.crash):
        os.set_inheritable(descriptor, False)
    if options.parent:
        _die_with(options.parent)
    crash = os.fdopen(options.crash, "wb", buffering=0)
    _record_crashes(crash)
    evaluator = _load(options.evaluator)
    evaluator.setup()
    pin_threads(options.threads)
    _serve(evaluator, options)


def _options() -> Namespace:
    parser = ArgumentParser(prog="bodyplan.search.worker", description="A child of the local executor.")
    for name in ("jobs", "outcomes", "evaluator", "crash"):
        parser.add_argument(name, type=int, help="an inherited file descriptor")
    parser.add_argument("--name", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parent", type=int, help="die with this process (Linux)")
    return parser.parse_args()


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:                           # it died before the call above
        os._exit(1)


def _record_crashes(crash: BinaryIO) -> None:
    """Leave the stack in `crash` on a fatal signal, on SIGUSR1 (sent before a kill), on an uncaught error."""

    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        crash.write("".join(traceback.format_exception(kind, error, trace)).encode())

    faulthandler.enable(crash)
    faulthandler.register(signal.SIGUSR1, crash)
    sys.excepthook = leave


def _load(descriptor: int) -> Evaluator:
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as payload:
        evaluator: Evaluator = pickle.loads(payload)
    os.close(descriptor)
    return evaluator


def _serve(evaluator: Evaluator, options: Namespace) -> None:
    inbox: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(options.jobs, inbox, busy), daemon=True).start()
    send_frame(options.outcomes, {"ready": True})
    while (body := inbox.get()) is not None:
        busy.set()
        send_frame(options.outcomes, {"begun": body["id"]})
        outcome = attempt(evaluator, Job.from_json(body), options.name)
        busy.clear()
        send_frame(options.outcomes, {"outcome": outcome.to_json()})


def _listen(descriptor: int, inbox: SimpleQueue[dict[str, Any] | None], busy: threading.Event) -> None:
    """Pass jobs on; when the parent is gone, end an idle worker cleanly, a busy one with all it started."""
    buffer = bytearray()
    while chunk := os.read(descriptor, 1 << 16):
        buffer += chunk
        for body in frames_in(buffer):
            inbox.put(body)
    if busy.is_set():
        os.killpg(0, signal.SIGKILL)
    inbox.put(None)


if __name__ == "__main__":
    main()
