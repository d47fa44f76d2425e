"""Jobs, outcomes, the trial boundary, the registry, delivery in ask order, and the in-process executor."""

import math
import random
import sys
from dataclasses import replace

import cloudpickle
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.executors import (
    AskOrder,
    Evaluator,
    Executor,
    Failure,
    Job,
    Outcome,
    attempt,
    executors,
    in_ask_order,
    make_executor,
)
from bodyplan.space.genome import Genome

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def job(number, width=64, seed=0, **fidelity):
    return Job(number, "score", Genome({"width": width, "body[0].size": 0.1, "picks": (0, 2)}), seed, fidelity)


class Arithmetic:
    """Deterministic, with values whose last bits show any detour through text."""

    def setup(self):
        self.offset = 1 / 3

    def run(self, job):
        noise = random.Random(job.seed).random()
        loss = self.offset + math.log(job.genome["width"]) * noise
        return {"objectives": {"loss": loss}, "intervals": {"loss": (loss - 0.1, loss + 0.1)}, "extra": {}}


class Returns:
    def __init__(self, result):
        self.result = result

    def setup(self):
        pass

    def run(self, job):
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def drain(executor, jobs):
    for each in jobs:
        executor.submit(each)
    return [executor.next(60) for _ in jobs]


@pytest.mark.parametrize("original", [job(3, steps=10, seed=2**63), replace(job(0), kind="standalone", replicate=2)])
def test_a_job_survives_json(original):
    assert Job.from_json(original.to_json()) == original


@pytest.mark.parametrize("original", [
    Outcome(1, {"objectives": {"loss": 0.1 + 0.2}}, None, 0.5, "local-0"),
    Outcome(2, None, Failure("ValueError: no", "Traceback ..."), 0.5, "inline"),
])
def test_an_outcome_survives_json(original):
    assert Outcome.from_json(original.to_json()) == original


def test_values_come_back_as_json_reads_them():
    outcome = attempt(Returns({"objectives": {"loss": 1.5}, "intervals": {"loss": (1, 2)}}), job(7), "here")
    assert outcome.values == {"objectives": {"loss": 1.5}, "intervals": {"loss": [1, 2]}}
    assert (outcome.id, outcome.failure, outcome.worker) == (7, None, "here")


def test_an_exception_is_a_failure_with_one_line_and_the_users_frames():
    failure = attempt(Returns(ValueError("width is odd\nsecond line")), job(0), "here").failure
    assert failure.reason == "ValueError: width is odd"
    assert "in run" in failure.traceback and "second line" in failure.traceback
    assert "in attempt" not in failure.traceback


@pytest.mark.parametrize("error, reason", [
    (SystemExit(3), "SystemExit: 3"), (MemoryError(), "MemoryError"), (KeyError("a"), "KeyError: 'a'")])
def test_exits_and_memory_errors_are_failures(error, reason):
    assert attempt(Returns(error), job(0), "here").failure.reason == reason


def test_ctrl_c_is_not_the_candidates():
    with pytest.raises(KeyboardInterrupt):
        attempt(Returns(KeyboardInterrupt()), job(0), "here")


@pytest.mark.parametrize("result, reason", [
    ({"objectives": {"loss": float("nan")}}, "ValueError: objectives.loss is nan; numbers must be finite"),
    ({"extra": {"curve": [1.0, math.inf]}}, "ValueError: extra.curve[1] is inf; numbers must be finite"),
    ({"extra": {"model": object()}}, "ValueError: extra.model is a object; JSON holds"),
    ({"extra": {3: 1}}, "ValueError: extra has the key 3; JSON keys are strings"),
    (0.5, "TypeError: an evaluator returns a dict: got float"),
])
def test_a_result_that_json_cannot_hold_is_a_failure_that_says_where(result, reason):
    outcome = attempt(Returns(result), job(0), "here")
    assert outcome.values is None and outcome.failure.reason.startswith(reason)


