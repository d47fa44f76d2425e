"""What architectures do and move: their own formulas, counts of every operator, and the least time of a device."""

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.costing import Roof, counted, measured_roof, roof_of, roofline, workload
from bodyplan.evaluators.costing.roofline import roofline_lines
from bodyplan.evaluators.costing.single import counts_of
from bodyplan.evaluators.latency.memory import LiveBytes, found_tensors
from bodyplan.space.operator import operators
from bodyplan.space.reach import reference_configs
from bodyplan.systems import load_operators
from example_macros import ALL as MACROS

ATTENTION = bp.Attention(heads=2, kv_heads=1)
SPACE = bp.Space(
    embed=bp.TokenEmbedding(vocab=64), width=bp.choice(16, 32),
    body=bp.repeat(bp.Block(mixer=bp.choice(ATTENTION, bp.GatedDeltaNet(heads=2), bp.Mamba2(state=8, head_dim=8), bp.Hyena(),
                                            bp.ShortConv(kernel=4)),
                            channel=bp.choice(bp.SwiGLU(ratio=2), bp.Identity())), times=bp.integer(1, 4)),
    recursion=bp.choice(bp.Once(), bp.Loop(times=2)), head=bp.LanguageHead(tied=True))
load_operators()
ALONE = [name for name in operators.names() if operators.get(name).kind in ("mixer", "channel", "norm")
         and next(reference_configs(operators.get(name)), None) is not None]
NEED_OTHERS = {"AdaNorm", "CrossAttention", "KMeansCrossAttention", "TimeDependentNorm"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_sums_are_the_costs_of_the_architecture(seed, phase):
    architecture = SPACE.sample(seed)
    cost, work = architecture.cost(48), workload(architecture, 48, phase)
    assert work.total("macs") == pytest.approx(cost.macs if phase == "prefill" else cost.decode_macs)
    once = architecture.plan.recursion.times == 1
    if once and phase == "prefill":
        gathered = work.rows[0].weights - 4 * 64 * architecture.plan.width       # of the table, the rows that are looked up
        assert work.total("weights") - gathered == pytest.approx(4 * cost.parameters + work.rows[-1].weights)
        assert work.total("state") == cost.state_bytes
    assert [row.place for row in work.rows][0] == "embed" and work.uncounted == ["embed"]


@pytest.mark.parametrize("name", [name if i % 6 == 0 or name in NEED_OTHERS else
                                  pytest.param(name, marks=pytest.mark.long) for i, name in enumerate(ALONE)])
def test_every_operator_executes_at_least_the_products_it_declares(name):
    config, width = next(reference_configs(operators.get(name)))
    length = (6, 6) if config.spatial else 24
    found = counts_of(config, width, length, "prefill", 1)
    if name in NEED_OTHERS:
        assert found is None
        return
    declared = config.macs(width, length)
    assert found.products + found.transforms / 2 >= declared * (1 - 1e-9)
    assert found.written > 0 or type(config).__name__ in ("Identity", "NoNorm")


def test_hidden_products_are_the_pairs_that_causality_hides():
    row = next(row for row in workload(bp.Space(embed=bp.TokenEmbedding(vocab=8), width=16, body=bp.Block(mixer=ATTENTION),
                                                head=bp.LanguageHead()).sample(0), 10).rows if "Attention" in row.label)
    assert row.hidden == 2 * 16 * (100 - 55)                        # scores and values of every head, queries before keys


def test_a_cache_is_read_and_a_constant_state_is_written_too():
    def state(mixer, length):
        return workload(bp.Space(embed=bp.TokenEmbedding(vocab=8), width=16, body=bp.Block(mixer=mixer),
                                 head=bp.LanguageHead()).sample(0), length, "decode").total("state")

    assert state(ATTENTION, 40) == 2 * state(ATTENTION, 20) == 4 * 2 * 8 * 40
    mixer = bp.GatedDeltaNet(heads=2)
    assert state(mixer, 40) == state(mixer, 20) == 2 * 4 * mixer.state_numel(16, 20)


def test_types_and_batches_scale_what_they_should():
    architecture = SPACE.sample(1)
    full, half, many = (workload(architecture, 32, dtype=d, batch=b) for d, b in (
        ("float32", 1), ("bfloat16", 1), ("float32", 3)))
    for column in ("weights", "stream", "eager"):
        assert full.total(column) == 2 * half.total(column)
    lasting = sum(row.lasting for row in full.rows)                 # sums of recurrences, which stay in float32
    assert full.total("state") - half.total("state") == half.total("state") - 4 * lasting > 0 < lasting
    assert full.total("macs") == half.total("macs") == many.total("macs") / 3
    assert many.total("stream") == 3 * full.total("stream")
    assert sum(r.weights for r in many.rows[1:]) == sum(r.weights for r in full.rows[1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "based", *(pytest.param(name, marks=pytest.mark.long) for name in (
    "gpt", "mamba2_hybrid", "masformer", "mixed_attention", "transnormer"))])
def test_bytes_that_are_held_are_those_of_the_module_at_every_length(name, dtype):
    architecture, short = getattr(bp.presets, name).fixed("tiny"), getattr(torch, dtype)
    with torch.device("meta"), torch.no_grad():
        model = architecture.build(device="meta").to(short)
        for length in (1, 24, 100):
            _, state = model.step(torch.zeros(1, length, dtype=torch.long), model.init_state(1, dtype=short, device="meta"))
            work = workload(architecture, length, "decode", dtype=dtype)
            assert work.state_bytes == sum(one.nbytes for one in found_tensors(state))
            assert work.weight_bytes == sum(p.nbytes for p in model.parameters())
            assert workload(architecture, length, batch=3, dtype=dtype).state_bytes == 3 * work.state_bytes
    assert dtype != "float32" or (work.state_bytes, work.weight_bytes) == (
        architecture.cost(100).state_bytes, architecture.cost(100).weight_bytes)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_the_peak_of_activations_is_predicted(seed):
    architecture = SPACE.sample(seed)
    model, ids = architecture.build(seed=0).eval(), torch.zeros(2, 64, dtype=torch.long)
    with LiveBytes() as live:
        model(ids)
    assert workload(architecture, 64, batch=2).peak_bytes == pytest.approx(live.peak, rel=0.2)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(bp.presets.__all__))
