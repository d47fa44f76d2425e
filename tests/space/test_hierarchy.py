"""Hierarchies over sequences: each against a loop over tokens written from its paper, and what it equals in its extremes."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from bodyplan.space.macros.dynamic_chunks import smoothed
from example_macros import shaken, space
from macro_oracles import ATTENTION, BOTH_WAYS, CONV, MAMBA, Next, agree, close, holds_to_steps, ids, model_of, stream

NESTED = bp.Hierarchy(encoder=CONV, decoder=MAMBA, width=20, chunker=bp.DynamicChunks(2), inner=(CONV, bp.Hierarchy(
    encoder=CONV, inner=ATTENTION, decoder=CONV, width=24, chunker=bp.DynamicChunks(3))))


def sees_the_past_alone(layer, width=16, tokens=13):
    """No derivative of an output by a later input, and no change of it beyond rounding in float64."""
    x = stream(2, tokens, width).requires_grad_()
    for kept in (1, 4, tokens - 1):
        (gradient,) = torch.autograd.grad(layer(x)[:, :kept].sum(), x)
        assert not gradient[:, kept:].any()
        changed = torch.cat([x[:, :kept], stream(2, tokens, width, seed=5)[:, kept:]], 1)
        close(layer(changed)[:, :kept], layer(x)[:, :kept], 1e-12)


# -- dynamic chunks ----------------------------------------------------------------------------------------------------

def hnet(layer, x_BTD):
    """One stage, token by token and sequence by sequence, as H-Net's paper has it."""
    return torch.stack([hnet_row(layer, row) for row in layer.encoder(x_BTD)])


def hnet_row(layer, x_TD):
    width, chance, chunks, first = x_TD.shape[-1], [], [], []
    for t, x_D in enumerate(x_TD):
        if t == 0:
            chance.append(torch.ones((), dtype=x_D.dtype))
        else:
            q, k = layer.query.weight @ x_D, layer.key.weight @ x_TD[t - 1]
            chance.append((1 - q @ k / (q.norm() * k.norm())) / 2)
        if chance[-1] >= 0.5:
            chunks.append(x_D if layer.pad is None else torch.cat([x_D, layer.pad]))
            first.append(t)
    made_KD = layer.inner(torch.stack(chunks).unsqueeze(0))[0][:, :width]
    mean, chunk, mixed = torch.zeros(width, dtype=x_TD.dtype), -1, []
    for t, x_D in enumerate(x_TD):
        if t in first:
            chunk += 1
            mean = chance[t] * made_KD[chunk] + (1 - chance[t]) * mean
        sure = chance[t] if t in first else 1 - chance[t]
        mixed.append(mean * (sure + (1 - sure).detach()) + layer.skip.weight @ x_D + layer.skip.bias)
    return layer.decoder(torch.stack(mixed).unsqueeze(0))[0]


DYNAMIC = {
    "plain": bp.Hierarchy(inner=ATTENTION),
    "layers around": bp.Hierarchy(encoder=MAMBA, inner=(ATTENTION, CONV), decoder=(MAMBA, CONV)),
    "wider inside": bp.Hierarchy(encoder=CONV, inner=ATTENTION, decoder=CONV, width=20),
    "inner layers look both ways": bp.Hierarchy(encoder=CONV, inner=BOTH_WAYS, decoder=CONV),
    "two stages": NESTED,
}


