"""What a measurement says about itself: warm-up, outliers, noise, drift, inputs, modes, and the machine."""

import itertools
import os

import pytest
import torch
from bodyplan.evaluators import devices
from bodyplan.evaluators.latency import clock, work
from bodyplan.evaluators.latency.clock import Work, measured, repeated
from bodyplan.evaluators.latency.probe import LatencyProbe, latency
from bodyplan.evaluators.latency.spread import outliers, quietest, summary
from torch import nn

CPU = torch.device("cpu")


def ticking(times):
    """A fake timer that gives these times, then the last one for ever."""
    given = itertools.chain(times, itertools.repeat(times[-1]))
    return lambda: next(given)


def test_outliers_are_counted_and_stay_in_the_numbers():
    times = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 9.0, 1.0, 0.2]
    found = summary(times)
    assert outliers(times) == [7, 9] and found.outliers == 2
    assert found.repeats == 10 and found.slowest_ms == 9.0 and "2 outliers, up to 9 ms" in found.note


def test_usual_scatter_has_no_outliers_and_three_times_cannot_tell():
    assert outliers([1.0, 1.1, 0.9, 1.05, 0.95]) == [] and outliers([1.0, 1.0, 50.0]) == []


def test_constant_times_have_an_interval_of_no_width_and_no_complaint():
    found = summary([2.0] * 30)
    assert (found.low_ms, found.median_ms, found.high_ms) == (2.0, 2.0, 2.0)
    assert not found.noisy and found.outliers == 0 and found.drift == 0
    assert summary([0.0] * 5).median_ms == 0


@pytest.mark.parametrize(("times", "word"), [([], "needs times: got none"), ([1.0, float("nan")], "got nan among 2"),
                                             ([1.0, -1.0], "got -1.0"), ([float("inf")], "got inf")])
def test_times_that_are_none_are_refused(times, word):
    with pytest.raises(ValueError, match=word):
        summary(times)


def test_a_wide_interval_is_said():
    found = summary([1.0, 3.0] * 8)
    assert "of the median wide" in found.noisy and "noisy: the interval is" in found.note
    assert not summary([1.0, 1.01] * 8).noisy


def test_a_machine_that_gets_slower_while_measuring_is_said():
    assert "the median moved by +50 %" in summary([1.0] * 15 + [1.5] * 15).noisy
    assert not summary([1.0] * 30).noisy


def test_a_noisy_measurement_is_made_again_and_the_quietest_counts_not_the_fastest():
    loud, louder, quiet = ([1.0, 3.0] * 8, [0.1, 9.0] * 8, [5.0, 5.01] * 8)
    given = iter([loud, louder, quiet])
    found = quietest(lambda: summary(next(given)), 5)
    assert found.attempts == 3 and not found.noisy and found.median_ms == pytest.approx(5.005)
    assert "quietest of 3 attempts" in found.note
    given = iter([louder, loud, louder])
    found = quietest(lambda: summary(next(given)), 3)
    assert found.noisy and found.attempts == 3 and found.slowest_ms == 3.0
    assert quietest(lambda: summary(quiet), 3).attempts == 1


def test_the_warm_up_ends_when_the_times_have_settled_and_does_not_count():
    falling = [50.0, 30.0, 20.0, 15.0, 12.0, *[10.0] * 10]
    found = repeated(ticking(falling), budget_ms=1000)
    assert found.settled and 10 <= found.warmup < 16
    assert (found.low_ms, found.high_ms) == (10.0, 10.0)


def test_times_that_never_settle_are_said():
    falling = (100 * 0.95 ** i for i in itertools.count())
    found = repeated(lambda: next(falling), budget_ms=1500)
    assert not found.settled and "never settled" in found.noisy


def test_calls_before_the_warm_up_are_made_and_never_timed_into_the_median():
    found = repeated(ticking([9999.0, 9999.0, *[1.0] * 99]), budget_ms=20, first=2)
    assert found.high_ms == 1.0 and found.warmup >= 12


def test_what_comes_before_a_call_is_not_timed(monkeypatch):
    now = iter(range(0, 10 ** 12, 10 ** 6))
    monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: next(now))
    order = []
    found = measured(Work(lambda: order.append("run"), lambda: (order.append("before"), next(now))), CPU, budget_ms=20,
                     usual_speed=False)
    assert order[:4] == ["before", "run", "before", "run"] and found.median_ms == 1.0


def test_inputs_are_different_random_and_together_leave_the_cache(monkeypatch):
    monkeypatch.setattr(work, "cache_bytes", lambda device: 4096)
    found = work.rotated((2, 8, 16), CPU, torch.float32)
    assert len(found) * found[0].numel() * 4 >= 2 * 4096
    assert len({tuple(one.flatten().tolist()) for one in found}) == len(found)
    ids = work.rotated((1, 100), CPU, torch.int64, vocab=7)
    assert set(ids[0].flatten().tolist()) == set(range(7)) and not torch.equal(ids[0], ids[1])
    assert len({one.data_ptr() for one in ids}) == len(ids) <= work.MOST_INPUTS


def test_the_inputs_take_turns():
    seen = []
    given = [torch.zeros(1, 4, 2) + i for i in range(3)]
    model = nn.Identity()
    model.forward = lambda x: seen.append(int(x[0, 0, 0]))
    timed = work.work_of(model, given, "prefill", "eager", CPU)
    for _ in range(5):
        timed.run()
    assert seen == [0, 1, 2, 0, 1]