def test_the_peak_of_a_preset_is_predicted(name):
    from bodyplan.experiments.bench_cost import peaks

    predicted, measured = peaks(getattr(bp.presets, name).fixed("tiny"))
    assert predicted == pytest.approx(measured, rel=0.25 if name == "titans" else 0.2)


FAR_OFF = {"sub-norms", "sum", "memories and attention"}            # chunks that values mark, too, which are not here


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MACROS))
def test_the_peak_of_a_macro_is_predicted_and_every_phase_has_a_workload(name):
    from bodyplan.experiments.bench_cost import peaks

    architecture = MACROS[name].sample(0)
    assert workload(architecture, phase="decode").total("macs") >= 0
    predicted, measured = peaks(architecture, length=64, batch=2)
    assert predicted == pytest.approx(measured, rel=0.45 if name in FAR_OFF else 0.2)


def test_what_is_joined_is_read_twice():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=8), width=16, head=bp.LanguageHead(),
                     body=bp.Block(mixer=ATTENTION, join=bp.Blend()))
    row = next(row for row in workload(space.sample(0), 10).rows if row.place.endswith("join"))
    assert row.stream == 4 * 3 * 10 * 16 and row.eager >= row.stream
    assert workload(space.sample(0), 10, "decode").total("stream") > 0


def test_embeddings_that_compute_are_counted_and_look_ups_are_not():
    work = workload(bp.presets.cct.fixed("tiny"))
    assert work.uncounted == [] and work.rows[0].eager > work.rows[0].stream and work.rows[0].elementwise > 0


def test_numbers_decide_what_sparse_experts_run():
    config = bp.MoE(ratio=1, experts=4, top_k=2)
    found = counts_of(config, 16, 32, "prefill", 1)
    assert found.products == pytest.approx(config.macs(16, 32), rel=1e-6)


def test_what_an_operator_does_is_counted_once(monkeypatch):
    from bodyplan.evaluators.costing import workloads as module

    seen = []
    monkeypatch.setattr(module, "counts_of", lambda *given: seen.append(given))
    module._each.cache_clear()
    module._group.cache_clear()
    for seed in range(20):
        workload(SPACE.sample(seed), 17)
    assert len(seen) == len(set(seen)) > 0
    module._each.cache_clear()
    module._group.cache_clear()


def test_a_roofline_is_the_slower_of_products_and_memory():
    roof = Roof("toy", flops=1e9, bandwidth=1e8, dtype="float32", source="made up")
    found = roofline(SPACE.sample(2), roof, 64)
    assert roof.ridge == 10 and {b.by for b in found.bounds} == {"compute", "memory"}
    for bound in found.bounds:
        assert bound.ms == pytest.approx(1e3 * max(2 * bound.work.macs / 1e9, bound.work.least / 1e8))
        assert (bound.work.intensity >= roof.ridge) == (bound.by == "compute")
    assert found.ms == pytest.approx(sum(b.ms for b in found.bounds))
    assert f"at least {found.ms:.4f} ms" in "\n".join(roofline_lines(found))
    twice = roofline(SPACE.sample(2), Roof("fast", 2e9, 2e8, "float32", "made up"), 64)
    assert twice.ms == pytest.approx(found.ms / 2)


def test_a_table_says_what_was_not_counted():
    lines = list(roofline_lines(roofline(SPACE.sample(2), Roof("toy", 1e9, 1e8, "float32", "made up"), 64)))
    assert "–" in next(line for line in lines if line.startswith("embed"))
    assert "–" not in next(line for line in lines if ".mixer.op" in line)


def test_devices_are_known_by_their_sheets_or_measured():
    assert roof_of("h200", "bfloat16").bandwidth == 4.8e12
    roof = measured_roof("cpu")
    assert roof.flops > 1e8 and roof.bandwidth > 1e8 and "measured" in roof.source


@pytest.mark.parametrize(("call", "message"), [
    (lambda: workload(SPACE.sample(0), 8, "train"), "'prefill' or 'decode'"),
    (lambda: workload(SPACE.sample(0), 8, dtype="int3"), "dtype is one of"),
    (lambda: workload(SPACE.sample(0), 8, batch=0), "batch is a whole number"),
    (lambda: workload(SPACE.sample(0), 8).total("peak"), "a total is of one of"),
    (lambda: Roof("none", 0, 1, "float32", ""), "positive number"),
    (lambda: roof_of("h200", "float32"), "data sheet"),
    (lambda: roof_of("cuda:7"), "not on this machine"),
    (lambda: measured_roof("cpu", "int8"), "float32, bfloat16 or float16"),
])
def test_bad_questions_get_clear_answers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_left_of_a_count():
    assert counted(lambda: None).products == 0


def test_the_command_line_prints_the_roofline_of_a_device_that_is_elsewhere():
    from bodyplan.cli import app
    from typer.testing import CliRunner

    asked = ["profile", "h200", "--roofline", "--dtype", "bfloat16", "--phase", "decode", "--length", "64"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "NVIDIA H200" in done.output and "GatedDeltaNet" in done.output and "at least" in done.output
