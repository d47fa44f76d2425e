"""A sweep end to end with objectives over architectures: budget, order, duplicates, failures, views."""

import math
import random
import re
import sys
import time

import bodyplan as bp
import optuna
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.executors.inline import InlineExecutor
from bodyplan.search.seeds import evaluation_seed

STRATEGIES = ["random", "evolution", "local_search", "optuna:tpe", "optuna:nsga2"]


def test_a_sweep_evaluates_its_budget_of_distinct_architectures(sweep_in):
    sweep = sweep_in("run", trials=40)
    front = sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        trials = journal.trials()
    assert [trial.number for trial in trials] == list(range(40))
    assert len({trial.hash for trial in trials}) == 40
    assert {trial.state for trial in trials} == {"complete"}
    assert front.knee().architecture.cost().parameters == front.knee().values["parameters"]
    assert 0 < front.hypervolume() == sweep.front().hypervolume()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replaying_a_journal_reproduces_every_ask(strategy, sweep_in, trials_of):
    """`resume` with a larger budget replays first, which checks every ask, and then goes on."""
    first = sweep_in("short", trials=15, strategy=strategy)
    first.run()
    extended = sweep_in("short", trials=35, strategy=strategy)
    extended.run(resume=True)
    whole = sweep_in("long", trials=35, strategy=strategy)
    whole.run()
    assert trials_of(extended.directory)[:15] == trials_of(whole.directory)[:15]
    assert len(trials_of(extended.directory)) == 35


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_strategy_that_proposes_something_else_is_noticed(strategy, sweep_in):
    sweep = sweep_in("run", trials=8, strategy=strategy)
    sweep.run()
    with bp.Journal.open(sweep.directory, write=True) as journal:
        genome = sweep.space.sample_genome(random.Random(99))
        journal.append("ask", {"n": 1, "genomes": [genome.to_json()], "numbers": [8], "new": [True],
                               "hashes": ["0" * 64], "labels": [{}]})
    with pytest.raises(BodyplanError, match="proposes the same again when its journal is replayed"):
        sweep_in("run", trials=20, strategy=strategy).run(resume=True)


def test_in_ask_order_the_trials_do_not_depend_on_which_candidate_finishes_first(sweep_in, trials_of):
    class Shuffled(InlineExecutor):
        """Four workers that finish in random order."""

        capacity = 4

        def next(self, timeout=None):
            random.shuffle(self._jobs)
            return super().next(timeout)

    plain = sweep_in("plain", in_flight=4, order="ask")
    shuffled = sweep_in("shuffled", in_flight=4, order="ask", executor=Shuffled())
    plain.run(), shuffled.run()
    assert trials_of(plain.directory) == trials_of(shuffled.directory)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_in_ask_order_the_trials_are_the_same_on_every_executor(executor, sweep_in, trials_of, pseudo_loss):
    if executor == "ray":  # which has a cloudpickle of its own
        pytest.importorskip("ray.cloudpickle").register_pickle_by_value(sys.modules[pseudo_loss.__module__])
    here = sweep_in("inline", in_flight=4, order="ask", trials=12)
    there = sweep_in(executor, in_flight=4, order="ask", trials=12, executor=executor, workers=2)
    here.run(), there.run()
    assert trials_of(here.directory) == trials_of(there.directory)


def test_completion_order_is_replayed_too(sweep_in, trials_of):
    sweep = sweep_in("run", order="completion", in_flight=5, trials=25)
    sweep.run()
    before = trials_of(sweep.directory)
    sweep_in("run", order="completion", in_flight=5, trials=40).run(resume=True)
    assert trials_of(sweep.directory)[:25] == before and len(trials_of(sweep.directory)) == 40


def test_no_graph_equal_candidate_is_evaluated_twice(sweep_in):
    """Two branches that write one network differently: the second is answered from the first."""
    calls = []
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16), head=bp.LanguageHead(tied=True),
                     body=bp.choice(bp.Block(channel=bp.MLP(ratio=bp.choice(1, 2))),
                                    bp.Block(channel=bp.MLP(ratio=bp.choice(2, 3)))))
    counted = bp.Objective("calls", evaluate=lambda architecture: calls.append(architecture.hash) or 1.0)
    sweep = sweep_in("run", space=space, objectives=[counted, "parameters"], trials=50, reference=[2, 1e6],
                     strategy="random")
    sweep.run()
    assert space.size() == 8 and len(calls) == len(set(calls)) == 6
    with bp.Journal.open(sweep.directory) as journal:
        asks = [event.body for event in journal.events("ask") if event.body["genomes"]]
        told = [index for event in journal.events("tell") for index in event.body["asks"]]
    assert sum(body["new"][0] for body in asks) == 6 and len(asks) == 8 and sorted(told) == list(range(8))


def test_the_space_may_hold_fewer_architectures_than_the_budget(sweep_in):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16), head=bp.LanguageHead(tied=True),
                     body=bp.Block(channel=bp.MLP(ratio=1)))
    for strategy in STRATEGIES:
        front = sweep_in(strategy.replace(":", "-"), space=space, trials=10, strategy=strategy).run()
        assert len(front.candidates) == 2


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_value_that_is_not_finite_is_a_failed_trial_with_that_reason(value, reason, sweep_in):
    broken = bp.Objective("loss", evaluate=lambda a: value if a.plan.width == 8 else 1.0, reference=2.0)
    front = sweep_in("run", objectives=[broken, "parameters"], reference=None).run()
    failed = [point for point in front.candidates if point.state == "failed"]
    assert failed and all(reason in point.failure["reason"] for point in failed)
    assert {point.architecture.plan.width for point in failed} == {8}
    assert all(point.values["loss"] == 1.0 for point in front)


