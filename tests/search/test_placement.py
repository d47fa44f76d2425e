"""Where a sweep computes: refused before any work where it cannot, told by the journal, held to by a resume."""

import sys

import bodyplan as bp
import pytest
import torch
from bodyplan.errors import BodyplanError
from bodyplan.evaluators import devices, precision
from bodyplan.search.definition import definition
from bodyplan.search.executors.ray import RayExecutor
from bodyplan.search.placement import told
from bodyplan.search.rehearsal import Rehearsal

ADDRESS = "127.0.0.1:6379"


@pytest.fixture
def small(tmp_path):
    """A supernet sweep of seconds, everything in this process."""
    torch.set_num_threads(1)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                     body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2))), times=bp.integer(1, 2)),
                     head=bp.LanguageHead(tied=True))
    given = {"trials": 4, "supernet": True, "supernet_steps": 4, "steps": 2, "retrain": 1, "fidelity_sample": 3,
             "executor": "inline", "tracking": False, "quiet": True}
    return lambda name="run", **more: bp.Sweep(space, bp.tasks.text(length=16, batch=2), ["loss", "parameters"],
                                               directory=tmp_path / name, **{**given, **more})


@pytest.fixture
def no_knocking(monkeypatch):
    """A cluster is believed to be where an address says."""
    monkeypatch.setattr("bodyplan.search.executors.ray.knock", lambda address: None)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as asking goes."""
    for module in (devices, sys.modules["bodyplan.search.placement"]):
        monkeypatch.setattr(module, "available_devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(precision, "_computes", lambda device, dtype: True)


def test_mixed_precision_reaches_training_scores_and_what_is_trained_alone(small):
    sweep = small(dtype="bfloat16")
    front = sweep.run()
    task, best = sweep.task, front.best(1)[0]
    assert task.score(best.module(), dtype="bfloat16") == pytest.approx(best.values["loss"], rel=1e-6)
    assert task.score(best.module()) != pytest.approx(best.values["loss"], rel=1e-6)
    assert task.score(best.module(), "test", dtype="bfloat16") == pytest.approx(best.test["loss"], rel=1e-6)
    assert task.score(best.module("standalone"), dtype="bfloat16") == pytest.approx(best.standalone["loss"], rel=1e-6)
    net = bp.Supernet(sweep.space, seed=0)
    bp.train(net, task, 4, dtype="bfloat16")
    trained = bp.Supernet.load(sweep.space, sweep.directory / "supernet.safetensors").state_numpy()
    assert all((trained[name] == array).all() for name, array in net.state_numpy().items())
    with bp.Journal.open(sweep.directory) as journal:
        assert journal.definition["dtype"] == journal.last("supernet").body["dtype"] == "bfloat16"
        assert "device" not in journal.definition


def test_candidates_trained_alone_in_mixed_precision_are_made_again_in_it(small, monkeypatch):
    sweep = small(supernet=False, dtype="bfloat16", trials=2)
    knee = sweep.run().knee()
    for file in (sweep.directory / "weights").iterdir():
        file.unlink()
    assert sweep.task.score(knee.module(), dtype="bfloat16") == pytest.approx(knee.values["loss"], rel=1e-6)


def test_a_sweep_at_its_defaults_is_told_as_before(small):
    plain, named = small(), small(device="cpu", dtype="float32", supernet_workers=1)
    assert definition(plain) == definition(named)
    assert not {"device", "dtype", "supernet_workers"} & definition(plain).keys()


@pytest.mark.parametrize(("before", "after", "words"), [
    ({}, {"dtype": "bfloat16"}, r"another dtype \(float32, now bfloat16\)"),
    ({"dtype": "float16"}, {}, r"another dtype \(float16, now float32\)"),
    ({}, {"executor": "ray", "supernet_workers": 2, "order": "ask", "in_flight": 4},
     r"another supernet_workers \(1, now 2\)")])
def test_a_resume_keeps_to_the_placement(small, before, after, words):
    small(**before).run()
    with pytest.raises(BodyplanError, match=words):
        small(**after).run(resume=True)
    assert len(small(**before).run(resume=True)) >= 1


@pytest.mark.parametrize(("change", "words"), [
    ({"device": "cuda:9"}, "device 'cuda:9' is not on this machine; it has: cpu"),
    ({"device": "gpu"}, "unknown device 'gpu'"),
    ({"supernet_workers": 2}, "supernet_workers run on Ray: got 2 with executor 'inline'; use executor='ray'"),
    ({"supernet_workers": 2, "executor": "local"}, "use executor='ray'"),
    ({"executor": "ray", "device": "cuda:1"}, "use 'cuda', or executor='local'"),
    ({"executor": "ray", "device": "cuda", "address": ADDRESS}, "unless supernet_workers=2 or more train it on the cluster")])
def test_what_is_not_there_is_refused_before_any_work(small, tmp_path, change, words, monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    with pytest.raises(ValueError, match=words):
        small(**change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "words"), [
    ({"device": "cuda:1", "dtype": "bfloat16"}, "cuda:1 does not multiply in bfloat16; use 'float32' or 'float16'"),
    ({"device": "cuda", "executor": "ray", "supernet_workers": 3}, "a GPU each: got 3, this machine has 2"),
    ({"device": "cuda", "executor": RayExecutor(workers=1)}, "needs workers with a GPU: this executor reserves none")])
def test_gpus_are_held_to_what_they_can(small, two_gpus, change, words):
    with pytest.raises(ValueError, match=words):
        small(**change)
    assert told(small(device="cuda:1", dtype="float16")) == {"device": "cuda:1", "dtype": "float16"}


def test_every_worker_on_ray_reserves_a_gpu(small, two_gpus):
    from bodyplan.search.session import Surroundings

    assert Surroundings(small(executor="ray", workers=2, device="cuda")).executor.gpus == 1
    assert Surroundings(small(executor="ray", workers=2)).executor.gpus == 0
    assert small(executor=RayExecutor(workers=4, gpus=0.5), device="cuda").evaluator().device == "cuda"


def test_a_cluster_answers_for_its_own_devices(small, no_knocking, monkeypatch):
    monkeypatch.setattr(devices, "available_devices", lambda: ["cpu"])
    sweep = small(executor="ray", address=ADDRESS, device="cuda", dtype="bfloat16", supernet_workers=2)
    assert sweep.ray_address == ADDRESS
    assert small("other", executor="ray", address=ADDRESS, device="cuda", supernet=False).device == "cuda"


def test_a_dry_run_counts_what_the_workers_of_the_supernet_share(small, monkeypatch):
    monkeypatch.setattr("bodyplan.evaluators.training.step_seconds", lambda *_, **__: 3.0)
    monkeypatch.setattr("bodyplan.search.forecast.rehearse", lambda sweep, weights: Rehearsal(0.0))
    more = {"supernet_steps": 100, "retrain": 0, "fidelity_sample": 0}
    alone, two = small(**more).dry_run(), small(**more, executor="ray", workers=1, supernet_workers=2).dry_run()
    four = small(**more, executor="ray", workers=1, supernet_workers=4).dry_run()
    assert alone.seconds == 305                                     # a sandwich makes three visits a step
    assert two.seconds == pytest.approx(300 * 2 / 3 + 25) and four.seconds == pytest.approx(300 / 4 + 25)    # two Rays
    assert "dealt over 2 workers" in str(two) and "dealt over" not in str(alone)