def test_training_computes_all_gradients_anew_and_leaves_the_candidate_alone(space):
    architecture = space.sample(0)
    model = architecture.build().eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    probe = LatencyProbe(length=8, phase="train", budget_ms=1)
    assert probe(architecture, model).value > 0
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_gradients_of_a_training_pass_are_those_of_its_inputs_too():
    linear, given = nn.Linear(4, 4), [torch.randn(1, 3, 4)]
    timed = work.work_of(linear, given, "train", "eager", CPU)
    timed.before()
    timed.run()
    once = linear.weight.grad.clone()
    timed.before()
    assert linear.weight.grad is None
    timed.run()
    assert torch.equal(linear.weight.grad, once) and timed.grads


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_compiled_calls_compile_before_the_clock_counts(monkeypatch, phase):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(call) or call)

    class Model(nn.Linear):
        def step(self, x, state):
            return self(x), state

    timed = work.work_of(Model(4, 4), [torch.randn(1, 3, 4)], phase, "compiled", CPU, lambda: 0)
    assert len(compiled) == 1 and timed.first == 2
    timed.run()


@pytest.mark.slow
def test_a_compiled_model_is_measured(space):
    architecture = space.sample(1)
    probe = latency(length=16, phase="prefill", mode="compiled", budget_ms=5).evaluate
    found = probe.measured(architecture, architecture.build())
    assert found.median_ms > 0 and found.warmup >= 3


@pytest.mark.parametrize(("arguments", "word"), [
    (dict(mode="jit"), "mode of a latency must be one of eager, compiled, graph: got 'jit'"),
    (dict(mode="graph"), "on CUDA devices only: got 'cpu'"), (dict(phase="training"), "got 'training'")])
def test_a_mode_that_cannot_be_is_refused_before_anything_runs(arguments, word):
    with pytest.raises(ValueError, match=word):
        latency(**arguments)
    with pytest.raises(ValueError, match="a graph replays prefill or decode"):
        work.check_conditions(torch.device("cuda:0"), "train", "graph", "float32")


def test_the_name_of_the_objective_tells_the_mode():
    assert latency(mode="compiled").name == "decode_latency_compiled"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin threads")
def test_the_measuring_thread_is_pinned_and_let_go():
    before = os.sched_getaffinity(0)
    with devices.pinned(1):
        inside = os.sched_getaffinity(0)
    assert inside <= before and (len(inside) == 1 or inside == before)
    assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyError), devices.pinned(1):
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_a_system_that_does_not_allow_pinning_measures_all_the_same(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with devices.pinned(1):
        assert os.sched_getaffinity(0) == {0, 1, 2}


def test_the_fingerprint_holds_what_a_number_depends_on_and_nothing_unknown():
    found = devices.device_fingerprint("cpu")
    assert {"kind", "name", "cores", "torch", "python", "threads", "cache_bytes"} <= set(found)
    assert found["kind"] == "cpu" and None not in found.values()
    assert devices.identity(found) == devices.identity({**found, "load": 99, "torch": "9.9"})
    assert devices.identity(found) != devices.identity({**found, "name": "another"})


def test_what_nvidia_smi_tells_becomes_numbers_and_its_absence_nothing(monkeypatch):
    def told(command, **_):
        assert "--id=GPU-12" in command
        return type("Done", (), {"stdout": "570.1, 1980, 1980, [N/A], 700.00, 31\n"})

    properties = type("Properties", (), {"uuid": "12"})
    monkeypatch.setattr(devices.subprocess, "run", told)
    assert devices._gpu_state(properties) == {"driver": "570.1", "clock_mhz": 1980.0, "clock_max_mhz": 1980.0,
                                              "power_limit_w": 700.0, "temperature_c": 31.0}

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(devices.subprocess, "run", missing)
    assert devices._gpu_state(properties) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_graph_is_captured_once_and_replays_what_eager_computes(space, phase):
    device = torch.device("cuda:0")
    architecture = space.sample(0)
    model = architecture.build().to(device).eval()
    inputs = work.rotated((1, 16), device, torch.int64, vocab=256)
    timed = work.work_of(model, inputs, phase, "graph", device, lambda: model.init_state(1, device=device))
    kept = timed.run.__defaults__[0]
    for i in (0, 1):
        timed.before()
        timed.run()
        torch.cuda.synchronize(device)
        with torch.inference_mode():
            if phase == "prefill":
                wanted, found = model(inputs[i]), kept
            else:
                _, state = model.step(inputs[0], model.init_state(1, device=device))
                wanted, found = model.step(inputs[i][:, -1:], state)[0], kept[0]
        torch.testing.assert_close(found, wanted)
    estimate = latency("cuda:0", length=16, phase=phase, mode="graph").evaluate(architecture, model)
    assert 0 < estimate.low <= estimate.value <= estimate.high


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_work_that_reads_back_from_the_device_cannot_be_captured():
    model = nn.Identity()
    model.forward = lambda x: x * x.sum().item()
    with pytest.raises(ValueError, match="work that a CUDA graph can hold"):
        work.work_of(model, [torch.ones(4, device="cuda:0")], "prefill", "graph", torch.device("cuda:0"))
