"""A device that is a table: what is looked up, how often it counts, and what is said of what is missing."""

import bodyplan as bp
import cloudpickle
import pytest
from bodyplan.evaluators.latency import Device
from bodyplan.evaluators.latency.profile import Profile
from bodyplan.evaluators.latency.runs import runs_of
from example_macros import ALL, GRID


def looped(times=3):
    """Two equal blocks of attention and feed-forward, gone through `times` times."""
    block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=2))
    return bp.Space(embed=bp.TokenEmbedding(vocab=16), width=16, body=bp.repeat(block, times=2),
                    recursion=bp.Loop(times=times) if times > 1 else bp.Once(), head=bp.LanguageHead(tied=True)).sample(0)


TABLE = {"Attention": 2.0, bp.SwiGLU(ratio=2): 0.5, "RMSNorm": 0.25, "TokenEmbedding": 1.0, "LanguageHead": 4.0}


def test_an_architecture_takes_the_sum_of_its_operators_as_often_as_they_run():
    once, thrice = (Device.from_table(TABLE).objective().evaluate(looped(n)).value for n in (1, 3))
    body = 2 * (2.0 + 0.5 + 2 * 0.25)
    assert once == 1 + 4 + 0.25 + body and thrice == 1 + 4 + 0.25 + 3 * body


def test_what_says_most_about_an_operator_wins():
    table = {"Attention": 1.0, ("Attention", 16): 2.0, "Attention(heads=2)": 4.0, (bp.Attention(heads=2), 16): 8.0}
    for key in list(table)[::-1]:
        share = next(s for s in Device.from_table(table, default=0.0).shares(looped(1)) if s.label.startswith("Attention"))
        assert share.each.value == table[key]
        del table[key]
        if not table:
            break
    found = Device.from_table({bp.Attention: 3.0, ("Attention", 32): 5.0}, default=0.0).estimate(looped(1))
    assert found.value == 6.0 and (found.low, found.high) == (6.0, 6.0)


def test_a_function_is_asked_for_every_operator():
    asked = []
    device = Device.from_table(lambda op, width, length: asked.append((type(op).__name__, width, length)) or 1.0,
                               name="duplex", unit="mJ")
    objective = device.objective("energy", length=64)
    assert objective.evaluate(looped(1)).value == len(asked) == 2 * 4 + 3
    assert ("Attention", 16, 64) in asked and (objective.name, objective.unit, objective.device) == ("energy", "mJ", "duplex")


def test_an_objective_of_a_table_travels_and_is_bounded_like_any_other():
    objective = cloudpickle.loads(cloudpickle.dumps(Device.from_table(TABLE, name="My NPU").objective() <= 20))
    assert objective.name == "my_npu_prefill" and objective.evaluate(looped(3)).value == 23.25
    assert objective.violation(23.25) == pytest.approx(0.1625) and objective.needs == "architecture"


def test_a_missing_operator_is_named_with_its_place_and_the_nearest_entry():
    others = {key: value for key, value in TABLE.items() if isinstance(key, str)}
    with pytest.raises(ValueError, match=r"'SwiGLU\(ratio=2\)'; did you mean 'SwiGLU\(ratio=3\)'.*at layers.0.channel.op "
                                         "with width 16; add it, or give default=0.0"):
        Device.from_table({**others, "SwiGLU(ratio=3)": 1}).estimate(looped())


@pytest.mark.parametrize(("arguments", "word"), [
    (({},), "has entries: got none"), (({"MLP": float("nan")},), "finite and not negative at 'MLP' of 'table': got nan"),
    (({"MLP": -1},), "got -1"), (({"MLP": None},), "got None"), (({"MLP": True},), "got True"),
    (({"MLP": 1.0}, "t", "ms", float("inf")), "at default of 't': got inf")])
def test_numbers_that_are_none_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        Device.from_table(*arguments)


def test_keys_that_name_no_operator_and_functions_that_return_nothing():
    for key in (3, ("MLP", -1), ("MLP", 16, 2), None):
        with pytest.raises(TypeError, match="a key of a device's table is an operator"):
            Device.from_table({key: 1.0})
    with pytest.raises(ValueError, match=r"TokenEmbedding\(.*at embed of 'table': got None"):
        Device.from_table(lambda op, width, length: None).estimate(looped())
    with pytest.raises(ValueError, match="phase of a device's numbers"):
        Device.from_table(TABLE).objective(phase="sleep")


def counted(architecture, phase, length):
    formula = {"prefill": "macs", "decode": "decode_macs"}
    return sum(run.times * getattr(run.operator, formula[run.phase])(run.width, run.length)
               for run in runs_of(architecture, phase, length))


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_runs_are_those_that_the_costs_count(name):
    """Forming W + B A of a corrected loop is the loop's own work, no operator's."""
    architecture = ALL[name].sample(0)
    length = architecture.default_length if name in GRID else 24
    cost = architecture.cost(length)
    corrected = any(recursion.lora_rank for recursion in [architecture.plan.recursion, *(
        getattr(op, "recursion", None) or bp.Once() for _, op in architecture.modules)])
    for phase, wanted in (("prefill", cost.macs), ("decode", cost.decode_macs)):
        found = counted(architecture, phase, length)
        assert found < wanted if corrected else found == pytest.approx(wanted, rel=1e-12)


def test_a_profile_is_a_device_whose_guesses_are_counted():
    def row(operator, length, median):
        return {"operator": operator, "width": 16, "batch": 1, "length": length, "phase": "prefill", "dtype": "float32",
                "mode": "eager", "threads": 1, "session": 0, "median_ms": median, "low_ms": median / 2,
                "high_ms": 2 * median, "repeats": 9}

    rows = [row(name, n, n / 64) for name in ("Attention(heads=2)", "SwiGLU(ratio=2)", "RMSNorm()") for n in (64, 128)]
    rows[-1]["noisy"] = "the interval is wide"
    profile = Profile({"kind": "cpu", "name": "Slow 1"}, [{"started": "2026"}], rows)
    device = Device.from_profile(profile)
    found = device.estimate(looped(1), length=128)
    assert found.value == pytest.approx(2 * 9) and found.low == pytest.approx(9) and found.high == pytest.approx(36)
    assert "extrapolated" not in found.note and found.note.endswith("5 measured while the machine was not quiet")
    assert device.objective().device == "Slow 1"
    assert "9 of them extrapolated" in device.estimate(looped(1), length=256).note
    with pytest.raises(ValueError, match="with phase prefill only"):
        device.estimate(looped(1), phase="decode")
    less = Profile(profile.device, profile.sessions, rows[:2])
    with pytest.raises(ValueError, match="unknown operator"):
        Device.from_profile(less).estimate(looped(1), length=64)
    assert Device.from_profile(less, default=0.0).estimate(looped(1), length=64).value == 2.0
