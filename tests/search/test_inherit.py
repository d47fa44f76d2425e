"""Sweeps whose candidates start from the weights of the nearest one before them."""

import bodyplan as bp
import pytest
import torch
from bodyplan.errors import BodyplanError
from bodyplan.search.kinship import nearest
from bodyplan.search.loop import Loop
from bodyplan.search.resume import Ledger
from bodyplan.search.strategies.evolution import Evolution
from safetensors.torch import load_file

TASK = bp.tasks.text(length=16, batch=4, held_out_batches=2)


def inheriting(directory, **more):
    block = bp.Block(mixer=bp.choice(bp.Attention(heads=4, kv_heads=bp.choice(1, 2, 4), head_dim=4),
                                     bp.Liger(heads=4, head_dim=4, window=8)),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.Identity()))
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=16, head=bp.LanguageHead(tied=True),
                     body=bp.repeat(block, times=bp.integer(1, 3)))
    given = {"objectives": ["loss", "parameters"], "trials": 8, "steps": 3, "strategy": Evolution(population=4),
             "executor": "inline", "tracking": False, "quiet": True, "reference": [10.0, 1e5], "inherit": True, "task": TASK,
             **more}
    return bp.Sweep(space, directory=directory, **given)


def asks(directory):
    with bp.Journal.open(directory) as journal:
        return [event.body for event in journal.events(stream="search") if event.kind == "ask"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    sweep = inheriting(tmp_path_factory.mktemp("inherit") / "sweep")
    sweep.run()
    return sweep


def test_every_candidate_names_the_nearest_of_those_told_before_it(finished):
    with bp.Journal.open(finished.directory) as journal:
        ledger, seen = Ledger("search", finished.objectives), 0
        for event in journal.events(stream="search"):
            if event.kind == "ask":
                for genome, parent, new in zip(event.body["genomes"], event.body["parents"], event.body["new"], strict=True):
                    genome = bp.Genome.from_json(genome)
                    told = [p for i, p in enumerate(ledger.proposals) if p.new and i not in ledger.untold]
                    apart = {p.number: finished.space.distance(p.genome, genome) for p in told}
                    assert parent == (min(sorted(apart), key=apart.get) if apart else None)
                    assert parent == nearest(finished.space, genome, ledger)
                    seen += new and parent is not None
            ledger.apply(event)
        trials = journal.trials("search")
    assert seen >= 4 and sum("parent" in trial.extra for trial in trials) == seen
    assert all(trial.state == "complete" for trial in trials)


def test_a_candidate_is_its_parents_weights_trained_on(finished):
    with bp.Journal.open(finished.directory) as journal:
        trials = {trial.number: trial for trial in journal.trials("search")}
    child = next(trial for trial in trials.values() if "parent" in trial.extra)
    parent = trials[child.extra["parent"]]
    folder = finished.weights_folder
    model = finished.space.architecture(parent.genome).build()
    model.load_state_dict(load_file(folder / f"{parent.hash}.safetensors"))
    ours = bp.inherited(model, finished.space.architecture(child.genome), seed=child.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bp.train(ours, TASK, finished.steps, seed=child.seed)
    torch.set_num_threads(before)
    kept = load_file(folder / f"{child.hash}.safetensors")
    assert all(torch.equal(p, kept[name]) for name, p in ours.named_parameters())


def test_the_test_split_is_measured_with_the_weights_that_were_kept(finished):
    from bodyplan.evaluators.evaluation import evaluate_model

    with bp.Journal.open(finished.directory) as journal:
        measured = {event.body["number"]: event.body["values"]["loss"] for event in journal.events("test")}
    for point in finished.front():
        found = evaluate_model(TASK, point.module())
        assert found["test"] == pytest.approx(measured[point.number], abs=1e-6)
        assert found["validation"] == pytest.approx(point.values["loss"], abs=1e-6)


def test_an_inheriting_sweep_resumes_to_the_trials_of_one_that_was_never_stopped(finished, tmp_path, trials_of, monkeypatch):
    directory, finish, results = tmp_path / "stopped", Loop._finish, []

    def stopping(loop, proposal, body):
        finish(loop, proposal, body)
        results.append(body)
        if len(results) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        inheriting(directory).run()
    inheriting(directory).run(resume=True)
    assert trials_of(directory) == trials_of(finished.directory)
    assert [body["parents"] for body in asks(directory)] == [body["parents"] for body in asks(finished.directory)]


def test_a_point_whose_weights_are_gone_is_not_trained_from_its_seed_instead(tmp_path):
    sweep = inheriting(tmp_path / "sweep", trials=6)
    front = sweep.run()
    for file in sweep.weights_folder.glob("*"):
        file.unlink()
    with bp.Journal.open(sweep.directory) as journal:
        with_parent = {trial.number for trial in journal.trials("search") if "parent" in trial.extra}
    found = [point for point in front if point.number in with_parent]
    assert found
    with pytest.raises(BodyplanError, match="began with the weights of trial"):
        found[0].module()


@pytest.mark.parametrize("more", [{"supernet": True}, {"task": None, "objectives": ["parameters"]}])
def test_only_candidates_that_train_one_by_one_inherit(tmp_path, more):
    with pytest.raises(ValueError, match="trained one by one"):
        inheriting(tmp_path / "sweep", **more)


def test_other_sweeps_ask_without_parents(sweep_in):
    sweep = sweep_in("plain", trials=3)
    sweep.run()
    assert all("parents" not in body for body in asks(sweep.directory))
