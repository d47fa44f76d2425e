"""Branches that train side by side and become one operator."""

import math

import bodyplan as bp
import pytest
import torch
from toy_models import IDS, built, train_on


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(config, width, trained=0.0):
    """The module in float64 with weights of its own, after some training steps."""
    module = config.build(width).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * drawn(*parameter.shape, seed=number))
        module.trained.fill_(trained)
    return module


@pytest.mark.parametrize("trained", [0.0, 5.0, 8.0, 10.0, 14.0, 30.0])
def test_branches_move_to_their_mean_where_nonlinearities_begin(trained):
    config, x = bp.Branched(bp.MLP(ratio=1, activation="relu"), branches=3, steps=8, warmup=6), drawn(2, 5, 8)
    module, share = made(config, 8, trained), min(max((trained - 6) / 8, 0), 1)
    ups = [branch.up.weight.detach() for branch in module.branches]
    mean, wanted = (ups[0] + ups[1] + ups[2]) / 3, torch.zeros_like(x)
    for up, branch in zip(ups, module.branches, strict=True):
        for b in range(2):
            for t in range(5):
                hidden = [max(float(((1 - share) * up[f] + share * mean[f]) @ x[b, t]), 0.0) for f in range(len(up))]
                wanted[b, t] += branch.down.weight.detach() @ torch.tensor(hidden, dtype=torch.float64)
    torch.testing.assert_close(module(x), wanted)


def test_one_branch_is_the_operator():
    config, x = bp.Branched(bp.Attention(heads=2), branches=1), drawn(2, 7, 8)
    module = made(config, 8, 3.0)
    assert torch.equal(module(x), module.branches[0](x))


def test_training_steps_count_and_gradients_reach_every_branch():
    module = made(bp.Branched(bp.SwiGLU(ratio=1), branches=2, steps=4), 8).train()
    for _ in range(3):
        module(drawn(2, 3, 8)).square().sum().backward()
    assert module.trained.item() == 3 and module.trained.grad is None
    assert all(p.grad.abs().max() > 0 for name, p in module.named_parameters() if name != "trained")
    module.eval()(drawn(2, 3, 8))
    assert module.trained.item() == 3


OPERATORS = {"attention": bp.Attention(heads=2, kv_heads=1, qk_norm=True),
             "vision": bp.Attention(heads=2, bidirectional=True), "mlp": bp.MLP(ratio=2),
             "swiglu": bp.SwiGLU(ratio=1), "recurrent": bp.GatedDeltaNet(heads=2)}


@pytest.mark.parametrize("name", OPERATORS)
def test_joined_branches_of_a_trained_network_fold_into_one_operator(name):
    op = OPERATORS[name]
    branched = bp.Branched(op, branches=3, steps=4, warmup=2)
    field = "channel" if op.kind == "channel" else "mixer"
    model = train_on(built(*[bp.Block(**{field: branched})] * 2), 8)
    ours = bp.folded(model)
    plain = built(*[bp.Block(**{field: op})] * 2).architecture
    assert ours.architecture == plain and bp.difference(model, ours, IDS) < 1e-6
    assert bp.difference(model.double(), bp.folded(model), IDS) < 1e-12
    for layer, old in zip(ours.layers, model.layers, strict=True):
        branches = getattr(old, field).op.branches
        last = "down" if field == "channel" else "out"
        total = sum(getattr(branch, last).weight for branch in branches)
        torch.testing.assert_close(getattr(getattr(layer, field).op, last).weight, total, check_dtype=False)


@pytest.mark.parametrize("name", ["attention", "swiglu", "recurrent"])
def test_branches_decode_with_a_state_each(name):
    config, x = bp.Branched(OPERATORS[name], branches=2, steps=4), drawn(2, 6, 8)
    module = made(config, 8, 2.0)
    state, outputs = module.init_state(2, torch.float64), []
    for part in (x[:, :3], x[:, 3:4], x[:, 4:]):
        y, state = module.step(part, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), module(x))


def test_branches_start_as_large_as_one():
    for count in (1, 4):
        declared = bp.Branched(bp.MLP(ratio=1), branches=count).axes(16)
        assert declared["branches.0.down.weight"].init.gain == pytest.approx(1 / math.sqrt(count))
        assert declared["branches.0.up.weight"].init.gain == 1


def test_branches_that_are_not_joined_are_not_folded():
    model = train_on(built(bp.Block(channel=bp.Branched(bp.MLP(), steps=8))), 3)
    with pytest.raises(ValueError, match="branches are folded when they are joined at layers.0.channel.op: got 3 of 8"):
        bp.folded(model)


def test_folded_branches_are_exported(tmp_path):
    branched = [bp.Branched(op, steps=2) for op in (bp.Attention(heads=2), bp.MLP())]
    model = train_on(built(bp.Block(*branched)), 3)
    for name, each in (("whole", model), ("folded", bp.folded(model))):
        source = (bp.export(each, tmp_path / name) / "model.py").read_text()
        assert ("lerp" in source) == (name == "whole")


@pytest.mark.parametrize(("config", "error", "words"), [
    (bp.Branched(bp.RMSNorm()), TypeError, "op is a mixer or a channel mixer"),
    (bp.Branched(bp.CrossAttention(heads=2)), ValueError, "Branched holds an operator that works alone"),
    (bp.Branched(bp.Pooling()), ValueError, "a last matrix called out or down"),
    (bp.Branched(bp.MobileConv(expand=1)), ValueError, "a last matrix called out or down"),
    (bp.Branched(branches=0), ValueError, "branches must be a whole number"),
    (bp.Branched(steps=0), ValueError, "steps must be a whole number")])
def test_what_has_no_branches_is_refused(config, error, words):
    with pytest.raises(error, match=words):
        config.check(8, "here")