@pytest.mark.parametrize("tokens", [1, 2, 13])
@pytest.mark.parametrize("body", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_chunks_are_the_loop_over_tokens_of_the_paper(body, tokens):
    agree(model_of(body).layers[0], hnet, stream(tokens=tokens), 1e-10)


def test_dynamic_chunks_of_a_batch_differ_in_number():
    layer = model_of(NESTED).layers[0]
    _, begins_BT, _ = layer.boundaries(layer.encoder(stream()))
    counts = begins_BT.sum(-1)
    assert begins_BT[:, 0].all() and len(set(counts.tolist())) > 1 and counts.max() < 13


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("begins", [False, True])
def test_the_dynamic_mean_is_the_recurrence(tokens, begins):
    x_BKD, weight_BK = stream(2, tokens, 5), torch.rand(2, tokens, dtype=torch.float64)
    weight_BK[:, ::3] = 1
    mean_BD = stream(2, 1, 5, seed=3)[:, 0] if begins else None
    found, mean = [], torch.zeros(2, 5, dtype=torch.float64) if mean_BD is None else mean_BD
    for k in range(tokens):
        mean = weight_BK[:, k, None] * x_BKD[:, k] + (1 - weight_BK[:, k, None]) * mean
        found.append(mean)
    close(smoothed(x_BKD, weight_BK, mean_BD), torch.stack(found, 1), 1e-14)


def untouched(body, width=16):
    """In float32, routers and the way around as they start: the identity and zero."""
    return space(body, width=width).sample(0).build(seed=1).eval().layers[0]


@torch.no_grad()
def test_dynamic_chunks_of_one_token_are_the_inner_layers_bit_for_bit():
    layer = untouched(bp.Hierarchy(inner=(ATTENTION, CONV)))
    x_BTD = torch.zeros(2, 13, 16)
    x_BTD[:, :, 3] = torch.tensor([1.5, -0.75]).repeat(7)[:13]                     # opposite neighbours: p is 1 everywhere
    assert layer.boundaries(x_BTD)[0].eq(1).all()
    assert torch.equal(layer(x_BTD), layer.inner(x_BTD))


@torch.no_grad()
def test_a_dynamic_chunk_of_all_tokens_is_what_the_first_becomes():
    layer = untouched(bp.Hierarchy(inner=(ATTENTION, CONV)))
    x_BTD = stream(2, 1).float().expand(-1, 9, -1)
    assert layer.boundaries(x_BTD)[1].sum() == 2
    assert torch.equal(layer(x_BTD), layer.inner(x_BTD[:, :1]).expand(-1, 9, -1))


@torch.no_grad()
@pytest.mark.parametrize("body", [DYNAMIC["layers around"], DYNAMIC["wider inside"], NESTED,
                                  (CONV, bp.Looped((DYNAMIC["plain"],), bp.Loop(2)))],
                         ids=["layers around", "wider inside", "two stages", "in a loop"])
def test_dynamic_chunks_decode_token_by_token_as_in_one_pass(body):
    model = model_of(body)
    holds_to_steps(model, ids())
    alone = torch.cat([model(row) for row in ids().split(1)])
    close(model(ids()), alone, 1e-12)


@torch.no_grad()
def test_dynamic_inner_states_move_at_boundaries_of_their_own_sequence_alone():
    model = model_of((bp.Hierarchy(encoder=CONV, inner=ATTENTION, decoder=CONV),))
    layer, state, steps = model.layers[0], model.init_state(3, dtype=torch.float64), []
    for token in ids().split(1, 1):
        _, state = model.step(token, state)
        steps.append([row for row in state[0][0]["inner"]])
    begins_BT = layer.boundaries(layer.encoder(model.embed(ids())))[1]
    held = [[sum(t.numel() for t in torch.utils._pytree.tree_leaves(row) if isinstance(t, torch.Tensor)) for row in rows]
            for rows in steps]
    per_token = held[0][0]
    assert per_token > 0 and torch.equal(torch.tensor(held).T, per_token * begins_BT.cumsum(-1))


@pytest.mark.parametrize("body", [DYNAMIC["layers around"], NESTED], ids=["one stage", "two stages"])
def test_dynamic_chunks_see_the_past_alone(body):
    sees_the_past_alone(model_of(body).layers[0])
    assert body.causal and body.streaming and not DYNAMIC["inner layers look both ways"].causal


@torch.no_grad()
def test_dynamic_compute_is_the_declared_where_chunks_have_the_declared_length():
    model = space(bp.Hierarchy(encoder=ATTENTION, inner=(ATTENTION, ATTENTION), decoder=ATTENTION,
                               chunker=bp.DynamicChunks(2)), width=16).sample(0).build()
    layer = model.layers[0]
    model.embed.weight.zero_()
    model.embed.weight[0, 0], model.embed.weight[1, 0] = 1.0, -1.0
    for parameter in layer.encoder.parameters():
        parameter.zero_()
    pairs, ones = (torch.tensor(pattern).repeat(3)[None] for pattern in ([0, 0, 1, 1], [0, 0, 0, 0]))
    assert bp.measured_macs(model, [pairs]).share == pytest.approx(1, rel=1e-9)
    assert bp.measured_macs(model, [ones]).share < 0.8


@torch.no_grad()
def test_dynamic_costs_of_decoding_are_what_a_mean_token_runs_and_keeps():
    body = bp.Hierarchy(encoder=ATTENTION, inner=(ATTENTION, ATTENTION), decoder=ATTENTION, chunker=bp.DynamicChunks(2))
    model = space(body, width=16).sample(0).build().eval()
    cost, given = model.architecture.cost(12), torch.tensor([0, 0, 1, 1]).repeat(4)[None]
    model.embed.weight.zero_()
    model.embed.weight[0, 0], model.embed.weight[1, 0] = 1.0, -1.0
    for parameter in model.layers[0].encoder.parameters():
        parameter.zero_()
    _, state = model.step(given[:, :12], model.init_state(1))
    held = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert 4 * sum(t.numel() for t in held) == cost.state_bytes
    ran = [macs_flop_counter(Next(model, state), given[:, t:t + 1]) for t in (12, 11)]     # a boundary, and none
    assert ran[0] > ran[1] and sum(ran) / 2 == pytest.approx(cost.decode_macs, rel=0.01)


# -- the ratio of dynamic chunks ---------------------------------------------------------------------------------------

def test_the_dynamic_ratio_loss_is_that_of_every_stage_over_its_own_tokens():
    model, given = model_of((NESTED,)), ids()
    logits, loss = bp.ratio_loss(model, given)
    assert torch.equal(logits, model(given))
    outer, inner = model.layers[0], model.layers[0].inner.layers[1]
    wanted, rows = 0, [[], []]
    for row in model.embed(given).split(1):
        x_1TD = outer.encoder(row)
        chance, begins, _ = outer.boundaries(x_1TD)
        rows[0].append((chance[0], begins[0]))
        chunks_1KE = outer.inner.layers[0](outer.widened(x_1TD[:, begins[0]]))
        chance, begins, _ = inner.boundaries(inner.encoder(chunks_1KE))
        rows[1].append((chance[0], begins[0]))
    for ratio, found in zip((2, 3), rows, strict=True):
        chance, begins = (torch.cat(column) for column in zip(*found, strict=True))
        share, mean = begins.double().mean(), chance.mean()
        wanted = wanted + ratio / (ratio - 1) * ((ratio - 1) * share * mean + (1 - share) * (1 - mean))
    close(loss, wanted, 1e-12)
    leaves = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(y, leaves, allow_unused=True, materialize_grads=True)
                              for y in (loss, wanted)), strict=True):
        close(mine, theirs, 1e-10)
    close(bp.ratio_loss(model, given, (2, 3))[1], loss, 0)
    assert bp.ratio_loss(model, given, 5.0)[1] != loss
    assert torch.equal(model(given), logits), "the layers are as they were"


