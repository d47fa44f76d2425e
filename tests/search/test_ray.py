"""A pool of Ray actors: the same values as everywhere, faults as failed trials, addresses that lead nowhere."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import cloudpickle
import psutil
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.executors import Job, make_executor
from bodyplan.space.genome import Genome

ray = pytest.importorskip("ray")
for pickler in (ray.cloudpickle, cloudpickle):
    pickler.register_pickle_by_value(sys.modules[__name__])


def job(number, does="arithmetic", seed=0):
    return Job(number, "score", Genome({"width": number, "picks": (0, 2)}), seed, {"does": does})


class Candidate:
    """Does what the fidelity of its job names."""

    def setup(self):
        self.setups = 1 + getattr(self, "setups", 0)

    def run(self, job):
        return getattr(self, job.fidelity["does"])(job)

    def arithmetic(self, job):
        value = (job.genome["width"] + 1 / 3) ** 0.5 * (job.seed + 0.1)
        return {"objectives": {"loss": value}, "intervals": {"loss": (value - 0.1, value)}}

    def process(self, job):
        return {"extra": {"pid": os.getpid(), "setups": self.setups, "threads": os.environ["OMP_NUM_THREADS"]}}

    def raises(self, job):
        raise ValueError("this one is bad")

    def exits(self, job):
        sys.exit(4)

    def kills_itself(self, job):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self, job):
        time.sleep(600)

    def returns_a_lock(self, job):
        return {"extra": {"lock": threading.Lock()}}


@pytest.fixture(scope="module")
def private():
    """One private Ray and one pool for the whole file."""
    with make_executor("ray", workers=2, timeout=3.0) as executor:
        executor.start(Candidate())
        yield executor


def run(executor, jobs):
    for each in jobs:
        executor.submit(each)
    return sorted((executor.next(120) for _ in jobs), key=lambda outcome: outcome.id)


def test_the_same_jobs_give_the_same_values_on_every_executor(private):
    jobs = [job(n, seed=n * 7919) for n in range(20)]
    values = [outcome.values for outcome in run(private, jobs)]
    for name in ("inline", "local"):
        with make_executor(name) as executor:
            executor.start(Candidate())
            assert [outcome.values for outcome in run(executor, jobs)] == values


def test_each_actor_is_set_up_once_and_held_to_its_threads(private):
    extras = [outcome.values["extra"] for outcome in run(private, [job(n, "process") for n in range(6)])]
    assert {(extra["setups"], extra["threads"]) for extra in extras} == {(1, "1")}
    assert private.capacity == 2


@pytest.mark.parametrize("does, reason", [
    ("raises", "ValueError: this one is bad"),
    ("exits", "SystemExit: 4"),
    ("returns_a_lock", "ValueError: extra.lock is a lock; JSON holds numbers, strings, lists and dicts"),
])
def test_a_raising_candidate_fails_alone_with_its_traceback(private, does, reason):
    before, bad, after = run(private, [job(0), job(1, does), job(2)])
    assert before.values and after.values and bad.values is None
    assert bad.failure.reason == reason and "Traceback" in bad.failure.traceback
    assert re.fullmatch(r"ray-\d+@\S+", bad.worker)


@pytest.mark.faults
def test_a_dead_actor_fails_its_job_and_is_replaced(private):
    outcomes = run(private, [job(0, "kills_itself"), *(job(n, "process") for n in range(1, 5))])
    assert outcomes[0].failure.reason == "worker died: SYSTEM_ERROR"
    assert "worker process has died" in outcomes[0].failure.traceback
    assert all(outcome.values for outcome in outcomes[1:])
    assert all(outcome.values for outcome in run(private, [job(n) for n in range(4)]))


@pytest.mark.faults
def test_a_hanging_candidate_is_killed_after_the_timeout(private):
    hung, good = run(private, [job(0, "hangs"), job(1)])
    assert hung.failure.reason == "timeout after 3 s" and good.values
    assert all(outcome.values for outcome in run(private, [job(n) for n in range(4)]))


def test_next_gives_up_after_its_timeout_and_loses_nothing(private):
    with pytest.raises(BodyplanError, match="no job is in flight"):
        private.next()
    private.submit(job(0, "hangs"))
    with pytest.raises(TimeoutError, match="no outcome within 0.1 s"):
        private.next(0.1)
    assert private.next(120).failure.reason == "timeout after 3 s"


def test_a_setup_that_raises_stops_the_start_with_its_traceback(private):
    class Broken(Candidate):
        def setup(self):
            raise FileNotFoundError("corpus.txt is missing")

    second = make_executor("ray", workers=1, cpus=0)
    with pytest.raises(BodyplanError, match=r"(?s)could not be set up in a Ray actor.*corpus.txt is missing"):
        second.start(Broken())
    assert run(private, [job(0)])[0].values               # the Ray that others use is still there


def test_a_share_that_the_ray_does_not_have_is_refused(private):
    with pytest.raises(BodyplanError, match="each worker needs 2000 CPU: this Ray has 2; lower cpus="):
        make_executor("ray", cpus=2000).start(Candidate())


def test_an_address_where_nothing_listens_is_answered_at_once():
    with pytest.raises(BodyplanError, match="no Ray cluster answers at 127.0.0.1:1 .*ray start --head"):
        make_executor("ray", address="127.0.0.1:1")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_something_else_listens_is_answered_at_once(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def answer():
            line, _ = server.accept()
            with line:
                line.recv(1 << 10)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BodyplanError, match="something else listens there"):
            make_executor("ray", address=address)


@pytest.mark.parametrize("options, text", [
    ({"address": "somewhere"}, "a Ray address is host:port, ray://host:port or auto: got 'somewhere'"),
    ({"workers": 0}, "workers must be a whole number of at least 1"),
    ({"timeout": 0}, "timeout must be positive or None"),
    ({"cpus": 0, "gpus": 0}, "an actor reserves CPUs or GPUs, else workers="),
])
def test_bad_options_are_answered_before_ray_is_started(options, text):
    with pytest.raises(ValueError, match=text):
        make_executor("ray", **options)


SCRIPT = """
    import os, pathlib, psutil, sys, time
    from bodyplan.search.executors import Job, make_executor
    from bodyplan.space.genome import Genome

    def helper(x):
        return 2 * x

    class Mine:
        def setup(self):
            pass
        def run(self, job):
            print("noise")
            if job.fidelity.get("kill"):
                os.kill(os.getpid(), 9)
            return {"objectives": {"loss": helper(job.genome["width"])}}

    with make_executor("ray", workers=1, **ADDRESS) as executor:
        executor.start(Mine())
        for number in range(3):
            executor.submit(Job(number, "score", Genome({"width": number}), 0, {"kill": number == 1}))
        outcomes = sorted((executor.next() for _ in range(3)), key=lambda outcome: outcome.id)
        print([outcome.values and outcome.values["objectives"]["loss"] for outcome in outcomes])
        if "hang" in sys.argv:
            print("children", *(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
            time.sleep(600)
    print([name for name in os.environ if name.startswith(("RAY_AUTH", "RAY_USAGE"))])
    print([path.name for path in pathlib.Path.home().iterdir()])
"""


def script(tmp_path, *arguments, address=None):
    options = {} if address is None else {"address": address}
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(SCRIPT).replace("ADDRESS", repr(options)))
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, str(path), *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=environment, cwd=tmp_path)


@pytest.mark.faults
@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_quietly_and_leaves_home_and_environment_alone(tmp_path):
    output, _ = script(tmp_path).communicate(timeout=200)
    assert output.splitlines() == ["[0, None, 4]", "[]", "[]"]


@pytest.mark.faults
@pytest.mark.slow
def test_kill_9_of_the_driver_takes_its_actors_along(tmp_path):
    process = script(tmp_path, "hang")
    line = next(line for line in process.stdout if line.startswith("children"))
    children = [psutil.Process(int(word)) for word in line.split()[1:]]
    home = next(re.search(r"/\S*bp-ray-\w+", " ".join(child.cmdline())) for child in children
                if child.name() == "raylet")[0]
    working = [child for child in children if child.name() in ("raylet", "gcs_server", "ray::Runner")]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(working) == 3                              # Ray's two agents take minutes to notice
    assert psutil.wait_procs(working, timeout=60)[1] == []
    shutil.rmtree(home)


@pytest.mark.slow
def test_a_running_cluster_is_joined_and_left_running(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "ray"), "start", "--head", "--block", f"--port={port}",
               "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
    home = tempfile.mkdtemp(prefix="bp-ray-", dir="/tmp")  # short: the path of a socket may have 107 characters
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": home}
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        for attempt in ("first", "second"):
            (tmp_path / attempt).mkdir()
            output, _ = script(tmp_path / attempt, address=f"127.0.0.1:{port}").communicate(timeout=120)
            assert output.splitlines()[0] == "[0, None, 4]"
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(home, ignore_errors=True)
