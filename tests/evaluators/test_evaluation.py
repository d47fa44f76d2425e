"""The evaluator: each kind of job, from inherited weights and alone, with the numbers as they are."""

import json
import math
import random
from types import SimpleNamespace

import bodyplan as bp
import cloudpickle
import numpy as np
import pytest
import torch
from bodyplan.evaluators.evaluation import Evaluator, evaluate_model
from bodyplan.evaluators.objectives import Estimate
from safetensors.torch import load_file


def job(architecture, kind="score", seed=3, **fidelity):
    return SimpleNamespace(kind=kind, genome=architecture.genome, seed=seed, fidelity=fidelity)


@pytest.fixture(scope="module")
def net(space):
    return bp.Supernet(space, seed=1)


@pytest.fixture
def architecture(space):
    return space.sample(4)


def test_a_score_is_the_metric_of_the_extracted_module(space, task, net, architecture):
    evaluator = Evaluator(space, task, ["loss", "parameters"], net.state_numpy())
    evaluator.setup()
    answer = evaluator.run(job(architecture))
    assert answer["objectives"] == {"loss": task.score(net.extract(architecture)),
                                    "parameters": architecture.cost().parameters}
    assert answer["extra"]["parameters"] == sum(p.numel() for p in architecture.build().parameters())


def test_weights_may_come_from_a_file(space, task, net, architecture, tmp_path):
    net.save(tmp_path / "supernet.safetensors")
    from_file = Evaluator(space, task, ["loss"], tmp_path / "supernet.safetensors").run(job(architecture))
    assert from_file == Evaluator(space, task, ["loss"], net.state_numpy()).run(job(architecture))


def test_answers_survive_the_journey_and_json(space, task, net, architecture):
    evaluator = Evaluator(space, task, ["loss", bp.latency(length=4, budget_ms=1)], net.state_numpy())
    evaluator.setup()
    travelled = cloudpickle.loads(cloudpickle.dumps(evaluator))
    travelled.setup()
    here, there = evaluator.run(job(architecture)), travelled.run(job(architecture))
    assert here["objectives"]["loss"] == there["objectives"]["loss"]
    assert json.loads(json.dumps(there)) == there
    low, high = there["intervals"]["decode_latency"]
    assert low <= there["objectives"]["decode_latency"] <= high


def test_the_test_split_is_another_number(space, task, net, architecture):
    evaluator = Evaluator(space, task, ["loss"], net.state_numpy())
    answer = evaluator.run(job(architecture, "test"))
    assert answer["objectives"]["loss"] == task.score(net.extract(architecture), "test")
    assert answer["objectives"]["loss"] != evaluator.run(job(architecture))["objectives"]["loss"]


def test_standalone_training_depends_on_the_seed_of_the_job_alone(space, task, architecture):
    evaluator = Evaluator(space, task, ["loss"])
    first, again = (evaluator.run(job(architecture, "standalone", steps=3)) for _ in range(2))
    other = evaluator.run(job(architecture, "standalone", seed=4, steps=3))
    assert first["objectives"] == again["objectives"] != other["objectives"]
    assert first["extra"]["validation"] == first["objectives"]["loss"] != first["extra"]["test"]
    assert first["extra"]["steps"] == 3


def test_without_a_supernet_a_score_is_standalone_training(space, task, architecture):
    evaluator = Evaluator(space, task, ["loss"])
    trained = evaluator.run(job(architecture, steps=3))["objectives"]
    assert trained == evaluator.run(job(architecture, "standalone", steps=3))["objectives"]


def test_without_a_task_the_module_is_untrained_from_the_seed(space, architecture):
    seen = []
    first = bp.Objective("first", needs="model", evaluate=lambda a, module: seen.append(module) or 1.0)
    Evaluator(space, None, [first]).run(job(architecture, seed=9))
    expected = architecture.build(seed=9).state_dict()
    assert all(torch.equal(expected[k], v) for k, v in seen[0].state_dict().items()) and not seen[0].training


def test_saved_weights_give_the_score_again(space, task, architecture, tmp_path):
    path = tmp_path / "deep" / "alone.safetensors"
    answer = Evaluator(space, task, ["loss"]).run(job(architecture, "standalone", steps=2, save=str(path)))
    module = architecture.build()
    module.load_state_dict(load_file(path), strict=True)
    assert evaluate_model(task, module)["validation"] == answer["objectives"]["loss"]
    assert [p.name for p in path.parent.iterdir()] == ["alone.safetensors"]


def test_architecture_objectives_build_no_module(space, architecture, monkeypatch):
    monkeypatch.setattr(type(architecture), "build", lambda *_, **__: pytest.fail("built a module"))
    answer = Evaluator(space, None, ["parameters", "macs", "state_bytes"]).run(job(architecture))
    assert set(answer["objectives"]) == {"parameters", "macs", "state_bytes"}


