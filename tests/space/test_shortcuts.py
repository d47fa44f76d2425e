"""Streams of two rates, and shortcuts around layers: each tied to the plain stack, and to loops over layers and tokens."""

import bodyplan as bp
import pytest
import torch
from example_macros import shaken, space

torch.set_num_threads(1)
FIRST = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2))
SECOND = bp.Block(mixer=bp.ShortConv(kernel=3), channel=bp.SwiGLU(ratio=1))
THREE = (FIRST, SECOND, FIRST)
NONE = bp.Block()
LIGHT = bp.Block(channel=bp.MLP(ratio=0.5))


def ids(batch=2, tokens=13):
    return torch.randint(32, (batch, tokens), generator=torch.Generator().manual_seed(0))


def built(body, like=None):
    """The module in evaluation mode and double precision; parameters that `like` has under the same name are its."""
    model = shaken(space(body, width=16).sample(0).build(seed=1)).eval().double()
    if like is not None:
        own = dict(model.named_parameters())
        held = like.state_dict().items()
        model.load_state_dict({n: p for n, p in held if n in own and p.shape == own[n].shape}, strict=False)
    return model


def put(model, **values):
    with torch.no_grad():
        for end, value in values.items():
            found = [p for n, p in model.named_parameters() if n.endswith(end)]
            assert found, end
            for parameter in found:
                parameter.copy_(torch.as_tensor(value).expand(parameter.shape))
    return model


def random(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streamed(model, given):
    state, steps = model.init_state(len(given), dtype=torch.float64), []
    for token in given.split(1, dim=1):
        logits, state = model.step(token, state)
        steps.append(logits)
    return torch.cat(steps, 1)


# -- two rates ---------------------------------------------------------------------------------------------------------

def two_rates(leave=None, like=None, exits=(1, 2), fast=(LIGHT, SECOND), **more):
    return built((bp.MultiRate(THREE, exits=exits, fast=fast, leave=leave, **more),), like)


def both_streams(layers, x, exits):
    """The slower stream before and after every layer, and the faster one after every adapter."""
    slow, fast, p = [x], [], x
    for i, layer in enumerate(layers.layers):
        slow.append(layer(slow[-1]))
        if i < len(layers.fast):
            p = layers.fast[i](p) + layers.gate[i] * (slow[i + 1] - slow[i])
            fast.append(p)
            p = slow[-1] if i + 1 in exits else p
    return slow, fast


def test_MultiRate_at_full_depth_is_the_plain_stack():
    model = two_rates()
    assert torch.equal(model(ids()), built((bp.Looped(THREE, bp.Once()),), model)(ids()))
    stays = put(two_rates("token", model), halt=0.0, halt_bias=-1.0)
    torch.testing.assert_close(stays(ids()), model(ids()))


def test_MultiRate_with_blocks_that_add_nothing_is_an_early_exit():
    fast = (bp.Block(), bp.Block())
    for leave in (0, 1, "token"):
        model = put(two_rates(leave, fast=fast), gate=1.0)
        early = built((bp.EarlyExit(THREE, exits=(1, 2), leave=leave),), model)
        torch.testing.assert_close(model(ids()), early(ids()))


@pytest.mark.parametrize("exits", [(1, 2), (2,)])
def test_MultiRate_leaves_with_the_faster_stream(exits):
    model = two_rates(exits=exits)
    layers, x = model.layers[0], model.embed(ids())
    slow, fast = both_streams(layers, x, exits)
    for number, depth in enumerate(exits):
        leaving = two_rates(number, model, exits)
        torch.testing.assert_close(leaving.layers[0](x), fast[depth - 1])
        torch.testing.assert_close(streamed(leaving, ids()), leaving(ids()))
        torch.testing.assert_close(bp.exit_logits(model, ids())[number], leaving(ids()))
    torch.testing.assert_close(bp.exit_logits(model, ids())[-1], model(ids()))
    torch.testing.assert_close(layers(x), slow[-1])


def test_MultiRate_lets_each_token_leave_by_the_score_of_its_faster_stream():
    model = put(two_rates("token"), halt=random(2, 16), halt_bias=0.0)
    layers, x = model.layers[0], model.embed(ids(4))
    first = layers.layers[0](x)
    p = layers.fast[0](x) + layers.gate[0] * (first - x)
    early = (p @ layers.halt[0]) > 0
    second = torch.where(early[..., None], first, layers.layers[1](first))
    q = layers.fast[1](first) + layers.gate[1] * (second - first)
    later = ~early & ((q @ layers.halt[1]) > 0)
    assert early.any() and later.any() and not (early | later).all()
    third = layers.layers[2](second)
    expected = torch.where(early[..., None], p, torch.where(later[..., None], q, third))
    torch.testing.assert_close(layers(x), expected)
    torch.testing.assert_close(streamed(model, ids(4)), model(ids(4)))


def test_MultiRate_learns_what_the_slower_stream_will_be():
    model = two_rates(exits=(2,), rate=1.5)
    layers, x = model.layers[0], model.embed(ids())
    slow, fast = both_streams(layers, x, (2,))
    logits, loss = bp.rate_loss(model, ids())
    wanted = ((fast[0] - slow[2]).square().mean() + (fast[1] - slow[3]).square().mean()) / 2
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logits, model(ids()))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".fast." in name or name.endswith("gate"))
    optimiser, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02), []
    for _ in range(20):
        loss = bp.rate_loss(model, ids())[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and torch.equal(model(ids()), logits)


def test_MultiRate_counts_what_runs():
    costs = [space((bp.MultiRate(THREE, exits=(1, 2), fast=(LIGHT, LIGHT), leave=leave),), width=16).sample(0).cost(13).macs
             for leave in (0, 1, None, "token")]
    assert costs[0] < costs[1] < costs[3] and costs[2] < costs[3]


# -- shortcuts ---------------------------------------------------------------------------------------------------------

def shortcuts(like=None, adapters=(LIGHT, NONE, SECOND), **options):
    return built((bp.Shortcuts(THREE, adapters=adapters, **options),), like)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_Shortcuts_are_their_formula_token_by_token(reuse, hard):
    model = put(shortcuts(reuse=reuse, hard=hard), depth=random(3, 16), depth_bias=0.1)
    if reuse:
        put(model, steps=random(3, 16, seed=4), steps_bias=0.2)
    layers, x = model.layers[0], model.embed(ids())

    def gate(x, weight, bias):
        p = 1 / (1 + torch.exp(-(x * weight).sum(-1, keepdim=True) - bias))
        return (p > 0.5).to(p.dtype) if hard else p

    wanted = x
    for i in range(3):
        y, z = layers.layers[i](wanted), layers.adapters[i](wanted)
        g = gate(wanted, layers.depth[i], layers.depth_bias[i])
        rows = []
        mixed = g * y + (1 - g) * z
        for t in range(x.shape[1]):
            if reuse:
                s = gate(wanted[:, t], layers.steps[i], layers.steps_bias[i])
                rows.append(s * mixed[:, t] + (1 - s) * mixed[:, max(t - 1, 0)])
            else:
                rows.append(mixed[:, t])
        wanted = torch.stack(rows, 1)
    torch.testing.assert_close(layers(x), wanted)
    torch.testing.assert_close(streamed(model, ids()), model(ids()))


def test_Shortcuts_that_nobody_takes_are_the_plain_stack():
    model = put(shortcuts(hard=True), depth=0.0, depth_bias=1.0, steps=0.0, steps_bias=1.0)
    assert torch.equal(model(ids()), built((bp.Looped(THREE, bp.Once()),), model)(ids()))
    gone = put(shortcuts(model, hard=True), depth=0.0, depth_bias=-1.0)
    through = built((bp.Looped((LIGHT, SECOND), bp.Once()),))
    names = {"layers.0.layers.0": "layers.0.adapters.0", "layers.0.layers.1": "layers.0.adapters.2"}
    held = gone.state_dict()
    through.load_state_dict({name: held[next((name.replace(a, b) for a, b in names.items() if name.startswith(a)), name)]
                             for name in through.state_dict()})
    torch.testing.assert_close(gone(ids()), through(ids()))


def test_Shortcuts_to_the_step_before_make_all_tokens_one_late():
    model = put(shortcuts(hard=True, adapters=(bp.Block(),) * 3), depth=0.0, depth_bias=-1.0, steps=0.0, steps_bias=-1.0)
    layers, x = model.layers[0], model.embed(ids())
    torch.testing.assert_close(layers(x), x[:, [0, 0, 0, *range(x.shape[1] - 3)]])


def test_Shortcuts_decisions_have_the_gradient_of_their_sigmoids():
    hard = put(shortcuts(hard=True), depth=random(3, 16), depth_bias=0.1)
    hard(ids()).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in hard.named_parameters() if n.endswith(("depth", "steps", "depth_bias")))


