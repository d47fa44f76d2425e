"""Child processes: faults become failed trials, output stays off the wire, nobody is left behind."""

import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cloudpickle
import psutil
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.executors import Job, make_executor
from bodyplan.space.genome import Genome

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def job(number, does="pid", **more):
    return Job(number, "score", Genome({"width": number}), 0, {"does": does, **more})


class Candidate:
    """Does what the fidelity of its job names."""

    def setup(self):
        self.setups = 1 + getattr(self, "setups", 0)

    def run(self, job):
        return {"extra": getattr(self, job.fidelity["does"])(job)}

    def pid(self, job):
        return {"pid": os.getpid(), "setups": self.setups}

    def raises(self, job):
        raise ValueError("this one is bad")

    def exits(self, job):
        sys.exit(4)

    def exits_hard(self, job):
        os._exit(4)

    def kills_itself(self, job):
        os.kill(os.getpid(), signal.SIGKILL)

    def crashes(self, job):
        ctypes.string_at(0)

    def hangs(self, job):
        time.sleep(600)

    def hangs_with_children(self, job):
        child = subprocess.Popen(["sleep", "600"])
        pathlib.Path(job.fidelity["path"]).write_text(str(child.pid))
        time.sleep(600)

    def dies_leaving_a_child_with_its_pipe(self, job):
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    def hogs(self, job):
        self.memory = bytearray(400_000_000)
        time.sleep(600)

    def runs_out_of_memory(self, job):
        raise MemoryError

    def prints(self, job):
        print("noise on standard output", flush=True)
        os.write(1, b"raw noise\n")
        os.write(2, b"noise on standard error\n")
        return {"input": sys.stdin.read()}

    def returns_a_lock(self, job):
        return {"lock": threading.Lock()}

    def environment(self, job):
        return {"threads": os.environ["OMP_NUM_THREADS"], "blas": os.environ["OPENBLAS_NUM_THREADS"]}


def run(jobs, evaluator=None, **options):
    with make_executor("local", **{"workers": 1, **options}) as executor:
        executor.start(evaluator or Candidate())
        for each in jobs:
            executor.submit(each)
        return sorted((executor.next(60) for _ in jobs), key=lambda outcome: outcome.id)


def gone(pid, seconds=10.0):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def fails_then_recovers(does, **options):
    """The failure of one job between two good ones, which must not notice."""
    before, bad, after = run([job(0), job(1, does), job(2)], **options)
    assert before.values and after.values and bad.values is None
    return bad.failure, before.values["extra"]["pid"] == after.values["extra"]["pid"]


def test_setup_runs_once_per_worker_and_the_worker_stays():
    outcomes = run([job(n) for n in range(4)])
    assert {outcome.values["extra"]["setups"] for outcome in outcomes} == {1}
    assert len({outcome.values["extra"]["pid"] for outcome in outcomes}) == 1
    assert {outcome.worker for outcome in outcomes} == {"local-0"}


def test_a_raising_candidate_fails_alone_with_its_traceback():
    failure, same_worker = fails_then_recovers("raises")
    assert failure.reason == "ValueError: this one is bad" and "in raises" in failure.traceback
    assert same_worker


@pytest.mark.parametrize("does, reason", [
    ("exits", "SystemExit: 4"),
    ("runs_out_of_memory", "MemoryError"),
    ("returns_a_lock", "ValueError: extra.lock is a lock; JSON holds numbers, strings, lists and dicts"),
])
def test_exits_memory_errors_and_odd_values_fail_without_losing_the_worker(does, reason):
    failure, same_worker = fails_then_recovers(does)
    assert failure.reason == reason and same_worker


def test_output_of_a_candidate_goes_to_the_log_and_input_is_empty(tmp_path):
    (outcome,) = run([job(0, "prints")], log_directory=tmp_path / "logs")
    assert outcome.values == {"extra": {"input": ""}}
    log = (tmp_path / "logs" / "local-0.log").read_text()
    assert "noise on standard output" in log and "raw noise" in log and "noise on standard error" in log


def test_each_worker_is_held_to_its_threads():
    (outcome,) = run([job(0, "environment")], threads=2)
    assert outcome.values["extra"] == {"threads": "2", "blas": "2"}


@pytest.mark.faults
@pytest.mark.parametrize("does, reason", [
    ("kills_itself", "worker killed by SIGKILL"),
    ("exits_hard", "worker exited with status 4"),
    ("dies_leaving_a_child_with_its_pipe", "worker killed by SIGKILL"),
])
def test_a_lost_worker_fails_its_job_and_is_replaced(does, reason):
    failure, same_worker = fails_then_recovers(does)
    assert failure.reason == reason and not same_worker


@pytest.mark.faults
def test_a_segfault_names_the_signal_and_shows_the_stack():
    failure, same_worker = fails_then_recovers("crashes")
    assert failure.reason == "worker killed by SIGSEGV" and "in crashes" in failure.traceback
    assert not same_worker


@pytest.mark.faults
def test_a_hang_is_killed_and_shows_where_it_hung():
    failure, same_worker = fails_then_recovers("hangs", timeout=1.5)
    assert failure.reason == "timeout after 1.5 s" and "in hangs" in failure.traceback
    assert not same_worker


