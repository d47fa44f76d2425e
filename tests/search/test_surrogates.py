"""Predictors inside a sweep: what is measured, what is not, and that the front is measured in the end."""

import hashlib

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.evaluators.evaluation import Evaluator
from bodyplan.evaluators.objectives import Estimate
from bodyplan.evaluators.predictors.deciding import place
from bodyplan.search import stages
from bodyplan.search.executors.base import Job
from bodyplan.search.front import Criterion
from bodyplan.search.results import Results
from bodyplan.search.surrogates import FIRST, Surrogates

TWO = (Criterion("loss"), Criterion("ms", bound=10.0))


def pseudo_loss(architecture):
    """Better with size, with some noise that depends on the architecture alone."""
    noise = int(hashlib.sha256(architecture.hash.encode()).hexdigest()[:6], 16) / 16**6
    return 10 / (1 + architecture.cost().parameters / 4000) + noise


def milliseconds(architecture, module=None):
    """A measurement that costs explain: exact, so that whoever errs is the predictor."""
    return Estimate(exact := 0.2 + architecture.cost().macs / 2e5, 0.99 * exact, 1.01 * exact, "measured")


def latency(function=milliseconds):
    return bp.Objective("ms", unit="ms", evaluate=function, needs="model", device="cpu", reference=50.0)


def objectives(bound=None, function=milliseconds):
    ms = latency(function)
    return [bp.Objective("loss", evaluate=pseudo_loss), ms if bound is None else ms <= bound]


def trials(sweep):
    with bp.Journal.open(sweep.directory) as journal:
        return journal.trials("search")


@pytest.fixture
def wide():
    block = bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(1, 2), window=bp.choice(None, 8)), bp.Identity()),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.MLP(ratio=bp.choice(1, 2))))
    return bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16, 24, 32, 48),
                    body=bp.repeat(block, times=bp.integer(1, 4)), head=bp.LanguageHead(tied=True))


@pytest.fixture
def predicted(sweep_in, wide):
    """A sweep of seconds with a predictor; `bound` in milliseconds."""
    def make(name="predicted", bound=None, function=milliseconds, **more):
        given = {"objectives": objectives(bound, function), "trials": 60, "executor": "inline", "strategy": "random",
                 "predictor": "additive", "reference": [20.0, 50.0], "space": wide, **more}
        return sweep_in(name, **given)
    return make


@pytest.mark.parametrize(("loss", "guess", "told"), [
    (3.0, (5.0, 4.5, 5.5), "off"),       # (2, 4) is better in both, even against 4.5
    (3.0, (4.0, 3.5, 4.5), "open"),      # worse than (2, 4) or better than it
    (1.0, (3.0, 2.0, 9.0), "on"),        # nobody has so little loss
    (1.0, (9.0, 8.0, 11.0), "open"),     # perhaps beyond the bound of 10
    (1.0, (12.0, 10.5, 13.0), "off"),    # certainly beyond it
])
def test_a_place_is_known_where_both_ends_of_a_guess_agree(loss, guess, told):
    assert place({"loss": loss}, {"ms": guess}, TWO, [({"loss": 2.0, "ms": 4.0}, {})]) == told


def test_the_front_s_own_guesses_count_at_the_end_that_decides_least():
    front = [({"loss": 2.0, "ms": 4.0}, {"ms": (4.0, 3.0, 5.0)})]
    assert place({"loss": 3.0}, {"ms": (4.6, 4.5, 4.7)}, TWO, front) == "open"
    assert place({"loss": 3.0}, {"ms": (5.6, 5.5, 5.7)}, TWO, front) == "off"
    assert place({"loss": 3.0}, {"ms": (2.6, 2.5, 2.7)}, TWO, front) == "on"


def test_a_goal_of_more_is_turned_around():
    more = (Criterion("quality", goal="max", bound=1.0), Criterion("ms"))
    front = [({"quality": 5.0, "ms": 4.0}, {})]
    assert place({"ms": 6.0}, {"quality": (4.0, 3.0, 4.9)}, more, front) == "off"
    assert place({"ms": 6.0}, {"quality": (5.0, 4.9, 5.5)}, more, front) == "open"
    assert place({"ms": 1.0}, {"quality": (0.5, 0.2, 0.9)}, more, front) == "off"
    assert place({"ms": 1.0}, {"quality": (4.0, 3.0, 4.9)}, more, front) == "on"


