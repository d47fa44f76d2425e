"""Bad input is answered before any work: what rule, what was got, what to do. Nothing is left behind."""

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.executors.inline import InlineExecutor

X = bp.Objective("x", evaluate=lambda architecture: 1.0)


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"trials": 0}, ValueError, "trials must be a whole number of at least 1: got 0"),
    ({"trials": 2.5}, ValueError, "trials must be a whole number of at least 1: got 2.5"),
    ({"trials": True}, ValueError, "trials must be a whole number"),
    ({"trials": None}, ValueError, "got neither trials nor hours; give trials=200 or hours=2"),
    ({"hours": 0}, ValueError, "hours must be a number above 0: got 0"),
    ({"hours": "2"}, ValueError, "hours must be a number above 0: got '2'"),
    ({"seed": -1}, ValueError, "seed must be a whole number of at least 0: got -1"),
    ({"strategy": "evolutoin"}, ValueError, "did you mean 'evolution'"),
    ({"strategy": 3}, TypeError, "a name or an object with start, ask and tell: got 3"),
    ({"objectives": []}, ValueError, "at least one objective: got none"),
    ({"objectives": "loss"}, TypeError, r"write \['loss'\]"),
    ({"objectives": ["paramters"]}, ValueError, "did you mean 'parameters'"),
    ({"objectives": ["parameters", "parameters"]}, ValueError, "'parameters' stands twice"),
    ({"objectives": [len]}, TypeError, "an objective is a name or an Objective"),
    ({"objectives": ["loss", "parameters"]}, ValueError, r"give task=, for example tasks.text\(\)"),
    ({"executor": "locl"}, ValueError, "did you mean 'local'"),
    ({"executor": 3}, TypeError, "executor is a name or an Executor: got 3"),
    ({"executor": "inline", "timeout": 5}, ValueError, "use executor='local'"),
    ({"executor": "inline", "workers": 2}, ValueError, "use executor='local'"),
    ({"executor": "local", "address": "127.0.0.1:6379"}, ValueError, "use executor='ray'"),
    ({"executor": "local", "memory_gb": -1}, ValueError, "memory_gb must be a number above 0"),
    ({"executor": InlineExecutor(), "timeout": 5}, ValueError, "give it to its constructor"),
    ({"workers": 0, "executor": "local"}, ValueError, "workers must be a whole number of at least 1"),
    ({"order": "random"}, ValueError, "order must be one of ask, completion: got 'random'"),
    ({"in_flight": 0}, ValueError, "in_flight must be a whole number of at least 1"),
    ({"supernet": True}, ValueError, "a supernet is trained on a task: this sweep has none"),
    ({"retrain": -1}, ValueError, "retrain must be a whole number of at least 0"),
    ({"fidelity_sample": -1}, ValueError, "fidelity_sample must be"),
    ({"steps": 0}, ValueError, "steps must be a whole number of at least 1"),
    ({"tracking": 3}, TypeError, "tracking is True, False or a tracking URI"),
    ({"tracking": "http://127.0.0.1:9"}, BodyplanError, "does not answer"),
    ({"reference": [1.0]}, ValueError, "one number per objective: got 1 for 2"),
    ({"reference": {"los": 1.0}}, ValueError, "did you mean 'loss'"),
    ({"reference": [float("nan"), 1]}, ValueError, "reference is a number at objective 'loss'"),
    ({"initial": 3}, TypeError, "initial is a list of architectures"),
    ({"initial": [3]}, TypeError, r"architectures and genomes at initial\[0\]: got int"),
    ({"device": "cuda"}, ValueError, "no objective of this sweep needs a model; leave it out"),
    ({"dtype": "bfloat16"}, ValueError, "in a sweep without any; leave it out"),
    ({"dtype": "int8"}, ValueError, "'float32', 'bfloat16' or 'float16': got 'int8'"),
    ({"supernet_workers": 0}, ValueError, "supernet_workers must be a whole number of at least 1"),
    ({"supernet_workers": 2}, ValueError, "in a sweep without; give supernet=True"),
    ({"task": "text"}, TypeError, "task is a Task or None: got 'text'"),
])
def test_a_bad_argument_is_answered_by_the_constructor(change, error, text, sweep_in, tmp_path):
    with pytest.raises(error, match=text):
        sweep_in("run", **change)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_searches_a_space(sweep_in):
    with pytest.raises(TypeError, match="a sweep searches a Space: got str"):
        sweep_in("run", space="attention")


def test_the_space_must_fit_the_task(sweep_in):
    with pytest.raises(ValueError):
        sweep_in("run", task=bp.tasks.text(length=32, batch=2), objectives=["loss"], reference=None)


def test_initial_architectures_are_of_this_space(sweep_in, space):
    other = bp.Space(**{**space.definition, "width": bp.choice(8, 64)})
    with pytest.raises(ValueError, match=r"of the sweep's space at initial\[1\]"):
        sweep_in("run", space=space, initial=[space.sample(0), other.sample(0)])
    with pytest.raises(ValueError, match=r"\(at initial\[0\]\)"):
        sweep_in("run", space=space, initial=[bp.Genome({"width": 77})])


def test_a_twin_of_candidates_that_train_alone_is_refused():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=8, body=bp.Block(channel=bp.MLP(ratio=1)),
                     head=bp.LanguageHead(tied=True))
    with pytest.raises(ValueError, match="every candidate is trained alone; give supernet=True"):
        bp.Sweep(space, bp.tasks.text(length=16, batch=2), ["loss"], trials=3, twin=True)


def test_a_directory_with_other_files_is_refused_and_untouched(sweep_in, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files; choose another one"):
        sweep_in("run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must not be a file"):
        sweep_in("file")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_an_unreachable_optuna_storage_is_answered_before_anything_is_written(sweep_in, tmp_path):
    with pytest.raises(BodyplanError, match="the Optuna storage must be reachable"):
        sweep_in("run", optuna_storage="sqlite:////nowhere/at/all/optuna.db").run()
    assert list(tmp_path.iterdir()) == []


def test_the_default_directory_is_new_and_under_runs(tmp_path, monkeypatch, space):
    monkeypatch.chdir(tmp_path)
    sweep = bp.Sweep(space, objectives=[X], trials=2, tracking=False, quiet=True)
    assert sweep.directory.parent == tmp_path / "runs" and not sweep.directory.exists()
    sweep.run()
    assert bp.Sweep(space, objectives=[X], trials=2, tracking=False).directory != sweep.directory


def test_defaults_depend_on_whether_something_needs_a_model(space):
    plain = bp.Sweep(space, objectives=[X], trials=2, tracking=False)
    model = bp.Sweep(space, objectives=[bp.Objective("y", evaluate=len, needs="model")], trials=2, tracking=False)
    on_ray = bp.Sweep(space, objectives=[X], trials=2, tracking=False, executor="ray", workers=2)
    assert (plain.executor, plain.order, plain.in_flight) == ("inline", "ask", 4)
    assert (model.executor, model.order) == ("local", "ask")
    assert (on_ray.order, on_ray.in_flight) == ("completion", 3)