def test_training_by_the_dynamic_ratio_loss_moves_chunks_to_their_length():
    torch.manual_seed(0)
    body = bp.Hierarchy(encoder=CONV, inner=CONV, decoder=CONV, chunker=bp.DynamicChunks(4))
    model = space(body, width=16).sample(0).build()
    given, layer = ids(8, 48), model.layers[0]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)

    def share():
        return layer.boundaries(layer.encoder(model.embed(given)))[1].double().mean().item()

    before = share()
    for _ in range(60):
        optimizer.zero_grad()
        bp.ratio_loss(model, given)[1].backward()
        optimizer.step()
    assert abs(share() - 0.25) < 0.1 < abs(before - 0.25)


def test_a_ratio_loss_needs_dynamic_chunks_and_their_ratios():
    with pytest.raises(ValueError, match="this is about DynamicChunks in a model: got none"):
        bp.ratio_loss(model_of(ATTENTION), ids())
    with pytest.raises(ValueError, match="a ratio above 1 for each of the 2 layers"):
        bp.ratio_loss(model_of(NESTED), ids(), (2.0,))


# -- fixed chunks ------------------------------------------------------------------------------------------------------

def fixed(block, prefix=1, **more):
    return bp.Hierarchy(**({"inner": (ATTENTION, CONV), "decoder": (CONV, ATTENTION)} | more),
                        chunker=bp.FixedChunks(block, prefix))