def test_fewer_are_measured_and_the_front_is_the_same(predicted):
    """Random search proposes the same candidates with and without; an exact latency leaves the front as it was."""
    without, with_one = predicted("plain", predictor=None), predicted()
    plain, found = without.run(), with_one.run()
    assert [(p.hash, p.values) for p in found] == [(p.hash, p.values) for p in plain]
    done = trials(with_one)
    measured = [trial for trial in done if not trial.predicted]
    assert len(done) == 60 and FIRST <= len(measured) < 55
    assert not any(point.predicted for point in found)
    assert all("predicted" in trial.extra["notes"]["ms"] for trial in done if trial.predicted)


def test_what_was_predicted_off_the_front_is_off_it(predicted):
    sweep = predicted()
    front = sweep.run()
    for trial in trials(sweep):
        if trial.predicted:
            exact = milliseconds(sweep.space.architecture(trial.genome)).value
            assert any(p.values["loss"] <= trial.values["loss"] and p.values["ms"] <= exact for p in front)


def test_candidates_beyond_a_bound_are_not_tried_and_count_for_no_trial(predicted):
    sweep = predicted(bound=1.5)
    front = sweep.run()
    done = trials(sweep)
    left_out = [trial for trial in done if trial.is_screened]
    assert left_out and len(done) - len(left_out) == 60
    exact = [milliseconds(sweep.space.architecture(trial.genome)).value for trial in left_out]
    assert sum(ms > 1.5 for ms in exact) >= 0.9 * len(exact)
    assert "is predicted to be" in left_out[0].failure["reason"] and left_out[0].seconds == 0
    assert all(point.values["ms"] <= 1.5 for point in front)
    results = Results.read(sweep.directory)
    assert not results.failed and len(results.screened) == len(left_out)
    assert f"{len(left_out)} not tried" in results.predictions[0]


def test_a_bound_that_nothing_keeps_ends_the_search(predicted):
    sweep = predicted(bound=0.001, reference=[20.0, 50.0])
    assert len(sweep.run()) == 0
    assert len([trial for trial in trials(sweep) if not trial.is_screened]) < 60


def test_a_resumed_sweep_has_learned_what_its_journal_holds(predicted):
    predicted(trials=30).run()
    more = predicted(trials=60)
    more.run(resume=True)
    later = [trial for trial in trials(more) if trial.number >= 30]
    assert any(trial.predicted for trial in later[:8])
    with bp.Journal.open(more.directory) as journal:
        again = Surrogates(more.space, more.objectives, more.predictor, journal)
        measured = sum(not trial.predicted for trial in journal.trials())
    assert len(again._rows["ms"]) == measured


def test_the_same_search_in_one_go_and_in_two_gives_the_same_trials(predicted, trials_of):
    first = predicted("one", order="ask", in_flight=1, strategy="evolution")
    first.run()
    predicted("two", order="ask", in_flight=1, strategy="evolution", trials=35).run()
    second = predicted("two", order="ask", in_flight=1, strategy="evolution")
    second.run(resume=True)
    assert [t[2] for t in trials_of(first.directory)[:35]] == [t[2] for t in trials_of(second.directory)[:35]]


def test_front_members_by_prediction_are_measured_at_the_end_and_keep_what_was_guessed(predicted):
    sweep = predicted()
    sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        late = [event.body for event in journal.events("measured")]
        by_number = {trial.number: trial for trial in journal.trials("search")}
    assert late, "some candidates are surely on the front when they come"
    for body in late:
        trial = by_number[body["number"]]
        assert trial.values["ms"] == body["values"]["ms"] and not trial.predicted
        assert len(trial.extra["guesses"]["ms"]) == 3


def test_a_front_member_that_cannot_be_measured_stops_the_sweep_and_a_resume_goes_on(predicted, monkeypatch):
    broken = {"now": False}

    def breaks(architecture, module=None):
        if broken["now"]:
            raise RuntimeError("the device is gone")
        return milliseconds(architecture)

    measure = stages.measure_front
    monkeypatch.setattr(stages, "measure_front", lambda session: (broken.update(now=True), measure(session)))
    sweep = predicted(function=breaks)
    with pytest.raises(BodyplanError, match="could not be .RuntimeError: the device is gone"):
        sweep.run()
    monkeypatch.undo()
    broken["now"] = False
    assert not any(point.predicted for point in sweep.run(resume=True))


