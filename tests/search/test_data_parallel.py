"""Ray Train starts the workers; what they train together is what one trains alone."""

import os
import signal
import sys

import cloudpickle
import pytest
import torch
import training_ranks
from bodyplan.errors import BodyplanError
from bodyplan.evaluators.checkpoint import read_checkpoint
from bodyplan.evaluators.tasks.language import TextTask
from bodyplan.evaluators.training import train
from bodyplan.search.data_parallel import train_supernet
from bodyplan.search.executors.cluster import private_ray

ray = pytest.importorskip("ray")


@pytest.fixture
def task():
    return TextTask(None, 16, 4, 2)


def make_net(seed=0):
    return training_ranks.bp.Supernet(training_ranks.make_space(), seed=seed)


def _check_stopping(task, path):
    """What progress raises comes out as it is, after the checkpoint was written; SIGINT is as before."""
    handler = signal.getsignal(signal.SIGINT)

    def enough(done, steps, loss):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(make_net(), task, 10**6, workers=2, retries=3, checkpoint=path, progress=enough)
    assert len(read_checkpoint(path)[1]["record"]["losses"]) >= 3
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(BodyplanError, match="they need 40 CPU, 2 there"):
        train_supernet(make_net(), task, 1, workers=40)


@pytest.mark.slow
def test_two_workers_of_ray_train_give_the_parameters_of_one(task, tmp_path):
    for pickler in (ray.cloudpickle, cloudpickle):
        pickler.register_pickle_by_value(sys.modules["training_ranks"])
    options = dict(strategy=training_ranks.two_subnets, lr=0.1, optimizer="sgd", checkpoint=tmp_path / "checkpoint")
    alone, together = make_net(), make_net()
    expected = train(alone, task, 1, **{**options, "checkpoint": None})
    before = dict(os.environ)
    heard = []
    with private_ray(2):                                # one start for all calls
        record = train_supernet(together, task, 1, workers=2, progress=lambda *news: heard.append(news), **options)
        _check_stopping(task, tmp_path / "stopped")
        with pytest.raises(ValueError, match="with the settings it was started with.*steps 1, now 2"):
            train_supernet(make_net(), task, 2, workers=2, **options, resume=True)
    assert dict(os.environ, PYTHONBREAKPOINT="") == {**before, "PYTHONBREAKPOINT": ""}      # Ray sets that one
    assert not ray.is_initialized()
    for (name, ours), theirs in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert heard == [(1, 1, pytest.approx(record.losses[0]))]
    assert record.losses == pytest.approx(expected.losses, rel=1e-5) and record.tokens == expected.tokens
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), make_net().parameters(), strict=True))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        train_supernet(together, task, 1, checkpoint=tmp_path / "checkpoint")


@pytest.mark.parametrize(("options", "words"), [
    (dict(workers=0), "workers must be"), (dict(retries=-1), "retries must be"), (dict(device="cpu"), "no option here"),
    (dict(strategy="sandwhich"), "did you mean 'sandwich'"), (dict(address="somewhere"), "a Ray address is host:port")])
def test_bad_arguments_are_answered_before_ray_is_started(task, options, words):
    with pytest.raises(ValueError, match=words):
        train_supernet(make_net(), task, 1, **options)
    assert not ray.is_initialized()


def test_an_address_where_nothing_listens_is_answered_at_once(task):
    with pytest.raises(BodyplanError, match="no Ray cluster answers at 127.0.0.1:1"):
        train_supernet(make_net(), task, 1, address="127.0.0.1:1")