@pytest.mark.faults
def test_a_memory_hog_is_killed_at_the_limit():
    failure, _ = fails_then_recovers("hogs", memory_gb=0.3)
    assert re.fullmatch(r"memory limit: 0\.[34]\d GB used, 0.3 GB allowed", failure.reason)
    assert "in hogs" in failure.traceback


@pytest.mark.faults
def test_a_killed_worker_takes_the_processes_it_started_along(tmp_path):
    (outcome,) = run([job(0, "hangs_with_children", path=str(tmp_path / "pid"))], timeout=1.0)
    assert outcome.failure.reason == "timeout after 1 s"
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.faults
def test_a_worker_killed_while_idle_costs_no_job():
    with make_executor("local", workers=1) as executor:
        executor.start(Candidate())
        executor.submit(job(0))
        pid = executor.next(60).values["extra"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        executor.submit(job(1))
        assert executor.next(60).values["extra"]["pid"] != pid


def test_close_stops_running_jobs_and_leaves_nobody():
    before = set(psutil.Process().children(recursive=True))         # a resource tracker of an earlier test, say
    executor = make_executor("local", workers=2)
    executor.start(Candidate())
    executor.submit(job(0))
    executor.next(60)
    executor.submit(job(1, "hangs"))
    children = set(psutil.Process().children(recursive=True)) - before
    executor.close()
    executor.close()
    assert len(children) == 2 and all(gone(child.pid) for child in children)


def test_next_gives_up_after_its_timeout_and_loses_nothing():
    with make_executor("local", workers=1, timeout=1.0) as executor:
        executor.start(Candidate())
        executor.submit(job(0, "hangs"))
        with pytest.raises(TimeoutError, match="no outcome within 0.1 s"):
            executor.next(0.1)
        assert executor.next(60).failure.reason == "timeout after 1 s"


def test_a_setup_that_raises_stops_the_start_with_the_childs_traceback():
    class Broken(Candidate):
        def setup(self):
            raise FileNotFoundError("corpus.txt is missing")

    with pytest.raises(BodyplanError, match=r"(?s)could not be set up.*in setup.*corpus.txt is missing"):
        run([], Broken())


@pytest.mark.faults
def test_a_setup_that_always_dies_stops_the_start():
    class Doomed(Candidate):
        def setup(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(BodyplanError, match="could not be set up: worker local-0 killed by SIGKILL"):
        run([], Doomed())


@pytest.mark.faults
def test_a_setup_that_dies_once_is_tried_again(tmp_path):
    class Unlucky(Candidate):
        flag = str(tmp_path / "seen")

        def setup(self):
            if not os.path.exists(self.flag):
                open(self.flag, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            super().setup()

    (outcome,) = run([job(0)], Unlucky())
    assert outcome.values["extra"]["setups"] == 1


def test_an_evaluator_that_does_not_pickle_is_refused():
    class Locked(Candidate):
        def __init__(self):
            self.lock = threading.Lock()

    with pytest.raises(TypeError, match="must pickle to reach other processes: Locked does not .*in setup"):
        run([], Locked())


def test_large_weights_reach_every_worker():
    class Heavy(Candidate):
        def __init__(self):
            self.weights = os.urandom(30_000_000)

        def pid(self, job):
            return {"pid": os.getpid(), "sum": sum(self.weights[::1000])}

    heavy = Heavy()
    outcomes = run([job(n) for n in range(6)], heavy, workers=2)
    assert {outcome.values["extra"]["sum"] for outcome in outcomes} == {sum(heavy.weights[::1000])}


SCRIPT = """
    import os, sys, time
    from bodyplan.search.executors import Job, make_executor
    from bodyplan.space.genome import Genome

    print("script starts")

    def helper(x):
        return 2 * x

    class Mine:
        def setup(self):
            pass
        def run(self, job):
            if job.fidelity.get("hang"):
                time.sleep(600)
            return {"objectives": {"loss": helper(job.genome["width"])}, "extra": {"pid": os.getpid()}}

    executor = make_executor("local", workers=2)
    executor.start(Mine())
    for number in range(4):
        executor.submit(Job(number, "score", Genome({"width": number}), 0))
    outcomes = sorted((executor.next() for _ in range(4)), key=lambda outcome: outcome.id)
    print([outcome.values["objectives"]["loss"] for outcome in outcomes])
"""
HANG = """
    for number in range(2):
        executor.submit(Job(number, "score", Genome({"width": number}), 0, {"hang": True}))
    print("children", *{outcome.values["extra"]["pid"] for outcome in outcomes}, flush=True)
    time.sleep(600)
"""


def script(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment,
                            cwd=tmp_path)


def test_a_script_without_a_main_guard_works(tmp_path):
    process = script(tmp_path, SCRIPT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.splitlines() == ["script starts", "[0, 2, 4, 6]"]


@pytest.mark.faults
def test_kill_9_of_the_parent_takes_busy_workers_along(tmp_path):
    process = script(tmp_path, SCRIPT + HANG)
    line = next(line for line in process.stdout if line.startswith("children"))
    pids = [int(word) for word in line.split()[1:]]
    process.kill()
    process.wait()
    process.stdout.close()
    assert pids and all(gone(pid) for pid in pids)