def test_a_layer_that_is_not_there_has_neither_adapter_nor_gate():
    gaps = built((bp.MultiRate((FIRST, NONE, SECOND, FIRST), exits=(1, 3), fast=(LIGHT, FIRST, SECOND), leave=1),
                  bp.Shortcuts((FIRST, NONE, SECOND), adapters=(LIGHT, FIRST, SECOND))))
    plain = built((bp.MultiRate((FIRST, SECOND, FIRST), exits=(1, 2), fast=(LIGHT, SECOND), leave=1),
                   bp.Shortcuts((FIRST, SECOND), adapters=(LIGHT, SECOND))))
    own, held = plain.state_dict(), gaps.state_dict()
    assert own.keys() == held.keys()
    plain.load_state_dict({n: p if p.shape == own[n].shape else p[[0, 2]] for n, p in held.items()})
    torch.testing.assert_close(plain(ids()), gaps(ids()))
    torch.testing.assert_close(streamed(gaps, ids()), gaps(ids()))


@pytest.mark.parametrize(("body", "words"), [
    (bp.MultiRate(THREE, exits=(3,), fast=(LIGHT,) * 3), "before the last layer"),
    (bp.MultiRate(THREE, exits=(2, 1), fast=(LIGHT,)), "growing from at least 1"),
    (bp.MultiRate(THREE, exits=(2,), fast=(LIGHT,)), "a block for each layer before the last exit"),
    (bp.MultiRate(THREE, fast=(LIGHT,), rate=0.5), "rate must be a number"),
    (bp.MultiRate(THREE, fast=(LIGHT,), leave="sequence"), "leave is one of"),
    (bp.Shortcuts(THREE, adapters=(LIGHT,)), "a block for each layer"), (bp.Shortcuts(()), "a block for each layer")])
def test_what_cannot_be_built_is_refused(body, words):
    with pytest.raises(ValueError, match=words):
        space(body)