def block_transformer(layer, x_BTD):
    """Every output by itself, as Block Transformer's paper has it."""
    rows = []
    for x_TD in x_BTD:
        outputs = []
        for t in range(len(x_TD)):
            chunk = (t + 1) // layer.block                                          # of the token that is predicted
            context_E = layer.start
            if chunk:
                vectors = []
                for n in range(chunk):
                    tokens_LD = layer.encoder(x_TD[None, n * layer.block:(n + 1) * layer.block])[0]
                    vectors.append(torch.cat([layer.down.weight @ token_D for token_D in tokens_LD]))
                context_E = layer.inner(torch.stack(vectors)[None])[0, -1]
            prefix_PD = (layer.expand.weight @ context_E + layer.expand.bias).reshape(layer.prefix, -1)
            local_SD = torch.cat([prefix_PD, x_TD[chunk * layer.block:t + 1]])
            outputs.append(layer.decoder(local_SD[None])[0, -1])
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


FIXED = {
    "four": fixed(4, 2),
    "one": fixed(1, 1),
    "three of a wider stream": fixed(3, 1, width=24),
    "an encoder that looks both ways": fixed(4, 1, encoder=(BOTH_WAYS, CONV), width=12),
    "recurrent layers": fixed(2, 3, inner=MAMBA, decoder=MAMBA),
}


@pytest.mark.parametrize("tokens", [1, 3, 4, 11])
@pytest.mark.parametrize("body", FIXED.values(), ids=FIXED.keys())
def test_fixed_chunks_are_the_loop_over_outputs_of_the_paper(body, tokens):
    agree(model_of(body).layers[0], block_transformer, stream(2, tokens), 1e-10)


@torch.no_grad()
@pytest.mark.parametrize("body", FIXED.values(), ids=FIXED.keys())
def test_fixed_chunks_decode_token_by_token_as_in_one_pass(body):
    holds_to_steps(model_of((CONV, body)), ids())


@torch.no_grad()
@pytest.mark.parametrize("length", [3, 4, 13, 16])
def test_no_later_token_changes_a_bit_of_what_fixed_chunks_gave(length):
    for body in FIXED.values():
        layer = model_of(body).float().layers[0]
        x = stream(2, length).float()
        for kept in range(1, length):
            changed = torch.cat([x[:, :kept], stream(2, length, seed=1).float()[:, kept:]], 1)
            assert torch.equal(layer(changed)[:, :kept], layer(x)[:, :kept])


def test_the_fixed_decoder_sees_its_chunk_and_the_inner_layers_what_came_before():
    layer = model_of(fixed(4, 2)).layers[0]
    x = stream(1, 14).requires_grad_()
    (own,) = torch.autograd.grad(layer(x)[:, 9].sum(), x, retain_graph=True)
    assert own[0, :10].abs().sum(-1).gt(0).all() and not own[0, 10:].any()
    layer.expand.weight.data.zero_()                                                # nothing passes from chunk to chunk
    (own,) = torch.autograd.grad(layer(x)[:, 9].sum(), x)
    assert own[0].abs().sum(-1).nonzero().flatten().tolist() == [8, 9]


@torch.no_grad()
def test_fixed_chunks_of_one_token_without_a_decoder_are_the_inner_layers_between_two_maps():
    layer = model_of(fixed(1, 1, decoder=())).layers[0]
    x = stream()
    close(layer(x), layer.expand(layer.inner(layer.down(x))), 1e-13)
    layer.down.weight.copy_(torch.eye(16))
    layer.expand.weight.copy_(torch.eye(16))
    layer.expand.bias.zero_()
    close(layer(x), layer.inner(x), 1e-13)


@torch.no_grad()
def test_a_fixed_chunk_longer_than_the_sequence_is_the_decoder_behind_the_learned_start():
    layer = model_of(fixed(16, 2)).layers[0]
    x = stream(2, 15)
    prefix = layer.expand(layer.start).view(1, 2, 16).expand(2, -1, -1)
    close(layer(x), layer.decoder(torch.cat([prefix, x], 1))[:, 2:], 1e-13)


@torch.no_grad()
@pytest.mark.parametrize(("body", "tokens"), [
    (fixed(4, 1, decoder=ATTENTION, inner=ATTENTION), 12), (fixed(4, 1, decoder=ATTENTION, inner=ATTENTION), 14),
    (fixed(3, 2, encoder=BOTH_WAYS, decoder=ATTENTION, inner=ATTENTION, width=24), 9)])
