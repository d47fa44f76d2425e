"""Peak memory and energy: counted exactly where that can be known, absent where the machine has no counter."""

import sys
import types

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.latency import energy
from bodyplan.evaluators.latency.clock import Work
from bodyplan.evaluators.latency.energy import energy_counter, energy_mj, rapl_counter, spent
from bodyplan.evaluators.latency.memory import LiveBytes, peak_bytes
from bodyplan.evaluators.latency.runner import Case, Conditions, measure_case, numbers
from bodyplan.evaluators.latency.work import work_of
from torch import nn

CPU = torch.device("cpu")


def test_the_peak_is_that_of_the_tensors_that_lived_at_once():
    x = torch.ones(1000)                                                   # 4,000 bytes, there before

    def run():
        a = x + 1                                                          # 4,000
        b = a * 2                                                          # 8,000
        del a
        c = b[:500].view(2, 250)                                           # a view takes nothing
        d = torch.cat([b, b])                                              # 12,000
        del b, c
        return d.sum()                                                     # b goes with its view: 8,004

    assert peak_bytes(Work(run), CPU) == 12_000
    assert peak_bytes(Work(lambda: x.add_(1).view(10, 100)), CPU) == 0


def test_what_is_freed_is_counted_off_and_what_stays_is_not():
    with LiveBytes() as live:
        kept = torch.zeros(10)
        for _ in range(5):
            torch.zeros(100)
    assert live.now == kept.untyped_storage().nbytes() == 40 and live.peak == 440


def test_training_holds_more_than_inference():
    layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    inputs = [torch.randn(1, 128, 64)]
    forward = peak_bytes(work_of(layers, inputs, "prefill", "eager", CPU), CPU)
    both = peak_bytes(work_of(layers, inputs, "train", "eager", CPU), CPU)
    one = 128 * 64 * 4
    assert 2 * one <= forward < 4 * one and both >= 8 * one


def test_work_nobody_can_watch_has_no_peak():
    work = Work(lambda: torch.zeros(8))
    assert peak_bytes(work, CPU, "compiled") is None and peak_bytes(work, torch.device("mps")) is None
    assert peak_bytes(work, torch.device("cuda:0"), "graph") is None


def test_a_row_leaves_out_what_the_machine_cannot_tell(monkeypatch):
    case, under = Case("Linear()", 8, lambda: nn.Linear(8, 8)), Conditions(length=4, budget_ms=1)
    monkeypatch.setattr(energy, "energy_counter", lambda device: None)
    row = numbers(measure_case(case, under, CPU))
    assert row["peak_bytes"] == 4 * 8 * 4 and "energy_mj" not in row
    joules = iter(range(10 ** 9))
    monkeypatch.setattr(energy, "energy_counter", lambda device: lambda: float(7 * next(joules)))
    assert numbers(measure_case(case, under, CPU))["energy_mj"] == 7.0


def test_energy_is_that_between_two_ticks_of_the_counter_by_the_calls_between_them():
    calls = []
    counter = lambda: 100.0 * (len(calls) // 10)                           # noqa: E731 - 10 mJ a call, in steps of 10 calls
    assert spent(Work(lambda: calls.append(1)), counter, lambda: None) == pytest.approx(10.0)
    assert len(calls) == 10 * (energy.TICKS + 1)


def test_a_counter_that_stands_still_tells_nothing():
    now = iter(range(10 ** 6))
    assert spent(Work(lambda: None), lambda: 5.0, lambda: None, clock=lambda: 0.1 * next(now)) is None
    assert energy_mj(Work(lambda: None), torch.device("mps"), 1.0) is None


def package(folder, number, name, microjoules, span=999):
    path = folder / f"intel-rapl:{number}"
    path.mkdir()
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", span)):
        (path / file).write_text(f"{value}\n")
    return path / "energy_uj"


def test_rapl_adds_up_the_packages_and_turns_over(tmp_path):
    first, second = package(tmp_path, 0, "package-0", 900), package(tmp_path, 1, "package-1", 100)
    package(tmp_path, "0:0", "dram", 5)
    read = rapl_counter(tmp_path)
    assert read() == 0.0
    first.write_text("50\n")
    second.write_text("300\n")
    assert read() == pytest.approx((150 + 200) / 1000) and read() == pytest.approx(0.35)


def test_without_rapl_or_with_one_that_may_not_be_read_there_is_no_counter(tmp_path):
    assert rapl_counter(tmp_path) is None and rapl_counter(tmp_path / "absent") is None
    package(tmp_path, 0, "package-0", "not a number")
    assert rapl_counter(tmp_path) is None


def test_nvml_is_optional_and_its_errors_mean_no_counter(monkeypatch):
    class NVMLError(Exception):
        pass

    def fails():
        raise NVMLError

    device = torch.device("cuda:0")
    monkeypatch.setitem(sys.modules, "pynvml", None)                       # not installed
    assert energy_counter(device) is None
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(NVMLError=NVMLError, nvmlInit=fails))
    assert energy_counter(device) is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="12"))
    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-12": 42}[handle]))
    assert energy_counter(device)() == 42.0


def test_a_profile_holds_the_peak_of_every_measurement():
    from bodyplan.evaluators.latency.measuring import conditions_of, profile_operators

    under = conditions_of((4, 8), phases=("prefill",), budget_ms=1)
    rows = profile_operators(operators=[bp.MLP(ratio=4)], widths=(8,), conditions=under).operators
    assert rows[1]["peak_bytes"] == 2 * rows[0]["peak_bytes"] >= 2 * 4 * 8 * 4 * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_peak_on_cuda_is_the_allocators():
    x = torch.ones(1 << 20, device="cuda:0")
    assert 1 << 23 <= peak_bytes(Work(lambda: (x + 1) * 2), torch.device("cuda:0")) < 1 << 24
