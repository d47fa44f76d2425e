"""Latency: what is timed, how it is summarised, and what is said about devices that are not there."""

import gc
import time
from types import SimpleNamespace

import bodyplan as bp
import cloudpickle
import numpy as np
import pytest
import torch
from bodyplan.evaluators.devices import available_devices, check_device, device_fingerprint
from bodyplan.evaluators.latency import LatencyProbe, bootstrap_median, latency, measure
from torch import nn


class Recorder(nn.Module):
    """A language model that remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 8)
        self.calls = []

    def init_state(self, batch, dtype, device):
        return 0

    def forward(self, ids):
        conditions = torch.get_num_threads(), torch.is_inference_mode_enabled()
        self.calls.append(("forward", tuple(ids.shape), *conditions))
        return self.embed(ids)

    def step(self, ids, state):
        self.calls.append(("step", tuple(ids.shape), state, gc.isenabled()))
        return self.embed(ids), state + ids.shape[1]


TEXT = SimpleNamespace(plan=SimpleNamespace(embed=SimpleNamespace(vocab=256)))
IMAGE = SimpleNamespace(plan=SimpleNamespace(embed=SimpleNamespace(sides=(8, 8), channels=3)))


def test_decode_times_one_token_after_a_prefill_and_always_from_the_same_state():
    model = Recorder()
    estimate = LatencyProbe(batch=2, length=16, budget_ms=2)(TEXT, model)
    assert model.calls[0][:3] == ("step", (2, 16), 0)
    assert {call[:3] for call in model.calls[1:]} == {("step", (2, 1), 16)}
    assert not any(call[3] for call in model.calls[1:]), "garbage is not collected while the clock runs"
    assert gc.isenabled() and estimate.low <= estimate.value <= estimate.high


def test_prefill_times_the_whole_sequence_on_pinned_threads_without_gradients():
    model, before = Recorder(), torch.get_num_threads()
    LatencyProbe(length=16, phase="prefill", budget_ms=2, threads=1)(TEXT, model)
    assert set(model.calls) == {("forward", (1, 16), 1, True)}
    assert torch.get_num_threads() == before


def test_image_models_are_measured_on_pixels_and_have_no_decode():
    seen = []
    model = nn.Module()
    model.forward = lambda pixels: seen.append(tuple(pixels.shape))
    LatencyProbe(batch=4, phase="prefill", budget_ms=1)(IMAGE, model)
    assert set(seen) == {(4, 3, 8, 8)}
    with pytest.raises(ValueError, match='use phase="prefill"'):
        LatencyProbe()(IMAGE, model)


@pytest.mark.parametrize("embed", [bp.FrameTokenizer(features=6, layers=1), bp.FrameEmbedding(features=6, stack=2)])
def test_a_network_of_frames_is_timed_on_frames(embed):
    body = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))
    architecture = bp.Space(embed=embed, width=8, body=body, head=bp.ClassifierHead(3)).sample(0)
    assert LatencyProbe(length=4, phase="prefill", budget_ms=1)(architecture, architecture.build()).value > 0


def test_an_encoder_decoder_is_timed_with_a_source():
    body = bp.EncoderDecoder(bp.Block(mixer=bp.Attention(heads=2)), bp.Block(mixer=bp.CrossAttention(heads=2)))
    architecture = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=8, body=body, head=bp.LanguageHead()).sample(0)
    assert LatencyProbe(length=4, budget_ms=1)(architecture, architecture.build()).value > 0


def test_another_dtype_leaves_the_module_as_it_was():
    model = Recorder()
    LatencyProbe(length=4, dtype="bfloat16", budget_ms=1)(TEXT, model)
    assert model.embed.weight.dtype == torch.float32 and model.calls == []


def test_a_sleep_is_measured_as_long_as_it_is():
    estimate = measure(lambda: time.sleep(0.003), budget_ms=20)
    assert 3.0 <= estimate.low <= estimate.value <= estimate.high


def test_a_call_slower_than_the_budget_is_still_repeated():
    calls = []
    measure(lambda: (calls.append(1), time.sleep(0.004)), budget_ms=1, least=3)
    assert len(calls) == 4


def test_the_bootstrap_interval_holds_the_median_and_is_reproducible():
    times = np.random.default_rng(1).exponential(size=101)
    low, high = bootstrap_median(times)
    assert low <= np.median(times) <= high and (low, high) == bootstrap_median(times)
    assert bootstrap_median(np.ones(5)) == (1.0, 1.0)


def test_the_bootstrap_interval_covers_the_true_median_nineteen_times_in_twenty():
    rng = np.random.default_rng(2)
    bounds = [bootstrap_median(rng.exponential(size=60)) for _ in range(300)]
    covered = np.mean([low <= np.log(2) <= high for low, high in bounds])
    assert 0.90 <= covered <= 0.98


def test_the_objective_carries_unit_and_device_and_travels():
    objective = cloudpickle.loads(cloudpickle.dumps(latency("cpu", length=8) <= 10))
    assert (objective.name, objective.unit) == ("decode_latency", "ms")
    assert (objective.device, objective.bound) == ("cpu", 10)
    assert latency(phase="prefill").name == "prefill_latency"


@pytest.mark.parametrize(("device", "word"), [("cup", "did you mean 'cpu'"), ("cuda:99", "it has: cpu"),
                                              ("tpu", "nown: cpu")])
def test_absent_devices_are_answered_with_those_that_exist(device, word):
    with pytest.raises(ValueError, match=word):
        latency(device)


@pytest.mark.parametrize("arguments", [dict(phase="decod"), dict(dtype="int8"), dict(batch=0),
                                       dict(budget_ms=0)])
def test_other_mistakes_are_named(arguments):
    with pytest.raises(ValueError, match="of a latency must be"):
        latency(**arguments)


def test_the_fingerprint_names_processor_torch_threads_and_load():
    found = device_fingerprint("cpu")
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["name"] and found["cores"] >= 1 and "load" in found
    assert available_devices()[0] == "cpu" and check_device("cpu") == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_is_timed_by_events_with_the_work_done():
    weight = torch.randn(4096, 4096, device="cuda")
    assert measure(lambda: weight @ weight, device="cuda:0").value > 0.05
