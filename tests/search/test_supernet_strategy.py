"""A sweep takes a training strategy by name or as an object, and its journal says which one it was."""

import bodyplan as bp
import pytest
from bodyplan.evaluators.strategies.sandwich import Sandwich
from bodyplan.search.definition import definition


def make(directory, **more):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16), body=bp.Block(bp.Attention(heads=1)),
                     head=bp.LanguageHead(tied=True))
    return bp.Sweep(space, bp.tasks.text(length=16, batch=2), ["loss"], trials=2, supernet=True, tracking=False, quiet=True,
                    directory=directory, executor="inline", supernet_steps=2, retrain=0, fidelity_sample=0, **more)


@pytest.mark.parametrize(("strategy", "label"), [
    ("fair", "fair"), (Sandwich(), "sandwich"), (Sandwich(random=2, distill=False), "sandwich(random=2, distill=False)")])
def test_the_definition_tells_the_strategy_with_its_settings(tmp_path, strategy, label):
    assert definition(make(tmp_path / "sweep", supernet_strategy=strategy))["supernet_strategy"] == label


def test_a_sweep_trains_by_the_object_and_is_resumed_with_the_same_settings_only(tmp_path):
    make(tmp_path / "sweep", supernet_strategy=Sandwich(random=2)).run()
    with bp.Journal.open(tmp_path / "sweep") as journal:
        body = journal.last("supernet").body
        assert body["strategy"] == "sandwich(random=2)" and body["tokens"] == 2 * 4 * 32
    assert len(make(tmp_path / "sweep", supernet_strategy=Sandwich(random=2)).run(resume=True)) >= 1
    with pytest.raises(bp.BodyplanError, match="started with another supernet_strategy"):
        make(tmp_path / "sweep", supernet_strategy=Sandwich(random=3)).run(resume=True)


def test_an_unknown_strategy_is_answered_when_the_sweep_is_made(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'sandwich'"):
        make(tmp_path / "sweep", supernet_strategy="sandwhich")
    with pytest.raises(TypeError, match="a training strategy is a name, an object"):
        make(tmp_path / "sweep", supernet_strategy=7)
