"""Layers that drop tokens by an interpreter: against the paper's formula token by token, and the reward that trains them."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.measured import measured_macs
from bodyplan.evaluators.tasks.base import Batch
from example_macros import space
from reduced_models import BLOCK, GRID, PIXELS, images, model


class Classes:
    """What the loss asks of a task."""

    def loss_of(self, logits, batch):
        return torch.nn.functional.cross_entropy(logits, batch.targets)


GROUPS = bp.DynamicDrop((BLOCK, bp.DynamicDrop((BLOCK,), heads=2)), heads=4)
BODY = (bp.ClassToken(), BLOCK, GROUPS, bp.Reduce(bp.FirstTokens()))


def informative(interpreter, x):
    """The mean over heads of sigmoid(query(x) . key(policy)) of one token."""
    q, k = interpreter.query(x), interpreter.key(interpreter.policy[0])
    size = len(q) // interpreter.heads
    each = [float(q[h * size:(h + 1) * size] @ k[h * size:(h + 1) * size]) for h in range(interpreter.heads)]
    return sum(1 / (1 + math.exp(-s)) for s in each) / len(each)


def dropping(module, x):
    """One sequence [N, D] through a group, token by token."""
    places = [0, *(n for n in range(1, len(x)) if informative(module.interpreter, x[n]) > 0.5)]
    y = x[places]
    for layer in module.layers:
        y = dropping(layer, y) if hasattr(layer, "interpreter") else layer(y[None])[0]
    out = x.clone()
    out[places] = y
    return out


@pytest.mark.parametrize("kind", [PIXELS, GRID], ids=["sequence", "grid"])
@torch.no_grad()
def test_it_drops_what_the_interpreters_of_the_paper_drop(kind):
    net = model(BODY, **kind).double()
    x = net.layers[1](net.layers[0](net.embed(images(4).double())))
    out, group = net.layers[2](x), net.layers[2]
    kept = (group.interpreter(x.flatten(1, -2)[:, 1:]) > 0.5).sum(1)
    assert len(set(kept.tolist())) > 1 and kept.min() > 0 and kept.max() < 25, "sequences keep numbers of their own"
    if kind is PIXELS:
        for row, wanted in zip(x, out, strict=True):
            torch.testing.assert_close(dropping(group, row), wanted)
    else:
        assert out.shape == x.shape == (4, 26, 1, 16)
    alone = torch.cat([group(row) for row in x.split(1)])
    assert torch.equal(alone, out)


def opened(net, bias):
    """Interpreters that say the same of every token."""
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "policy"):
                module.query.weight.zero_()
                module.key.weight.zero_()
                module.query.bias.fill_(bias)
                module.key.bias.fill_(1.0)
    return net


@torch.no_grad()
def test_where_every_token_is_informative_it_is_the_plain_layers_bit_for_bit():
    net, plain = opened(model(BODY), 1.0), model((bp.ClassToken(), BLOCK, BLOCK, BLOCK, bp.Reduce(bp.FirstTokens())))
    moved = {"layers.2.layers.0.": "layers.2.", "layers.2.layers.1.layers.0.": "layers.3."}
    held = {}
    for name, parameter in net.named_parameters():
        start = next((s for s in sorted(moved, key=len, reverse=True) if name.startswith(s)), "")
        held[moved.get(start, "") + name[len(start):]] = parameter
    plain.load_state_dict({name: held[name] for name in plain.state_dict()})
    for image in images(3).split(1):
        assert torch.equal(net(image), plain(image))


@torch.no_grad()
def test_where_none_is_the_class_token_alone_goes_on():
    net = opened(model(BODY), -1.0)
    x = net.layers[1](net.layers[0](net.embed(images())))
    y = net.layers[2](x)
    assert torch.equal(y[:, 1:], x[:, 1:]) and not torch.equal(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, :1], net.layers[2](x[:, :1]))


def test_compute_is_measured_by_what_ran():
    few, all_ = opened(model(BODY), -1.0), opened(model(BODY), 1.0)
    found = [measured_macs(net, [images(1)]) for net in (few, all_)]
    assert found[0].macs < 0.6 * found[1].macs and found[0].expected == found[1].expected
    whole = (*BODY[:2], bp.DynamicDrop((BLOCK, bp.DynamicDrop((BLOCK,), heads=2, share=1.0)), share=1.0), BODY[3])
    exact = measured_macs(opened(model(whole), 1.0), [images(1)])
    assert exact.macs == pytest.approx(exact.expected, rel=1e-9)


def batch(count=6):
    return Batch(images(count), torch.arange(count) % 5)


@pytest.mark.parametrize("group", [0, 1])
def test_the_policy_gets_the_gradient_of_reinforce_and_the_layers_that_of_the_task(group):
    net, given = model(BODY), batch()
    groups = [m for m in net.modules() if hasattr(m, "interpreter")]
    drawn, outputs = [], []
    groups[group].interpreter.register_forward_hook(lambda _, __, score: outputs.append(score))
    result = bp.interpreter_loss(net, Classes(), given, group=group, wrong=0.3, generator=torch.Generator().manual_seed(3))
    scores = outputs[len(given.inputs):]                                   # behind the most likely decisions
    again, generator = [], torch.Generator().manual_seed(3)
    for score in scores:
        drawn.append(torch.rand(score.shape, generator=generator) < score)

    def decisions(score):
        again.append(score)
        return drawn[(len(again) - 1) % len(drawn)]

    for number, module in enumerate(groups):
        module.decided = decisions if number == group else (lambda s: s > 0.5) if number < group else (
            lambda s: torch.ones_like(s, dtype=torch.bool))
    sampled = net(given.inputs)
    chance = torch.stack([torch.where(u, s, 1 - s).log().sum() for u, s in zip(drawn, scores, strict=True)])
    kept = torch.stack([u.float().mean() for u in drawn])
    groups[group].decided = lambda s: s > 0.5
    likely = net(given.inputs)
    most = torch.stack([(s > 0.5).float().mean() for s in outputs[:len(given.inputs)]])
    reward, baseline = (torch.where(logits.argmax(-1) == given.targets, 1 - share**2, -0.3)
                        for logits, share in ((sampled, kept), (likely, most)))
    wanted = torch.nn.functional.cross_entropy(sampled, given.targets) - ((reward - baseline) * chance).mean()
    torch.testing.assert_close(result.loss, wanted)
    assert result.reward == pytest.approx(float(reward.mean())) and result.kept == pytest.approx(float(kept.mean()))
    policy = groups[group].interpreter.policy
    torch.testing.assert_close(torch.autograd.grad(result.loss, policy, retain_graph=True)[0],
                               torch.autograd.grad(wanted, policy)[0], rtol=1e-4, atol=1e-6)
    other = groups[1 - group].interpreter.policy
    assert torch.autograd.grad(result.loss, other, allow_unused=True)[0] is None, "decisions of other groups are fixed"


def test_a_trained_interpreter_keeps_fewer_tokens_and_no_worse_answers():
    torch.manual_seed(0)
    net = model((bp.ClassToken(), BLOCK, bp.DynamicDrop((BLOCK,), heads=2), bp.Reduce(bp.FirstTokens())))
    given = Batch(images(8), torch.arange(8) % 5)
    optimizer, generator = torch.optim.Adam(net.parameters(), 0.01), torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        result = bp.interpreter_loss(net, Classes(), given, generator=generator)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        found.append(result)
    first, last = ([sum(r[i] for r in part) / 10 for i in (1, 2)] for part in (found[:10], found[-10:]))
    assert last[0] > first[0] + 0.2 and last[1] < first[1]


def test_what_cannot_be_trained_or_built_is_refused():
    given = batch()
    with pytest.raises(ValueError, match="this is about DynamicDrop in a model: got none"):
        bp.interpreter_loss(model(BLOCK), Classes(), given)
    with pytest.raises(ValueError, match="group is one of 2 DynamicDrop in the model, from 0: got 2"):
        bp.interpreter_loss(model(BODY), Classes(), given, group=2)
    with pytest.raises(ValueError, match=r"one class per input: got targets of shape \(6, 2\)"):
        bp.interpreter_loss(model(BODY), Classes(), Batch(given.inputs, torch.zeros(6, 2)))
    for wrong, message in (({"protected": 0}, "put ClassToken"), ({"share": 0.0}, "share is a share"),
                           ({"heads": 3}, "heads must divide width")):
        with pytest.raises(ValueError, match=message):
            space((bp.DynamicDrop((BLOCK,), **wrong),), **PIXELS)
