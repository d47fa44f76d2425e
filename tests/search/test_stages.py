"""A sweep that trains: supernet, search, twin, retraining, fidelity, test split, export; each done once."""

import bodyplan as bp
import pytest
import torch
from bodyplan.errors import BodyplanError

SUPERNET_STEPS = 6


@pytest.fixture
def small(tmp_path):
    """A supernet sweep of seconds, everything in this process."""
    torch.set_num_threads(1)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                     body=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(1, 2)), bp.Identity()),
                                             channel=bp.MLP(ratio=bp.choice(1, 2))), times=bp.integer(1, 2)),
                     head=bp.LanguageHead(tied=True))
    task = bp.tasks.text(length=16, batch=2)
    given = {"trials": 10, "supernet": True, "supernet_steps": SUPERNET_STEPS, "steps": 2, "retrain": 2,
             "fidelity_sample": 4, "executor": "inline", "tracking": False, "quiet": True}
    return lambda name="run", **more: bp.Sweep(space, task, ["loss", "parameters"], directory=tmp_path / name,
                                               **{**given, **more})


def kinds(sweep):
    with bp.Journal.open(sweep.directory) as journal:
        return [event.kind for event in journal.events()]


def test_a_supernet_sweep_goes_from_weights_to_an_exported_knee(small):
    sweep = small(twin=True)
    front = sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        supernet, fidelity = journal.last("supernet").body, journal.last("fidelity").body
        standalone = {event.body["number"]: event.body for event in journal.events("standalone")}
        exported, final = journal.last("export").body, journal.last("front").body
    assert supernet["steps"] == SUPERNET_STEPS and len(supernet["losses"]) == SUPERNET_STEPS
    assert fidelity["count"] == 4 and fidelity["low"] <= fidelity["tau"] <= fidelity["high"]
    assert set(fidelity["proxies"]) == {"parameters", "macs"} and fidelity["steps"] == 2
    assert [standalone[n]["values"]["loss"] for n in fidelity["numbers"]] == fidelity["standalone"]
    assert {point.number for point in front.best(2)} <= set(standalone)
    assert {body["fidelity"]["steps"] for body in standalone.values()} == {2}
    assert all(point.test["loss"] > 0 for point in front)
    assert exported["number"] == final["knee"] == front.knee().number
    assert (sweep.directory / "exported").is_dir() and final["twin_hypervolume"] > 0
    order = kinds(sweep)
    assert order.index("supernet") < order.index("reference") < order.index("ask") < order.index("twin")
    assert not (sweep.directory / "supernet.checkpoint.safetensors").exists()


def test_the_test_split_is_measured_with_the_weights_a_candidate_was_judged_by(small):
    sweep = small(supernet=False, trials=4)
    for point in sweep.run():
        assert point.test["loss"] == pytest.approx(sweep.task.score(point.module(), "test"), rel=1e-6)


def test_a_point_gives_the_weights_it_was_judged_by_and_those_of_its_retraining(small):
    sweep = small()
    front = sweep.run()
    best = front.best(1)[0]
    assert sweep.task.score(best.module()) == pytest.approx(best.values["loss"], rel=1e-5)
    assert sweep.task.score(best.module("standalone")) == pytest.approx(best.standalone["loss"], rel=1e-5)
    untrained = next(point for point in front.candidates if not point.standalone)
    with pytest.raises(BodyplanError, match="has no weights of its own"):
        untrained.module("standalone")
    (sweep.directory / "supernet.safetensors").unlink()
    with pytest.raises(BodyplanError, match="takes its weights from the supernet"):
        sweep.front().knee().module()


def test_a_sweep_stopped_in_any_stage_goes_on_to_the_same_answer(small, monkeypatch):
    """Ctrl-C after the first result of every stage in turn; nothing is done twice."""
    whole = small("whole", twin=True)
    expected = whole.run()
    sweep = small(twin=True)
    append = bp.Journal.append
    for stage in ("supernet", "probe", "reference", "result", "twin", "standalone", "fidelity", "test", "front"):
        def interrupting(journal, kind, body, stream="search", stage=stage):
            number = append(journal, kind, body, stream)
            if kind == stage:
                raise KeyboardInterrupt
            return number

        monkeypatch.setattr(bp.Journal, "append", interrupting)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(resume=sweep.directory.exists())
        monkeypatch.setattr(bp.Journal, "append", append)
    found = sweep.run(resume=True)
    assert [(point.hash, point.values, point.test) for point in found] == [
        (point.hash, point.values, point.test) for point in expected]
    counted = [kind for kind in kinds(sweep) if kind != "session"]
    assert sorted(counted) == sorted(kind for kind in kinds(whole) if kind != "session")


def test_supernet_training_resumes_from_its_checkpoint(small, monkeypatch):
    from bodyplan.search.progress import Reporter

    whole, sweep = small("whole"), small()
    whole.run()
    advance = Reporter.advance

    def stops_at_three(self, done, note=""):
        if done == 3 and "nats" in note:
            raise KeyboardInterrupt
        advance(self, done, note)

    monkeypatch.setattr(Reporter, "advance", stops_at_three)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    assert (sweep.directory / "supernet.checkpoint.safetensors").exists()
    monkeypatch.setattr(Reporter, "advance", advance)
    sweep.run(resume=True)
    read = [bp.Supernet.load(made.space, made.directory / "supernet.safetensors").state_numpy()
            for made in (whole, sweep)]
    assert all((read[0][name] == read[1][name]).all() for name in read[0])


def test_candidates_trained_alone_are_judged_by_their_own_training(small):
    sweep = small(supernet=False, trials=3)
    front = sweep.run()
    knee = front.knee()
    assert knee.extra["parameters"] == knee.values["parameters"]
    assert sweep.task.score(knee.module()) == pytest.approx(knee.values["loss"], rel=1e-5)
    assert "fidelity" not in kinds(sweep) and "export" in kinds(sweep)


def test_a_dry_run_of_a_supernet_sweep_times_a_step_and_writes_nothing(small):
    sweep = small()
    forecast = sweep.dry_run()
    assert forecast.seconds_per_step > 0 and forecast.seconds > 0 and not forecast.failures
    assert not sweep.directory.exists()


def test_an_objective_that_needs_a_model_but_no_task_gets_an_untrained_one(tmp_path, small):
    def count(architecture, module):
        return len(list(module.parameters()))

    counted = bp.Objective("tensors", needs="model", evaluate=count)
    sweep = bp.Sweep(small().space, objectives=[counted, "parameters"], trials=3, executor="inline", tracking=False,
                     quiet=True, directory=tmp_path / "run")
    assert all(point.values["tensors"] == len(list(point.module().parameters())) for point in sweep.run())
