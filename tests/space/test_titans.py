"""Titans' three ways to use a memory: against loops written from the paper, what they equal without it, what they cost."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import shaken, space
from macro_oracles import ATTENTION, CONV, agree, close, holds_to_steps, ids, model_of, stream
from operator_examples.state_space import learning_memory, monomials

MEMORY = bp.NeuralMemory(heads=2, depth=2, chunk=2, conv=3)
MIXERS = {
    "mac": bp.MemoryAsContext(MEMORY, chunks=2, persistent=2, heads=2),
    "mac, linear and without persistent tokens": bp.MemoryAsContext(
        bp.NeuralMemory(heads=2, depth=1, chunk=1, inner="gd", conv=None), chunks=3, persistent=0, heads=1, head_dim=6),
    "mac of deeper gradient descent": bp.MemoryAsContext(
        bp.NeuralMemory(heads=1, depth=3, chunk=3, inner="gd"), chunks=1, heads=2),
    "mac that asks an Atlas": bp.MemoryAsContext(bp.Atlas(heads=2, head_dim=3, chunk=2, window=3), chunks=2, heads=2),
    "mag": bp.MemoryAsGate(MEMORY, window=3, persistent=2, heads=2),
    "mag without persistent tokens": bp.MemoryAsGate(MEMORY, window=5, persistent=0, heads=2, head_dim=6),
    "mag over all": bp.MemoryAsGate(bp.NeuralMemory(heads=2, depth=1, chunk=4), window=64, persistent=3, heads=2),
}
LAYERS = {name: bp.Block(mixer=mixer) for name, mixer in MIXERS.items()} | {
    "mal": bp.PersistentTokens((bp.Block(mixer=MEMORY), bp.Block(mixer=bp.Attention(heads=2, window=3))), tokens=2)}
CONTEXT = {name: mixer for name, mixer in MIXERS.items() if isinstance(mixer, bp.MemoryAsContext)}
GATES = {name: mixer for name, mixer in MIXERS.items() if isinstance(mixer, bp.MemoryAsGate)}


def mixer_of(config):
    return model_of(bp.Block(mixer=config)).layers[0].mixer.op


def weights(module):
    return {name: parameter for name, parameter in module.named_parameters() if not name.startswith("attention.")}


def normed(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def turned(x_P, position, base=10000.0):
    half = len(x_P) // 2
    angle = position * torch.tensor([base ** (-i / half) for i in range(half)], dtype=x_P.dtype)
    a, b = x_P[:half], x_P[half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def attended(layer, config, query, seen):
    """One token, (vector, position), over the (vector, position) it sees."""
    size, rows = config.head_dim or len(query[0]) // config.heads, []
    for head in range(config.heads):
        own = slice(head * size, (head + 1) * size)
        q = turned(layer.query.weight[own] @ query[0], query[1])
        scores = torch.stack([q @ turned(layer.key.weight[own] @ x, p) for x, p in seen]) / size**0.5
        rows.append(sum(a * (layer.value.weight[own] @ x) for a, (x, _) in zip(scores.softmax(0), seen, strict=True)))
    return layer.out.weight @ torch.cat(rows)


def gated(layer, y_TD, m_TD):
    return normed(y_TD, layer.norm.weight) * torch.sigmoid(normed(m_TD, layer.memory_norm.weight))


def memory_weights(layer):
    return dict(layer.memory.named_parameters())


def memory_after(layer, config, learned):
    """The layers of the memory once it has learned these outputs, found by what one more token reads of them."""
    state = None
    for start in range(0, len(learned), config.chunk):
        _, state = layer.memory.step(torch.stack(learned[start:start + config.chunk])[None], state)
    return [state[f"memory_{n}"][0] for n in range(config.depth)]


def read(layer, config, x_TD, matrices):
    """M(q) of every token of the sequence, all with one memory, in loops over tokens and heads."""
    w, heads, width = memory_weights(layer), config.heads, x_TD.shape[-1]
    size = config.head_dim or width // heads
    inner = heads * size
    q_TE, rows = x_TD @ w["input.weight"][:inner].T, []
    gate_TE = x_TD @ w["input.weight"][3 * inner:4 * inner].T
    for t in range(len(x_TD)):
        q_E = q_TE[t]
        if config.conv:
            past = [(n, t - config.conv + 1 + n) for n in range(config.conv)]
            q_E = sum(w["taps"][:inner, n] * q_TE[at] for n, at in past if at >= 0)
        q_E, answers = q_E * torch.sigmoid(q_E), []
        for head in range(heads):
            q = q_E[head * size:(head + 1) * size]
            y = monomials(q / (q.square().sum() + 1e-6).sqrt(), config.degree)
            for number, matrices_HIO in enumerate(matrices):
                y = (y * torch.sigmoid(y) if number else y) @ matrices_HIO[head]
            answers.append(normed(y, w["norm.weight"]))
        rows.append(w["out.weight"] @ (torch.cat(answers) * gate_TE[t] * torch.sigmoid(gate_TE[t])))
    return torch.stack(rows)


def context(config):
    """MAC, one segment, one token and one head at a time."""
    memory = config.memory

    def row(layer, x_TD):
        w, first, outputs = memory_weights(layer), config.persistent, []
        names = ["first", *(f"between_{n}" for n in range(1, memory.depth - 1)), "last"] if memory.depth > 1 else ["only"]
        for start in range(0, len(x_TD), config.segment):
            matrices = memory_after(layer, memory, outputs) if outputs else [w[f"memory.{name}"].mT for name in names]
            h_TD = read(layer, memory, x_TD, matrices)
            always = [(layer.attention.persistent[n], n) for n in range(first)]
            for t in range(start, min(start + config.segment, len(x_TD))):
                recalled = [(h_TD[s], first + s - start) for s in range(start, t + 1)]
                tokens = [(x_TD[s], first + config.segment + s - start) for s in range(start, t + 1)]
                outputs.append(attended(layer.attention, config, tokens[-1], always + recalled + tokens))
        y_TD = torch.stack(outputs)
        return gated(layer, y_TD, learning_memory(w, memory, y_TD[None])[0])

    return lambda layer, x_BTD: torch.stack([row(layer, x_TD) for x_TD in x_BTD])


def gate(config):
    """MAG, one token and one head at a time."""
    def row(layer, x_TD):
        first = config.persistent
        always = [(layer.attention.persistent[n], n) for n in range(first)]
        y_TD = torch.stack([attended(layer.attention, config, (x_TD[t], first + t), always + [
            (x_TD[s], first + s) for s in range(max(0, t - config.window + 1), t + 1)]) for t in range(len(x_TD))])
        whole = torch.cat([layer.attention.persistent, x_TD]) if first else x_TD
        return gated(layer, y_TD, learning_memory(memory_weights(layer), config.memory, whole[None])[0][first:])

    return lambda layer, x_BTD: torch.stack([row(layer, x_TD) for x_TD in x_BTD])


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("config", CONTEXT.values(), ids=CONTEXT.keys())
def test_memory_as_context_is_the_loop_of_the_paper(config, tokens):
    agree(mixer_of(config), context(config), stream(2, tokens), 1e-9)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("config", GATES.values(), ids=GATES.keys())
def test_memory_as_gate_is_the_loop_of_the_paper(config, tokens):
    agree(mixer_of(config), gate(config), stream(2, tokens), 1e-9)


@torch.no_grad()
def test_a_window_is_the_same_in_blocks_and_at_once():
    layer = mixer_of(bp.MemoryAsGate(MEMORY, window=5, persistent=2, heads=2))
    x = stream(2, 150)
    wide = layer(x)
    attention, start = layer.attention, 2
    kv = attention.keys_values(x, start)
    q = attention.turned(attention.query(x), start)
    y = attention.out(attention.attended(q, attention.prefix(x), [kv], 5).flatten(2))
    m = layer.memory(torch.cat([attention.learned(x), x], 1))[:, 2:]
    close(wide, layer.gated(y, m), 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mac", "mag"])
def test_a_memory_that_gives_nothing_leaves_half_of_attention_with_persistent_tokens(name):
    layer = mixer_of(MIXERS[name])
    layer.memory.out.weight.zero_()
    x, config = stream(1, 10), MIXERS[name]
    reach, before = (4, 2 + 4) if name == "mac" else (3, 2)
    rows = []
    for t in range(10):
        start = t - t % reach if name == "mac" else max(0, t - reach + 1)
        offset = start if name == "mac" else 0
        always = [(layer.attention.persistent[n], n) for n in range(2)]
        near = [(x[0, s], before + s - offset) for s in range(start, t + 1)]
        silent = [(torch.zeros_like(x[0, 0]), 0)] * (len(near) if name == "mac" else 0)
        rows.append(attended(layer.attention, config, near[-1], always + silent + near))
    close(layer(x)[0], normed(torch.stack(rows), layer.norm.weight) / 2, 1e-11)


@torch.no_grad()
def test_persistent_tokens_are_tokens_at_the_beginning():
    layer = model_of(LAYERS["mal"]).layers[0]
    x = stream(2, 9)
    y = torch.cat([layer.persistent.expand(2, -1, -1), x], 1)
    for part in layer.body.layers:
        y = part(y)
    assert torch.equal(layer(x), y[:, 2:])


@pytest.mark.parametrize("name", LAYERS)
def test_titans_see_all_that_came_and_nothing_that_comes(name):
    layer = model_of(LAYERS[name]).layers[0]
    x = stream(1, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:, 9].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(10))
    with torch.no_grad():
        for keep in range(1, 12):
            changed = torch.cat([x[:, :keep], stream(1, 12, seed=1)[:, keep:]], 1)
            assert torch.equal(layer(changed)[:, :keep], layer(x)[:, :keep])


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_titans_decode_token_by_token_as_in_one_pass(name):
    holds_to_steps(model_of((CONV, LAYERS[name])), ids())


@torch.no_grad()
@pytest.mark.parametrize("tokens", [12, 14])
@pytest.mark.parametrize("name", LAYERS)
def test_costs_of_titans_are_what_torch_executes_and_what_is_kept(name, tokens):
    model = space(LAYERS[name], width=16).sample(0).build().eval()
    cost, given = model.architecture.cost(tokens), ids(1, tokens)
    assert macs_flop_counter(model, given) == pytest.approx(cost.macs, rel=1e-9)
    _, state = model.step(given, model.init_state(1))
    held = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert 4 * sum(t.numel() for t in held) == cost.state_bytes


def test_titans_are_searched_and_ordered_in_one_supernet():
    memory = bp.choice(bp.NeuralMemory(heads=bp.choice(1, 2), depth=bp.choice(1, 2), chunk=2, conv=bp.choice(None, 3)),
                       bp.Atlas(heads=1, head_dim=4, chunk=2))
    body = (bp.Block(mixer=bp.choice(
        bp.MemoryAsContext(memory, chunks=bp.choice(1, 2), persistent=bp.choice(0, 2, 3), heads=bp.choice(1, 2)),
        bp.MemoryAsGate(bp.choice(memory, bp.ShortConv(kernel=3)), window=bp.choice(2, 4), persistent=bp.choice(0, 2)))),
        bp.PersistentTokens(bp.choice(ATTENTION, CONV), tokens=bp.choice(1, 3)))
    net = shaken(bp.Supernet(space(body, width=bp.choice(8, 16)), seed=0))
    seen = set()
    for seed in range(10):
        architecture = net.space.sample(random.Random(seed))
        seen.add(type(architecture.plan.layers[0].mixer).__name__)
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    assert seen == {"MemoryAsContext", "MemoryAsGate"}
    for layers in LAYERS.values():
        model = model_of(layers)
        before = model(ids())
        bp.order_axes(model)
        close(model(ids()), before, 1e-8)


@pytest.mark.parametrize("variant", bp.presets.titans.VARIANTS)
def test_every_variant_of_titans_learns(variant):
    model = bp.presets.titans.fixed(variant=variant).build(seed=0)
    assert bp.presets.titans.space(variant).sample(0).build()(ids(1, 40)).shape == (1, 40, 256)
    given = ids(4, 40).repeat(1, 2)[:, :48]
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(given)[:, :-1].flatten(0, 1), given[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(("body", "text"), [
    (bp.MemoryAsContext(bp.choice(MEMORY, bp.ShortConv())), "memory is a NeuralMemory or an Atlas at .*got ShortConv"),
    (bp.MemoryAsContext(MEMORY, chunks=0), "chunks must be a whole number"),
    (bp.MemoryAsContext(MEMORY, heads=3), "heads must divide width"),
    (bp.MemoryAsContext(MEMORY, heads=16), "head_dim must be even for rotary positions at .*got 1"),
    (bp.MemoryAsGate(MEMORY, window=0), "window must be a whole number"),
    (bp.MemoryAsGate(MEMORY, persistent=-1), "persistent must be a whole number of at least 0"),
    (bp.MemoryAsGate(MEMORY, head_dim=0), "head_dim must be a whole number"),
])
def test_mixers_with_a_memory_that_cannot_be_are_refused(body, text):
    with pytest.raises(ValueError, match=text):
        space(bp.Block(mixer=body), width=16)


def test_variants_and_persistent_tokens_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="tokens must be a whole number"):
        space(bp.PersistentTokens(CONV, tokens=0), width=16)
    with pytest.raises(ValueError, match="variant is one of 'mac', 'mag', 'mal', 'lmm': got 'moc'"):
        bp.presets.titans.space("moc")