def test_inline_runs_jobs_in_order_at_next():
    with make_executor("inline") as executor:
        executor.start(Arithmetic())
        outcomes = drain(executor, [job(n, width=n + 2) for n in range(5)])
    assert [outcome.id for outcome in outcomes] == list(range(5))
    assert {outcome.worker for outcome in outcomes} == {"inline"}


def test_inline_lets_an_error_of_setup_through():
    class Broken(Returns):
        def setup(self):
            raise FileNotFoundError("corpus.txt")

    with make_executor("inline") as executor, pytest.raises(FileNotFoundError, match="corpus"):
        executor.start(Broken({}))


@pytest.mark.parametrize("name", ["inline", "local"])
def test_next_without_a_job_says_so(name):
    with make_executor(name) as executor:
        executor.start(Arithmetic())
        with pytest.raises(BodyplanError, match="no job is in flight: submit one"):
            executor.next()


def test_local_and_inline_agree_to_the_last_bit():
    jobs = [job(n, width=n + 2, seed=n * 977) for n in range(20)]
    values = {}
    for name in ("inline", "local"):
        with make_executor(name) as executor:
            executor.start(Arithmetic())
            values[name] = {outcome.id: outcome.values for outcome in drain(executor, jobs)}
    assert values["inline"] == values["local"]
    assert all(values["inline"].values())


class Backwards(Executor):
    """Delivers the latest job first."""

    capacity = 4

    def __init__(self):
        self.jobs = []

    def start(self, evaluator):
        self.evaluator = evaluator

    def submit(self, job):
        self.jobs.append(job)

    def next(self, timeout=None):
        if not self.jobs:
            raise BodyplanError("no job is in flight")
        return attempt(self.evaluator, self.jobs.pop(), "backwards")

    def close(self):
        self.jobs.clear()


def test_ask_order_delivers_in_the_order_of_submission():
    executor = in_ask_order(Backwards())
    executor.start(Returns({}))
    assert executor.capacity == 4
    assert [outcome.id for outcome in drain(executor, [job(n) for n in (5, 2, 9, 0)])] == [5, 2, 9, 0]
    assert [outcome.id for outcome in drain(executor, [job(n) for n in (2, 1)])] == [2, 1]
    with pytest.raises(BodyplanError):
        executor.next()


def test_ask_order_is_applied_once():
    executor = in_ask_order(Backwards())
    assert isinstance(executor, AskOrder) and in_ask_order(executor) is executor


def test_the_registry_knows_the_three_executors_lazily():
    assert {"inline", "local", "ray"} <= set(executors.names())
    assert isinstance(make_executor("local", workers=3), Executor) and make_executor("local", workers=3).capacity == 3
    assert isinstance(Arithmetic(), Evaluator)


def test_a_ready_executor_is_taken_as_it_is():
    executor = Backwards()
    assert make_executor(executor) is executor


@pytest.mark.parametrize("call, error, text", [
    (lambda: make_executor("lcoal"), ValueError, "did you mean 'local'"),
    (lambda: make_executor("local", worker=2), TypeError, "did you mean 'workers'"),
    (lambda: make_executor("inline", workers=2), TypeError, "option of executor 'inline' 'workers'"),
    (lambda: make_executor(Backwards(), workers=2), TypeError, "beside a ready Backwards"),
    (lambda: make_executor(3), TypeError, "a name or an Executor: got int"),
    (lambda: make_executor("local", workers=0), ValueError, "workers must be a whole number of at least 1: got 0"),
    (lambda: make_executor("local", timeout=-1), ValueError, "timeout must be positive or None: got -1 s"),
    (lambda: make_executor("local", memory_gb=0), ValueError, "memory_gb must be positive or None"),
    (lambda: make_executor("local", threads=1.5), ValueError, "threads must be a whole number"),
])
def test_bad_arguments_are_answered_at_once(call, error, text):
    with pytest.raises(error, match=text):
        call()