def test_constant_measurements_teach_nothing_and_that_is_said(predicted, capsys):
    sweep = predicted(function=lambda architecture, module: 2.0, quiet=False)
    sweep.run()
    assert not any(trial.predicted for trial in trials(sweep))
    assert "ms was measured throughout, nothing could be learned from it: all" in "".join(capsys.readouterr())


def test_intervals_widen_for_misses_and_narrow_again(predicted, wide):
    sweep = predicted("heed")
    sweep.run()
    with bp.Journal.open(sweep.directory) as journal:
        surrogates = Surrogates(sweep.space, sweep.objectives, sweep.predictor, journal)
    surrogates.scale["ms"] = 1.0
    for _ in range(5):
        surrogates._heed("ms", 9.0, [1.0, 0.9, 1.1])
    widened = surrogates.scale["ms"]
    assert widened > 2
    genome = wide.sample(0).genome
    value, low, high = surrogates.guesses(genome)["ms"]
    surrogates.scale["ms"] = 1.0
    _, near_low, near_high = surrogates.guesses(genome)["ms"]
    assert low < near_low < value < near_high < high
    surrogates.scale["ms"] = widened
    for _ in range(100):
        surrogates._heed("ms", 1.0, [1.0, 0.9, 1.1])
    assert surrogates.scale["ms"] == 1.0


def test_the_evaluator_measures_only_what_is_open(space):
    calls = []
    counted = latency(lambda architecture, module: calls.append(1) or 4.0)
    evaluator = Evaluator(space, None, [bp.Objective("loss", evaluate=lambda architecture: 3.0), counted])
    front = [[{"loss": 2.0, "ms": 4.0}, {}]]

    def run(guess):
        fidelity = {"surrogate": {"guesses": {"ms": guess}, "front": front}}
        return evaluator.run(Job(0, "score", space.sample(0).genome, 0, fidelity))

    clear = run([5.0, 4.5, 5.5])
    assert not calls and clear["objectives"] == {"loss": 3.0, "ms": 5.0} and clear["intervals"]["ms"] == [4.5, 5.5]
    assert clear["extra"]["predicted"] == ["ms"]
    tested = run([4.0, 3.5, 4.5])
    assert len(calls) == 1 and tested["objectives"]["ms"] == 4.0
    assert tested["extra"]["guesses"] == {"ms": [4.0, 3.5, 4.5]} and "predicted" not in tested["extra"]
    late = evaluator.run(Job(0, "measure", space.sample(0).genome, 0, {"measure": ["ms"]}))
    assert late["objectives"] == {"ms": 4.0} and len(calls) == 2


@pytest.mark.parametrize(("given", "error", "word"), [
    ({"objectives": ["parameters"], "predictor": "gaussian", "reference": [1e6]}, ValueError, "has parameters; add one such"),
    ({"predictor": 3}, TypeError, "a name such as .gaussian., a Predictor or None: got 3"),
    ({"predictor": "gausian"}, ValueError, "did you mean 'gaussian'")])
def test_a_predictor_that_cannot_be_is_refused_before_any_work(predicted, given, error, word):
    with pytest.raises(error, match=word):
        predicted(**given)


@pytest.mark.long
def test_workers_and_shared_weights_measure_the_front_too(tmp_path):
    """A real latency, weights from a supernet, two processes."""
    task = bp.tasks.text(length=16, batch=2)
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16, 32),
                     body=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=2), bp.Identity()),
                                             channel=bp.MLP(ratio=bp.choice(1, 2, 4))), times=bp.integer(1, 4)),
                     head=bp.LanguageHead(tied=True))
    sweep = bp.Sweep(space, task, ["loss", bp.latency(phase="prefill", length=16, budget_ms=2)], trials=40, supernet=True,
                     supernet_steps=3, retrain=0, fidelity_sample=0, workers=2, predictor=bp.Predictor("additive"),
                     tracking=False, quiet=True, directory=tmp_path / "real")
    front = sweep.run()
    assert len(front) and not any(point.predicted for point in front)
    assert all(point.values["prefill_latency"] > 0 for point in front)
    assert sweep.front().values.shape == front.values.shape