def test_numbers_are_given_as_they_are(space, architecture):
    def fake(value):
        return lambda architecture: value

    objectives = [bp.Objective("nan", evaluate=fake(math.nan)), bp.Objective("numpy", evaluate=fake(np.float32(2))),
                  bp.Objective("range", evaluate=fake(Estimate(2.0, 1.0, 3.0, "guess")))]
    answer = Evaluator(space, None, objectives).run(job(architecture))
    assert math.isnan(answer["objectives"]["nan"]) and answer["objectives"]["numpy"] == 2.0
    assert answer["intervals"] == {"range": [1.0, 3.0]} and answer["extra"]["notes"] == {"range": "guess"}


def test_objectives_draw_from_the_seed_of_the_job_and_leave_the_process_alone(space, architecture):
    def draw(architecture):
        return random.random() + np.random.rand() + torch.rand(()).item()

    evaluator = Evaluator(space, None, [bp.Objective("drawn", evaluate=draw)])
    states = random.getstate(), torch.random.get_rng_state()
    first, again = (evaluator.run(job(architecture, seed=2**63))["objectives"] for _ in range(2))
    assert first == again
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])


@pytest.mark.parametrize(("bad", "word"), [
    (dict(kind="scoer"), "kind of a job must be one of score, measure, standalone, test"),
    (dict(kind="standalone"), "whole number of at least 1: got None"),
    (dict(kind="standalone", steps=0), "whole number of at least 1: got 0")])
def test_unknown_jobs_are_refused(space, task, architecture, bad, word):
    with pytest.raises(ValueError, match=word):
        Evaluator(space, task, ["loss"]).run(job(architecture, **bad))


def test_an_objective_that_returns_no_number_is_named(space, architecture):
    with pytest.raises(TypeError, match="at 'empty': got None"):
        Evaluator(space, None, [bp.Objective("empty", evaluate=lambda a: None)]).run(job(architecture))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_holds_for_every_kind_of_job(space, task, net, architecture, dtype):
    inherited = Evaluator(space, task, ["loss"], net.state_numpy(), dtype=dtype)
    found = {kind: inherited.run(job(architecture, kind))["objectives"]["loss"] for kind in ("score", "test")}
    module = net.extract(architecture)
    assert found == {"score": task.score(module, "validation", dtype=dtype), "test": task.score(module, "test", dtype=dtype)}
    assert found["score"] != task.score(module) and found["score"] == pytest.approx(task.score(module), rel=0.02)
    alone = Evaluator(space, task, ["loss"], dtype=dtype)
    module = architecture.build(seed=3)
    bp.train(module, task, 2, seed=3, dtype=dtype)
    expected = task.score(module, "validation", dtype=dtype)
    assert alone.run(job(architecture, "standalone", steps=2))["objectives"] == {"loss": expected}
    assert alone.run(job(architecture, steps=2))["objectives"] == {"loss": expected}


def test_float32_is_the_default_to_the_bit(space, task, net, architecture):
    plain = Evaluator(space, task, ["loss"], net.state_numpy())
    named = Evaluator(space, task, ["loss"], net.state_numpy(), device="cpu", dtype="float32")
    assert plain.run(job(architecture)) == named.run(job(architecture))


def test_an_objective_of_the_users_own_gets_the_module_as_it_is(space, task, net, architecture):
    seen = []
    own = bp.Objective("own", needs="model", evaluate=lambda a, module: seen.append(module) or float(
        torch.is_autocast_enabled("cpu")))
    evaluator = Evaluator(space, task, [own], net.state_numpy(), dtype="bfloat16")
    assert evaluator.run(job(architecture))["objectives"] == {"own": 0}
    assert {parameter.dtype for parameter in seen[0].parameters()} == {torch.float32}


def test_a_worker_without_the_device_or_the_type_says_so_when_it_is_set_up(space, task, monkeypatch):
    with pytest.raises(ValueError, match=r"'cuda:7' is not on this machine; it has: cpu"):
        Evaluator(space, task, ["loss"], device="cuda:7").setup()
    with pytest.raises(ValueError, match="'float32', 'bfloat16' or 'float16': got 'int8'"):
        Evaluator(space, task, ["loss"], dtype="int8")
    monkeypatch.setattr("bodyplan.evaluators.precision._computes", lambda device, dtype: False)
    with pytest.raises(ValueError, match="cpu does not multiply in bfloat16; use 'float32' or 'float16'"):
        Evaluator(space, task, ["loss"], dtype="bfloat16").setup()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_and_scores_like_the_cpu(space, task, net, architecture):
    def loss(device, weights, kind, **more):
        evaluator = Evaluator(space, task, ["loss"], weights, device=device)
        return evaluator.run(job(architecture, kind, **more))["objectives"]["loss"]

    weights = net.state_numpy()
    for asked in ((weights, "score"), (weights, "test"), (None, "standalone")):
        assert loss("cuda", *asked, steps=2) == pytest.approx(loss("cpu", *asked, steps=2), rel=1e-3)
    mixed = Evaluator(space, task, ["loss"], net.state_numpy(), device="cuda", dtype="bfloat16").run(job(architecture))
    assert mixed["objectives"]["loss"] == pytest.approx(task.score(net.extract(architecture)), rel=0.02)
