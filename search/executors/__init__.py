"""Where candidates are evaluated: in this process, in child processes, or on Ray.

    base.py       Job, Outcome, Failure; the Evaluator and Executor protocols; the trial boundary; the registry
    ask_order.py  another executor's outcomes in the order of submission
    inline.py     this process, no isolation: for objectives that are cheap functions
    pool.py       what the next two do alike: jobs that wait, outcomes in turn, time limits
    local.py      child processes with limits: for whatever trains or may crash (the child is ../worker.py)
    child.py      the parent's side of one such child: pipes, crash file, process group
    ray.py        a pool of Ray actors: a private Ray on this machine, or a cluster by its address
    cluster.py    getting hold of that Ray, and keeping it quiet

Importing this folder imports neither torch nor ray.
"""

from __future__ import annotations

from .ask_order import AskOrder, in_ask_order
from .base import (
    Evaluator,
    Executor,
    Failure,
    Job,
    Outcome,
    attempt,
    executors,
    make_executor,
)

__all__ = [
    "AskOrder",
    "Evaluator",
    "Executor",
    "Failure",
    "Job",
    "Outcome",
    "attempt",
    "executors",
    "in_ask_order",
    "make_executor",
]
