"""A sweep whose supernet two workers train together: it runs, is stopped, killed and resumed, and says how it was trained."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import bodyplan as bp
import psutil
import pytest
from bodyplan.evaluators.checkpoint import read_checkpoint
from bodyplan.search.data_parallel import train_supernet
from bodyplan.search.executors.cluster import private_ray

pytest.importorskip("ray")
STEPS = 200
CHECKPOINT = "supernet.checkpoint.safetensors"

SCRIPT = textwrap.dedent("""
    import json, os, pathlib, signal, sys
    import bodyplan as bp
    import psutil
    from bodyplan.search.progress import Reporter

    directory, ending, at = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2))), times=bp.integer(1, 2)),
                     head=bp.LanguageHead(tied=True))
    sweep = bp.Sweep(space, bp.tasks.text(length=16, batch=2), ["loss", "parameters"], trials=2, supernet=True,
                     supernet_steps=STEPS, supernet_workers=2, executor="ray", workers=1, retrain=0, fidelity_sample=0,
                     directory=directory, tracking=False, quiet=True, seed=3)
    advance = Reporter.advance

    def ends(self, done, note=""):
        advance(self, done, note)
        if "nats" in note and done >= at:
            family = [[child.pid, child.name(), child.cmdline()] for child in psutil.Process().children(recursive=True)]
            (directory.parent / "family.json").write_text(json.dumps(family))
            os.kill(os.getpid(), getattr(signal, ending))

    if ending != "never":
        Reporter.advance = ends
    if __name__ == "__main__":
        sweep.run(resume=directory.exists())
""").replace("STEPS", str(STEPS))


@pytest.fixture
def run(tmp_path):
    """Runs the sweep as a process of its own, which sends itself a signal after so many steps of its supernet."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(ending="never", at=0):
        return subprocess.run([sys.executable, str(script), str(tmp_path / "sweep"), ending, str(at)], timeout=300,
                              env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    return start


def _check_gone(family, seconds=60.0):
    """Whatever the killed process had started is gone, but for two agents that take Ray minutes; so are its files then."""
    limit = time.monotonic() + seconds
    pids = [pid for pid, name, _ in family if not name.startswith(("ray::DashboardA", "ray::RuntimeEnv"))]
    assert len(pids) >= 5
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, pids))
    home = next(re.search(r"/\S*bp-ray-\w+", " ".join(words)) for _, name, words in family if name == "raylet")
    shutil.rmtree(home[0])


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_two_workers_train_the_supernet_of_a_sweep_through_ctrl_c_and_kill_9(run, tmp_path):
    directory = tmp_path / "sweep"
    stopped = run("SIGINT", 20)
    assert stopped.returncode != 0 and "KeyboardInterrupt" in stopped.stderr
    done = len(read_checkpoint(directory / CHECKPOINT)[1]["record"]["losses"])
    assert 20 <= done < STEPS
    assert run("SIGKILL", done + 20).returncode == -signal.SIGKILL
    _check_gone(json.loads((tmp_path / "family.json").read_text()))
    ended = run()
    assert ended.returncode == 0, ended.stderr
    with bp.Journal.open(directory) as journal:
        body = journal.last("supernet").body
        assert body["supernet_workers"] == journal.definition["supernet_workers"] == 2
        assert body["steps"] == STEPS and len(journal.trials("search")) == 2
        assert {trial.state for trial in journal.trials()} == {"complete"}
        space = bp.Space.from_json(journal.definition["space"])
    net = bp.Supernet(space, seed=3)
    with private_ray(2):
        train_supernet(net, bp.tasks.text(length=16, batch=2), STEPS, seed=3)
    found = bp.Supernet.load(space, directory / "supernet.safetensors").state_numpy()
    assert all((found[name] == array).all() for name, array in net.state_numpy().items())
    assert not (directory / CHECKPOINT).exists()