def test_a_candidate_that_raises_is_a_failed_trial_with_its_traceback_and_the_sweep_goes_on(sweep_in):
    def picky(architecture):
        if architecture.plan.width == 16:
            raise RuntimeError("no sixteens today")
        return 1.0

    front = sweep_in("run", objectives=[bp.Objective("x", evaluate=picky), "parameters"]).run()
    failed = [point for point in front.candidates if point.state == "failed"]
    assert failed and all("no sixteens today" in point.failure["reason"] for point in failed)
    assert "picky" in failed[0].failure["traceback"] and len(front.candidates) == 30 and len(front) > 0


def test_when_no_probe_works_the_sweep_says_why_before_it_searches(sweep_in):
    sweep = sweep_in("run", objectives=[bp.Objective("x", evaluate=lambda a: 1 / 0)], reference=None)
    with pytest.raises(BodyplanError, match="none of 5 probes could be evaluated.*ZeroDivisionError"):
        sweep.run()


def test_the_reference_point_is_fixed_before_the_search_and_probes_are_not_evaluated_again(sweep_in):
    calls = []
    counted = bp.Objective("x", evaluate=lambda a: calls.append(a.hash) or float(a.plan.width))
    sweep = sweep_in("run", objectives=[counted, "parameters"], reference={"parameters": 5e5})
    sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        kinds = [event.kind for event in journal.events()]
        point = journal.last("reference").body["point"]
    assert kinds.index("reference") < kinds.index("ask")
    assert point == [pytest.approx(35.2), 5e5]
    assert len(calls) == len(set(calls))


def test_bounds_keep_candidates_off_the_front_and_steer_the_search(sweep_in):
    depth = bp.Objective("depth", goal="max", evaluate=lambda a: len(a.plan.layers)) >= 2
    front = sweep_in("run", objectives=[depth, "parameters"], reference=[0, 1e5], trials=40).run()
    assert len(front) and all(point.values["depth"] >= 2 for point in front)
    assert any(point.values["depth"] < 2 for point in front.candidates)


def test_initial_architectures_come_first_and_are_marked(sweep_in, space):
    today = space.sample(7)
    front = sweep_in("run", space=space, initial=[today, space.largest()], trials=12).run()
    first = sorted(front.candidates, key=lambda point: point.number)
    assert first[0].hash == today.hash and [point.initial for point in first] == [True, True] + [False] * 10


def test_the_hours_budget_stops_asking(sweep_in):
    slow = bp.Objective("x", evaluate=lambda a: time.sleep(0.01) or 1.0, reference=2.0)
    front = sweep_in("run", objectives=[slow], reference=None, trials=None, hours=0.3 / 3600).run()
    assert 1 <= len(front.candidates) < 100


def test_the_twin_has_the_same_budget_and_shares_evaluations(sweep_in):
    calls = []
    counted = bp.Objective("x", evaluate=lambda a: calls.append(a.hash) or float(a.plan.width), reference=99.0)
    sweep = sweep_in("run", objectives=[counted, "parameters"], trials=30, twin=True, strategy="random")
    sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        search, twin = journal.trials("search"), journal.trials("twin")
        cached = [event for event in journal.events("result", stream="twin") if event.body.get("cached")]
        body = journal.last("front").body
    assert len(search) == len(twin) == 30
    assert {t.number for t in search}.isdisjoint(t.number for t in twin)
    assert len(calls) == len(set(calls)) and len(cached) == len({t.hash for t in search} & {t.hash for t in twin})
    assert body["twin_hypervolume"] > 0


def test_seeds_depend_on_what_is_evaluated_alone(space):
    genome, other = space.sample(0).genome, space.sample(1).genome
    seed = evaluation_seed(0, genome, {"steps": 5})
    assert seed == evaluation_seed(0, genome, {"steps": 5}) and 0 <= seed < 2**63
    assert len({seed, evaluation_seed(1, genome, {"steps": 5}), evaluation_seed(0, other, {"steps": 5}),
                evaluation_seed(0, genome, {"steps": 6}), evaluation_seed(0, genome, {"steps": 5}, 1)}) == 5


def test_trials_are_mirrored_into_an_optuna_storage_once(sweep_in, tmp_path):
    def picky(architecture):
        return math.nan if architecture.plan.width == 8 else 1.0

    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    objectives = [bp.Objective("x", evaluate=picky), "parameters"]
    sweep_in("run", objectives=objectives, trials=8, optuna_storage=storage).run()
    sweep_in("run", objectives=objectives, trials=12, optuna_storage=storage).run(resume=True)
    study = optuna.load_study(study_name="run", storage=storage)
    assert sorted(trial.user_attrs["number"] for trial in study.trials) == list(range(12))
    states = {trial.state.name for trial in study.trials}
    assert states == {"COMPLETE", "FAIL"} and study.metric_names == ["x", "parameters"]


def test_a_dry_run_writes_nothing_and_tells_size_samples_time_and_memory(sweep_in):
    sweep = sweep_in("run")
    text = str(sweep.dry_run())
    assert not sweep.directory.exists()
    assert f"{sweep.space.size():,} genomes" in text and len(re.findall(r"parameters +width", text)) == 10
    assert "in all: about" in text and "GB of memory" in text


def test_without_a_terminal_progress_is_plain_lines(sweep_in, capfd, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    sweep_in("run", quiet=False).run()
    written = capfd.readouterr().err
    assert "search: 30/30, front " in written and "hypervolume" in written and "\x1b" not in written
    assert "Pareto front" in written and "loss (nats) ↓" in written and "next: bodyplan show" in written


def test_quiet_says_nothing(sweep_in, capfd):
    sweep_in("run").run()
    assert capfd.readouterr() == ("", "")