def test_fixed_costs_of_decoding_are_the_mean_over_a_chunk_and_what_is_kept(body, tokens):
    model = space(body, width=16).sample(0).build().eval()
    cost, given = model.architecture.cost(tokens), torch.randint(32, (1, 24))
    _, state = model.step(given[:, :tokens], model.init_state(1))
    held = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert 4 * sum(t.numel() for t in held) == cost.state_bytes
    block = model.layers[0].block
    begin = tokens // block * block
    _, state = model.step(given[:, :begin], model.init_state(1))
    ran = []
    for t in range(begin, begin + block):
        ran.append(macs_flop_counter(Next(model, state), given[:, t:t + 1]))
        _, state = model.step(given[:, t:t + 1], state)
    assert sum(ran) / block == pytest.approx(cost.decode_macs, rel=0.01)


@pytest.mark.parametrize("chunker", [bp.DynamicChunks(4), bp.FixedChunks(4, 1)], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("layer", [MAMBA, bp.Block(mixer=bp.GatedDeltaNet(heads=2)), bp.Block(mixer=bp.Hyena())],
                         ids=["Mamba2", "GatedDeltaNet", "Hyena"])
def test_costs_are_known_before_the_first_chunk_is_whole(layer, chunker):
    architecture = space(bp.Hierarchy(inner=layer, decoder=layer, chunker=chunker), width=16).sample(0)
    costs = [architecture.cost(tokens) for tokens in (1, 3, 4, 8)]
    assert all(cost.macs > 0 and cost.decode_macs > 0 for cost in costs)
    assert sorted(cost.macs for cost in costs) == [cost.macs for cost in costs]


# -- both --------------------------------------------------------------------------------------------------------------

def test_the_way_to_cut_is_searched_with_one_set_of_layers():
    body = bp.Hierarchy(encoder=bp.Block(mixer=bp.Attention(heads=bp.choice(1, 2)), channel=bp.SwiGLU(ratio=bp.choice(1, 2))),
                        inner=bp.repeat(ATTENTION, bp.integer(1, 2)), decoder=CONV, width=bp.choice(None, 24, 32),
                        chunker=bp.choice(bp.DynamicChunks(3), bp.FixedChunks(bp.choice(2, 4), bp.choice(1, 2))))
    net = shaken(bp.Supernet(space(body, width=bp.choice(16, 24)), seed=0))
    seen = set()
    for seed in range(8):
        architecture = net.space.sample(random.Random(seed))
        seen.add(type(architecture.plan.layers[0].chunker).__name__)
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    assert seen == {"DynamicChunks", "FixedChunks"}


def test_a_permuted_hierarchy_computes_what_it_did():
    for body in [*DYNAMIC.values(), *FIXED.values()]:
        model = space((CONV, body), width=16).sample(0).build(seed=1).double()
        before = model(ids())
        bp.order_axes(model)
        close(model(ids()), before, 1e-8)


def test_layers_beside_a_hierarchy_may_train_in_half_precision():
    for body in (DYNAMIC["wider inside"], FIXED["four"]):
        model = space(body, width=16).sample(0).build().to(torch.bfloat16)
        assert model(ids()).dtype == torch.bfloat16 and model(ids()).isfinite().all()
        assert model.step(ids()[:, :5], model.init_state(3, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(("body", "text"), [
    (bp.Hierarchy(inner=ATTENTION, chunker=bp.DynamicChunks(1)), r"tokens per chunk above 1 at .*chunker"),
    (bp.Hierarchy(inner=ATTENTION, width=8), "no narrower than the stream at .*got 8 inside 16"),
    (bp.Hierarchy(inner=ATTENTION, width=0), "width is a positive int"),
    (bp.Hierarchy(inner=ATTENTION, chunker=4), "chunker is a way to cut the sequence"),
    (bp.Hierarchy(inner=ATTENTION, chunker=bp.FixedChunks(3)), "block must divide the width .*got 3 and 16; use 18"),
    (bp.Hierarchy(inner=ATTENTION, chunker=bp.FixedChunks(0)), "block must be a whole number"),
    (bp.Hierarchy(inner=ATTENTION, chunker=bp.FixedChunks(2, 0)), "prefix must be a whole number"),
    (bp.Hierarchy(inner=bp.Stage((ATTENTION,), stride=2)), r"keep width and length: got Stage as inner\[0\]"),
])
def test_what_cannot_be_cut_is_refused(body, text):
    with pytest.raises((ValueError, TypeError), match=text):
        space(body, width=16).sample(0).build()
