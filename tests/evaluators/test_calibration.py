"""Statistics after calibration are those of the training data, as this module sees it."""

from types import SimpleNamespace

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.calibration import calibrate, has_statistics
from bodyplan.evaluators.evaluation import Evaluator
from bodyplan.evaluators.tasks.language import TextTask
from bodyplan.evaluators.training import train
from bodyplan.space.operators.batchnorm import BatchNorm
from torch import nn


class ChannelsLast(nn.Module):
    """Batch normalisation with channels last, its statistics parameters, as operators have it."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.running_mean = nn.Parameter(torch.full((width,), 9.0), requires_grad=False)
        self.running_var = nn.Parameter(torch.full((width,), 9.0), requires_grad=False)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        return nn.functional.batch_norm(flat, self.running_mean.detach(), self.running_var.detach(), self.weight,
                                        self.bias, self.training, 0.1).view(x.shape)


class Net(nn.Module):
    """Two normalisations, of which the forward pass meets the second one first, and the other one `times` times."""

    def __init__(self, norm=ChannelsLast, times=1):
        super().__init__()
        torch.manual_seed(0)
        self.times = times
        self.later, self.table, self.first = norm(6), nn.Embedding(256, 6), norm(6)
        self.mix, self.out, self.drop = nn.Linear(6, 6), nn.Linear(6, 256), nn.Dropout(0.5)

    def forward(self, ids):
        x = self.first(self.table(ids) * 3 + 1)
        for _ in range(self.times):
            x = self.later(self.drop(torch.relu(self.mix(x))))
        return self.out(x)


@pytest.fixture
def task():
    return TextTask(None, 16, 4, 2)


def seen(net, layer, batches):
    """Everything a layer sees in evaluation mode, one row per entry."""
    rows = []
    handle = layer.register_forward_pre_hook(lambda _, given: rows.append(given[0].detach().reshape(-1, 6)))
    with torch.no_grad():
        for batch in batches:
            net(batch.inputs)
    handle.remove()
    return torch.cat(rows).double()


def assert_are_those_of(layer, rows):
    torch.testing.assert_close(layer.running_mean.detach().double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.detach().double(), rows.var(0), rtol=1e-5, atol=1e-6)


def test_exact_calibration_leaves_every_layer_with_the_statistics_of_what_it_then_sees(task):
    net = calibrate(Net(), task, batches=5, exact=True)
    batches = [task.batch("train", step, 0) for step in range(5)]
    for layer in (net.first, net.later):
        assert_are_those_of(layer, seen(net, layer, batches))


@pytest.mark.parametrize("times", [1, 2])
def test_one_pass_measures_the_first_layer_exactly_and_the_others_nearly(task, times):
    net, exact = (calibrate(Net(times=times), task, batches=8, exact=exact) for exact in (False, True))
    assert_are_those_of(net.first, seen(net, net.first, [task.batch("train", step, 0) for step in range(8)]))
    torch.testing.assert_close(net.later.running_var, exact.later.running_var, rtol=0.3, atol=0.05)
    assert not net.training and not net.later.training and not net.drop.training


def test_torchs_own_normalisations_have_their_channels_second(task):
    class Second(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = nn.BatchNorm1d(width)

        def forward(self, x):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    ours, theirs = calibrate(Net(Second), task, batches=1), Net(Second).train()
    theirs.first.norm.momentum = 1.0
    with torch.no_grad():
        theirs(task.batch("train", 0, 0).inputs)
    torch.testing.assert_close(ours.first.norm.running_mean, theirs.first.norm.running_mean)
    torch.testing.assert_close(ours.first.norm.running_var, theirs.first.norm.running_var)


def test_it_is_deterministic_and_changes_statistics_alone(task):
    first, second, other = (calibrate(Net(), task, batches=3, seed=seed) for seed in (0, 0, 1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert torch.equal(tensor, Net().state_dict()[name]) == ("running" not in name)
    assert not torch.equal(first.first.running_mean, other.first.running_mean)
    assert all(p.grad is None for p in first.parameters()) and not first.first._forward_pre_hooks


def test_calibration_helps_where_the_statistics_are_of_something_else(task):
    net = Net()
    with torch.no_grad():
        net.out.weight.zero_()
        net.out.bias.copy_(torch.log(torch.bincount(task.batch("train", 0, 0).targets.flatten(), minlength=256) + 1e-3))
        net.out.weight.normal_(0, 1)
    before = task.score(net)
    assert task.score(calibrate(net, task)) < 0.9 * before


def test_what_has_no_statistics_is_left_alone(task):
    plain = nn.Sequential(nn.Embedding(256, 6), nn.Linear(6, 256))
    assert has_statistics(Net()) and not has_statistics(plain)
    assert not has_statistics(nn.BatchNorm1d(3, track_running_stats=False))

    class NoData(TextTask):
        def batch(self, *arguments):
            raise AssertionError("nothing to read")

    assert calibrate(plain, NoData(None, 16, 4, 2)) is plain and not plain.training


@pytest.fixture(scope="module")
def net():
    """A supernet with batch normalisation, trained a little."""
    block = bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2)), channel=bp.MLP(ratio=bp.choice(1, 2)), norm=BatchNorm())
    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16), head=bp.LanguageHead(tied=True),
                     body=bp.repeat(block, times=bp.integer(1, 2)), norm=BatchNorm())
    net = bp.Supernet(space)
    train(net, TextTask(None, 16, 8, 2), steps=30, lr=0.01, threads=1)
    return net


def test_training_moves_the_statistics_of_a_supernet_and_no_gradient_does(net):
    fresh = bp.Supernet(net.space)
    held = [address for address, tensor in net.tensors.items() if not tensor.requires_grad]
    assert held and all("running_" in address for address in held)
    assert any(not torch.equal(net.tensors[address], fresh.tensors[address]) for address in held)


def test_a_checkpoint_keeps_the_statistics(net, task, tmp_path):
    def stop(done, steps, loss):
        if done == 3:
            raise KeyboardInterrupt

    straight, resumed = bp.Supernet(net.space), bp.Supernet(net.space)
    train(straight, task, steps=5)
    with pytest.raises(KeyboardInterrupt):
        train(bp.Supernet(net.space), task, steps=5, checkpoint=tmp_path / "c", progress=stop)
    train(resumed, task, steps=5, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(tensor, resumed.tensors[address]) for address, tensor in straight.tensors.items())


def test_an_evaluator_scores_the_calibrated_subnet(net):
    task, subnet = TextTask(None, 16, 8, 2), net.space.sample(3)
    evaluator = Evaluator(net.space, task, ["loss"], weights=net.state_numpy())
    evaluator.setup()
    job = SimpleNamespace(kind="score", genome=subnet.genome, seed=0, fidelity={})
    raw, calibrated = net.extract(subnet).eval(), calibrate(net.extract(subnet), task)
    assert evaluator.run(job)["objectives"]["loss"] == task.score(calibrated) != task.score(raw)


def test_no_batches_is_answered(task):
    with pytest.raises(ValueError, match="at least one training batch"):
        calibrate(Net(), task, batches=0)
