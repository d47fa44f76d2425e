"""Layers that run several times, and layers that tokens or sequences pass by: each tied to the plain stack it comes from."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.routing import compacted, count_of, picked
from example_macros import BY_INPUT, inputs, shaken, space, varied

FIRST = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2))
SECOND = bp.Block(mixer=bp.ShortConv(kernel=3), channel=bp.SwiGLU(ratio=1))
TWO = (FIRST, SECOND)


def one(body, **more):
    return space(body, **({"width": 16} | more)).sample(0)


def ids(batch=2, tokens=13, seed=0):
    return torch.randint(32, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def built(body, like=None, seed=1):
    """The module in evaluation mode; parameters that `like` has under the same name are its."""
    model = shaken(one(body).build(seed=seed)).eval()
    if like is not None:
        own = dict(model.named_parameters())
        held = like.state_dict().items()
        model.load_state_dict({n: p for n, p in held if n in own and p.shape == own[n].shape}, strict=False)
    return model


def put(model, **values):
    """Set the parameters whose names end so."""
    with torch.no_grad():
        for end, value in values.items():
            found = [p for n, p in model.named_parameters() if n.endswith(end)]
            assert found, end
            for parameter in found:
                parameter.copy_(torch.as_tensor(value).expand(parameter.shape))
    return model


def equal(a, b, **more):
    torch.testing.assert_close(a, b, **({"rtol": 1e-5, "atol": 1e-5} | more))


def streamed(model, given):
    state, steps = model.init_state(len(given)), []
    for token in given.split(1, dim=1):
        logits, state = model.step(token, state)
        steps.append(logits)
    return torch.cat(steps, 1)


# -- recursions --------------------------------------------------------------------------------------------------------

HALF = torch.logit(torch.tensor(0.5)).item()
AS_A_LOOP = {
    "IterationEncoding": (bp.IterationEncoding(2), {"encoding": 0.0}),
    "OwnNorms": (bp.OwnNorms(2), {"gain": 1.0, "shift": 0.0}),
    "HyperLoop": (bp.HyperLoop(2, rate=2), {"weigh": 0.0, "place": 0.0,
                                           "offset": torch.tensor([HALF, HALF, -200.0, -200.0, 0.0, 0.0])}),
    "RoutedLoop": (bp.RoutedLoop((1.0, 1.0), adds="whole"), {}),
    "InnerThinking": (bp.InnerThinking(2, capacity=1.0), {"think_router": 0.0,
                                                          "think_encoding": torch.tensor([[1.0], [2.0]])}),
    "SlicedLoop": (bp.SlicedLoop((1, 1)), {"layers.0.coefficients": 1.0, "between.0.coefficients": torch.tensor([1.0, 0.0]),
                                           "between.1.coefficients": torch.tensor([1.0, 0.0])}),
    "VisitOrder": (bp.VisitOrder(times=2), {}),
}


@pytest.mark.parametrize("tokens", [1, 13, 63])
@pytest.mark.parametrize("name", AS_A_LOOP)
def test_a_recursion_whose_own_parameters_do_nothing_is_the_plain_loop(name, tokens):
    recursion, values = AS_A_LOOP[name]
    loop = built(bp.Looped(TWO, bp.Loop(2)))
    model = put(built(bp.Looped(TWO, recursion), loop), **values)
    equal(model(ids(tokens=tokens)), loop(ids(tokens=tokens)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AS_A_LOOP)
def test_a_recursion_with_parameters_of_its_own_is_another_network_than_the_loop(name):
    recursion, _ = AS_A_LOOP[name]
    assert one(bp.Looped(TWO, recursion)).hash != one(bp.Looped(TWO, bp.Loop(3))).hash
    loop = built(bp.Looped(TWO, bp.Loop(2)))
    if name not in ("VisitOrder", "RoutedLoop", "OwnNorms"):
        assert not torch.allclose(built(bp.Looped(TWO, recursion), loop)(ids()), loop(ids()))


def test_VisitOrder_of_ones_is_the_plain_stack():
    plain = one(TWO)
    for order in (bp.VisitOrder(), bp.VisitOrder(reuse=(1, 1)), bp.VisitOrder(reuse=(1, 1, 5)), bp.VisitOrder(order=(0, 1))):
        assert one((bp.Looped(TWO, order),)).hash == plain.hash


def test_VisitOrder_repeats_exchanges_and_leaves_out_layers():
    unrolled = {"reuse": ((FIRST, FIRST, SECOND), bp.VisitOrder(reuse=(2,)), (0, 0, 1)),
                "order": ((SECOND, FIRST), bp.VisitOrder(order=(1, 0)), (1, 0)),
                "skip": ((SECOND,), bp.VisitOrder(order=(1,)), (1,)),
                "same": ((SECOND, SECOND, SECOND), bp.VisitOrder(order=(1, 1, 1)), (1, 1, 1))}
    for body, order, visits in unrolled.values():
        model, plain = built((bp.Looped(TWO, order),)), built(body)
        state = model.state_dict()
        plain.load_state_dict({n: state[f"layers.0.layers.{visits[int(n.split('.')[1])]}." + n.split(".", 2)[2]]
                               if n.startswith("layers.") else state[n] for n in plain.state_dict()})
        assert torch.equal(model(ids()), plain(ids()))
        assert one((bp.Looped(TWO, order),)).cost(50).macs == one(body).cost(50).macs


def test_VisitOrder_side_by_side_averages_the_layers():
    model = built((bp.Looped(TWO, bp.VisitOrder(side_by_side=True, times=2)),))
    x = model.embed(ids())
    first, second = model.layers[0].layers
    for _ in range(2):
        x = (first(x) + second(x)) / 2
    equal(model.layers[0](model.embed(ids())), x)


def test_VisitOrder_maps_are_searched_with_one_set_of_weights():
    searched = space(bp.Looped(TWO, bp.VisitOrder(reuse=(bp.integer(1, 3), bp.integer(1, 2)))), width=16)
    assert searched.size() == 6
    assert len({a.hash for a in map(searched.architecture, searched.enumerate())}) == 6
    assert len({tuple(a.weight_addresses.values()) for a in map(searched.architecture, searched.enumerate())}) == 1


def test_AlgoFormer_has_layers_before_and_after_and_takes_another_number_of_iterations_after_training():
    short, long = (built((FIRST, bp.Looped((SECOND,), bp.Loop(times)), FIRST)) for times in (2, 5))
    long.load_state_dict(short.state_dict())
    short.layers[1].times = 5
    assert torch.equal(short(ids()), long(ids()))
    equal(streamed(short, ids()), long(ids()))


def test_OwnNorms_give_every_pass_norms_of_its_own_and_route_anew():
    block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MoE(experts=4, top_k=2), norm=bp.LayerNorm())
    model = built((bp.Looped((block,), bp.OwnNorms(2)),))
    plain = built((block, block))
    state, gain, shift = model.state_dict(), model.layers[0].gain, model.layers[0].shift
    with torch.no_grad():
        gain.normal_(1, 0.3, generator=torch.Generator().manual_seed(3))
        loaded = {}
        for name in plain.state_dict():
            if not name.startswith("layers."):
                loaded[name] = state[name]
                continue
            _, t, rest = name.split(".", 2)
            role, value = int(rest.startswith("channel")), state[f"layers.0.layers.0.{rest}"]
            loaded[name] = (value * gain[int(t), 0, role] if rest.endswith("norm.weight") else
                            value + shift[int(t), 0, role] if rest.endswith("norm.bias") else value)
    plain.load_state_dict(loaded)
    equal(model(ids()), plain(ids()))


def test_RoutedLoop_works_on_a_share_of_the_tokens_of_the_pass_before():
    model = built((bp.Looped((FIRST,), bp.RoutedLoop((1.0, 0.5, 0.25), scale=0.3)),))
    put(model, pass_router=torch.randn(3, 16, generator=torch.Generator().manual_seed(2)))
    rounds = model.layers[0]
    x = model.embed(ids(1))[0]
    places = list(range(13))
    expected = x.clone()
    for t, count in enumerate((13, 7, 4)):
        score = expected[places] @ rounds.pass_router[t]
        places = sorted(places[int(i)] for i in score.argsort(descending=True)[:count])
        seen = expected[places]
        weight = 0.3 * torch.sigmoid(seen @ rounds.pass_router[t]).unsqueeze(-1)
        expected = expected.clone()
        expected[places] = seen + weight * rounds.layers[0](seen[None])[0]
    equal(rounds(x[None])[0], expected)


def test_TokenLoop_takes_every_token_through_as_many_passes_as_it_chose():
    model = built((bp.Looped((FIRST,), bp.TokenLoop(3)),))
    put(model, **{"router.weight": torch.randn(3, 16, generator=torch.Generator().manual_seed(2))})
    rounds = model.layers[0]
    for row in model.embed(ids(3)):
        chance = (row @ rounds.router.weight.T).softmax(-1)
        last, expected = chance.argmax(-1), row.clone()
        assert len(set(last.tolist())) > 1, "tokens differ"
        for t in range(3):
            places = [i for i in range(len(row)) if last[i] >= t]
            if places:
                seen = expected[places]
                change = rounds.layers[0](seen[None])[0] - seen
                expected = expected.clone()
                expected[places] = seen + chance.max(-1).values[places, None] * change
        equal(rounds(row[None])[0], expected)
    equal(streamed(model, ids(3)), model(ids(3)))


def test_TokenLoop_leaves_earlier_outputs_as_they_are():
    model = built((bp.Looped(TWO, bp.TokenLoop(2)),))
    long = ids(1, 40)
    for length in (1, 17, 39):
        equal(model(long[:, :length]), model(long)[:, :length])


def test_SlicedLoop_keeps_groups_apart_in_a_pass_and_joins_them_in_the_next():
    for groups, reached in (((4,), {4, 5, 6}), ((4, 1), set(range(13))), ((1,), set(range(13)))):
        both = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))
        model = built((bp.Looped((both,), bp.SlicedLoop(groups)),))
        x = model.embed(ids(1))
        changed = x.clone()
        changed[0, 5] += 1
        rounds = model.layers[0]
        moved = (rounds(x) - rounds(changed)).abs().sum(-1)[0] > 1e-6
        assert {i for i in range(13) if moved[i]} == reached


def test_HyperLoop_reads_and_writes_the_streams_by_three_sigmoids():
    model = built((bp.Looped((FIRST,), bp.HyperLoop(2, rate=3)),))
    rounds, x = model.layers[0], model.embed(ids())
    streams = [x, x, x]
    for t in range(2):
        flat = torch.cat(streams, -1)
        z = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        gates = torch.sigmoid(z @ rounds.weigh[t].T + rounds.offset[t])
        read, keep, write = gates[..., :3], gates[..., 3:6], 2 * gates[..., 6:]
        y = rounds.layers[0](sum(read[..., n:n + 1] * streams[n] for n in range(3))) + rounds.place[t]
        streams = [keep[..., n:n + 1] * streams[n] + write[..., n:n + 1] * y for n in range(3)]
    equal(rounds(x), sum(streams) / 3)


# -- a looped model from a trained one ---------------------------------------------------------------------------------

def test_a_recursive_model_with_corrections_of_full_rank_computes_what_the_trained_one_does():
    trained = built(bp.repeat(FIRST, 4))
    for init in ("average", "stepwise", "lower"):
        looped = bp.recursive(trained, one(bp.repeat(FIRST, 2), recursion=bp.Loop(2, lora_rank=16)), init)
        equal(looped(ids()), trained(ids()), rtol=1e-3, atol=1e-3)
        small = bp.recursive(trained, one(bp.repeat(FIRST, 2), recursion=bp.Loop(2, lora_rank=2)), init)
        assert not torch.allclose(small(ids()), trained(ids()), atol=1e-3)


def test_a_recursive_model_starts_from_the_layers_its_way_names():
    trained = built(bp.repeat(FIRST, 6))
    name = "mixer.op.query.weight"
    deep = dict(trained.named_parameters())
    target = one(bp.repeat(FIRST, 2), recursion=bp.Loop(3))
    for init, picks in (("average", ((0, 2, 4), (1, 3, 5))), ("stepwise", ((0,), (5,))), ("lower", ((0,), (1,)))):
        made = dict(bp.recursive(trained, target, init).named_parameters())
        for k, layers in enumerate(picks):
            equal(made[f"layers.{k}.{name}"], sum(deep[f"layers.{i}.{name}"] for i in layers) / len(layers))


def test_a_recursive_model_says_what_does_not_fit():
    trained = built(bp.repeat(FIRST, 3))
    target = one(bp.repeat(FIRST, 2), recursion=bp.Loop(2))
    with pytest.raises(ValueError, match="got 3 for 2 layers 2 times"):
        bp.recursive(trained, target)
    with pytest.raises(ValueError, match="init is one of"):
        bp.recursive(trained, target, "upper")
    with pytest.raises(ValueError, match="got none for layers.1.mixer.op.query.weight"):
        bp.recursive(built((FIRST, SECOND, FIRST, SECOND)), target, "lower")


# -- tokens that pass layers by ----------------------------------------------------------------------------------------

def test_Routed_with_all_tokens_and_no_weight_is_the_plain_stack():
    plain = built((bp.Looped(TWO, bp.Once()),))
    model = built((bp.Routed(TWO, capacity=1.0, weight="none"),), plain)
    for tokens in (1, 13, 63):
        assert torch.equal(model(ids(tokens=tokens)), plain(ids(tokens=tokens)))


@pytest.mark.parametrize("choose", ["top_k", "threshold"])
def test_Routed_runs_its_layers_on_the_chosen_tokens_alone(choose):
    model = built((bp.Routed((FIRST,), capacity=0.3, choose=choose),))
    routed = model.layers[0]
    x = model.embed(ids(3, 20))
    with torch.no_grad():
        routed.router.weight.normal_(generator=torch.Generator().manual_seed(4))
    for row, out in zip(x, routed(x), strict=True):
        score = (row @ routed.router.weight.T).squeeze(-1)
        chosen = sorted(score.topk(6).indices.tolist()) if choose == "top_k" else score.gt(0).nonzero().flatten().tolist()
        others = [i for i in range(20) if i not in chosen]
        assert chosen and others
        assert torch.equal(out[others], row[others])
        change = routed.layers[0](row[None, chosen])[0] - row[chosen]
        equal(out[chosen], row[chosen] + score[chosen, None] * change)


@pytest.mark.parametrize("tokens", [1, 13, 63])
def test_Routed_by_threshold_decodes_with_the_weights_of_top_k(tokens):
    trained = built((FIRST, bp.Routed(TWO, capacity=0.5, weight="sigmoid")))
    model = built((FIRST, bp.Routed(TWO, capacity=0.5, weight="sigmoid", choose="threshold")), trained)
    assert set(model.state_dict()) == set(trained.state_dict())
    equal(streamed(model, ids(3, tokens)), model(ids(3, tokens)))
    assert (bp.Routed(TWO).causal, bp.Routed(TWO).streaming) == (False, False)
    with pytest.raises(ValueError, match="Routed has none"):
        trained.init_state(2)


def test_Routed_through_is_one_with_the_gradient_of_the_sigmoid():
    model = built((bp.Routed((FIRST,), capacity=1.0, weight="through"),))
    plain = built((bp.Routed((FIRST,), capacity=1.0, weight="none"),), model)
    equal(model(ids()), plain(ids()))
    model(ids()).square().mean().backward()
    assert model.layers[0].router.weight.grad.abs().sum() > 0


def test_Routed_scores_learn_to_tell_the_chosen_tokens_by_their_sign():
    model = shaken(one((FIRST, bp.Routed((FIRST,), capacity=0.25))).build())
    optimiser = torch.optim.Adam(model.layers[1].router.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        logits, loss = bp.routing_loss(model, ids(4, 24))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert logits.shape == (4, 24, 32) and losses[-1] < 0.8 * losses[0]


def test_sequences_do_not_meet_where_their_tokens_part_company_under_layers_that_look_ahead():
    both = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))
    for body in (bp.Routed((both,), choose="threshold"), bp.Looped((both,), bp.TokenLoop(2))):
        model = put(built((body,)), **{"router.weight": torch.randn(2, 16, generator=torch.Generator().manual_seed(6))[
            :1 if isinstance(body, bp.Routed) else 2]})
        equal(model(ids(3)), torch.cat([model(row) for row in ids(3).split(1)]))
        assert not body.causal and not body.streaming


def test_chosen_places_are_in_order_and_filled_behind():
    score = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    assert picked(score, 2).tolist() == [[2, 3]] and count_of(0.125, 9) == 2 and count_of(0.001, 9) == 1
    places, keep = compacted(torch.tensor([[False, True, True], [True, False, False]]))
    assert places.tolist() == [[1, 2], [0, 1]] and keep.tolist() == [[True, True], [True, False]]


# -- sequences that pass layers by -------------------------------------------------------------------------------------

@pytest.mark.parametrize("scope", ["layer", "input"])
def test_GatedDepth_starts_as_the_plain_stack_and_closed_as_nothing(scope):
    plain = built((bp.Looped(TWO, bp.Once()),))
    gated = built((bp.GatedDepth(TWO, scope=scope),), plain)
    equal(put(gated, **{"0.out": 0.0, "out_bias": 1.0})(ids()), plain(ids()))
    put(gated, out_bias=-1.0)
    assert torch.equal(gated.layers[0](gated.embed(ids())), gated.embed(ids()))


def test_GatedDepth_lets_every_sequence_decide_for_itself():
    model = built((bp.GatedDepth(TWO),))
    gated, x = model.layers[0], model.embed(ids(8))
    put(model, into=torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0)),
        **{"0.out": torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), "out_bias": 0.0})
    whole = gated(x)
    equal(whole, torch.cat([gated(row) for row in x.split(1)]))
    open_ = [bool(gated.scores(row, 0, 0, 1) > 0) for row in x.split(1)]
    assert True in open_ and False in open_


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_GatedDepth_predictors_learn_from_the_task_and_from_the_mean_of_the_gates(temperature):
    model = shaken(one((bp.GatedDepth(TWO, temperature=temperature),)).build()).train()
    torch.manual_seed(0)
    logits, mean = bp.mean_gate(model, ids())
    assert 0 < mean.item() < 1
    (logits.square().mean() + mean).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (model.layers[0].into, model.layers[0].out))


# -- early exits -------------------------------------------------------------------------------------------------------

THREE = (FIRST, SECOND, FIRST)
ADAPTERS = (SECOND, bp.Block())


def exits(leave=None, like=None):
    return built((bp.EarlyExit(THREE, exits=(1, 2), adapters=ADAPTERS, leave=leave),), like)


def test_EarlyExit_at_full_depth_is_the_plain_stack():
    model = exits()
    assert torch.equal(model(ids()), built((bp.Looped(THREE, bp.Once()),), model)(ids()))
    for leave in ("token", "sequence"):
        stays = put(exits(leave, model), halt=0.0, halt_bias=-1.0)
        assert torch.equal(stays(ids()), model(ids()))


def test_EarlyExit_leaves_through_the_adapter_of_the_exit():
    model = exits()
    layers, x = model.layers[0], model.embed(ids())
    first = layers.layers[0](x)
    equal(exits(0, model).layers[0](x), layers.adapters[0](first))
    equal(exits(1, model).layers[0](x), layers.layers[1](first))
    for leave in ("token", "sequence"):
        leaves = put(exits(leave, model), halt=0.0, halt_bias=1.0)
        equal(leaves(ids()), exits(0, model)(ids()))
    for number, logits in enumerate(bp.exit_logits(model, ids())[:2]):
        equal(logits, exits(number, model)(ids()))
    equal(bp.exit_logits(model, ids())[2], model(ids()))


def test_EarlyExit_of_a_token_leaves_its_state_for_others_to_read():
    model = put(exits("token"), halt=torch.randn(2, 16, generator=torch.Generator().manual_seed(3)), halt_bias=0.0)
    layers, x = model.layers[0], model.embed(ids(4))
    first = layers.layers[0](x)
    early = (first @ layers.halt[0]) > 0
    assert early.any() and not early.all()
    second = torch.where(early[..., None], first, layers.layers[1](first))
    later = ~early & ((second @ layers.halt[1]) > 0)
    third = layers.layers[2](second)
    expected = torch.where(early[..., None], layers.adapters[0](first), torch.where(later[..., None], second, third))
    equal(layers(x), expected)
    equal(streamed(model, ids(4)), model(ids(4)))


def test_EarlyExit_of_a_sequence_takes_it_out_of_the_batch():
    model = put(exits("sequence"), halt=torch.randn(2, 16, generator=torch.Generator().manual_seed(5)), halt_bias=0.0)
    layers, x = model.layers[0], model.embed(ids(8))
    equal(layers(x), torch.cat([layers(row) for row in x.split(1)]))
    full = bp.measured_macs(exits(None, model), [ids(8)]).macs
    some = bp.measured_macs(model, [ids(8)]).macs
    assert 0 < some != full


def test_EarlyExit_adapters_learn_alone_from_the_whole_depth():
    model = exits().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".adapters." in name)
    before, trained = model(ids()).clone(), [p for p in model.parameters() if p.requires_grad]
    optimiser, losses = torch.optim.Adam(trained, lr=0.02), []
    for _ in range(20):
        loss = bp.exit_distillation(model, ids())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and torch.equal(model(ids()), before)


def test_EarlyExit_halting_scores_learn_from_the_first_exit_that_is_right():
    model = exits()
    with torch.no_grad():
        logits = bp.exit_logits(model, ids())
        scores = model.layers[0].every(model.embed(ids()))[1]
    targets = logits[1].argmax(-1)
    expected = 0.0
    for b in range(2):
        for t in range(13):
            for n in range(2):
                right, p = bool(logits[n][b, t].argmax() == targets[b, t]), torch.sigmoid(scores[n][b, t, 0])
                expected -= float(torch.log(p if right else 1 - p))
                if right:
                    break
    assert float(bp.halting_loss(model, ids(), targets)) == pytest.approx(expected / 26, rel=1e-4)


def test_EarlyExit_trains_all_exits_on_a_task():
    class Guess:
        def loss_of(self, logits, batch):
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    class Pair:
        inputs, targets = ids(), ids(seed=1)

    model = exits()
    losses = [Guess().loss_of(logits, Pair) for logits in bp.exit_logits(model, Pair.inputs)]
    equal(bp.exit_loss(model, Guess(), Pair), sum(losses) / 3)


@pytest.mark.parametrize("searched", BY_INPUT.values(), ids=BY_INPUT.keys())
def test_what_depends_on_the_input_is_declared_extracted_and_drawn_as_any_macro(searched):
    net = shaken(bp.Supernet(searched))
    for architecture in varied(searched):
        model, given = net.extract(architecture), inputs(architecture)
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == {
            n: declared.shape for n, declared in architecture.parameters.items()}
        equal(net.subnet(architecture)(given), model(given))
        if all(item.streaming for item in architecture.plan.layers):
            equal(streamed(model.eval(), given), model(given))
        assert any(name in architecture.draw() for name in ("choose", "TokenLoop", "DynamicDrop", "DynamicChunks",
                                                            "WordChunks"))


# -- compute that ran --------------------------------------------------------------------------------------------------

def test_measured_compute_is_the_expected_where_nothing_depends_on_the_input():
    for body in (TWO, bp.Routed(TWO, 0.5), bp.Looped(TWO, bp.RoutedLoop((1.0, 0.5)))):
        found = bp.measured_macs(one((body,) if not isinstance(body, tuple) else body).build(), [ids(2), ids(3)])
        assert found.tokens == 65 and found.share == pytest.approx(1, rel=1e-9)


def test_measured_compute_falls_with_what_is_passed_by():
    model = built((bp.GatedDepth(TWO),))
    full = bp.measured_macs(put(model, **{"0.out": 0.0, "out_bias": 1.0}), [ids()])
    none = bp.measured_macs(put(model, **{"0.out": 0.0, "out_bias": -1.0}), [ids()])
    assert full.share == pytest.approx(1) and none.macs < 0.5 * full.macs and not model.training
    routed = built((bp.Routed(TWO, capacity=0.5, choose="threshold"),))
    put(routed, **{"router.weight": 0.0})
    assert bp.measured_macs(routed, [ids()]).share < 0.6
    with pytest.raises(ValueError, match="at least one batch"):
        bp.measured_macs(routed, [])


def test_measured_compute_is_an_objective():
    from bodyplan.evaluators.objectives import resolve

    class Held:
        def num_batches(self, split):
            return 2

        def batch(self, split, step, seed):
            return type("Pair", (), {"inputs": ids(seed=step)})

    architecture = one(TWO)
    objective = resolve("measured_macs", Held())
    assert objective.evaluate(architecture, architecture.build()) == pytest.approx(architecture.cost(13).macs / 13)
    with pytest.raises(ValueError, match="give task="):
        resolve("measured_macs").evaluate(architecture, architecture.build())


# -- breadth instead of depth ------------------------------------------------------------------------------------------

def test_wide_attention_holds_the_heads_of_the_network_and_slides_its_aspect():
    def wide(layers):
        return bp.Stack(bp.repeat(bp.Block(mixer=bp.Attention(heads=12 // layers, head_dim=8), channel=bp.MLP()), layers))

    aspects = space(bp.choice(*[wide(n) for n in (1, 2, 3, 4, 6, 12)]), width=16)
    found = [aspects.architecture(genome) for genome in aspects.enumerate()]
    assert len(found) == 6
    heads = [[op.heads for _, op in a.modules if isinstance(op, bp.Attention)] for a in found]
    assert all(sum(h) == 12 for h in heads) and sorted(map(len, heads)) == [1, 2, 3, 4, 6, 12]
    attention = {sum(p.numel for n, p in a.parameters.items() if ".mixer.op." in n) for a in found}
    total = [a.cost().parameters for a in sorted(found, key=lambda a: len(a.modules))]
    assert len(attention) == 1 and total == sorted(total)


# -- what is refused ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("body", "words"), [
    (bp.Looped(TWO, bp.IterationEncoding(0)), "times must be at least 1"),
    (bp.Looped(TWO, bp.HyperLoop(2, rate=1)), "rate is 2 or more"),
    (bp.Looped(TWO, bp.RoutedLoop((0.5, 1.0))), "no more tokens than the one before"),
    (bp.Looped(TWO, bp.RoutedLoop((1.5,))), "above 0 and up to 1"),
    (bp.Looped(TWO, bp.RoutedLoop(adds="all")), "adds is"),
    (bp.Looped(TWO, bp.TokenLoop(2, expected=(1.0,))), "a share for each"),
    (bp.Looped(TWO, bp.InnerThinking(2, capacity=0)), "capacity is a share"),
    (bp.Looped(TWO, bp.SlicedLoop((0, 2))), "at least 1 per pass"),
    (bp.Looped(TWO, bp.SlicedLoop(ratio=0)), "ratio must be positive"),
    (bp.Looped(TWO, bp.VisitOrder(reuse=(0,))), "at least once"),
    (bp.Looped(TWO, bp.VisitOrder(reuse=(1,), order=(0,))), "without reuse"),
    (bp.Looped(TWO, "twice"), "recursion must be"),
    (bp.Routed(TWO, capacity=0), "capacity is a share"),
    (bp.Routed(TWO, choose="random"), "choose is one of"),
    (bp.Routed(TWO, weight="square"), "weight is one of"),
    (bp.GatedDepth(TWO, scope="token"), "scope is"),
    (bp.GatedDepth(TWO, hidden=0), "hidden is at least 1"),
    (bp.EarlyExit(TWO, exits=(2,)), "before the last layer"),
    (bp.EarlyExit(THREE, exits=(2, 1)), "growing from at least 1"),
    (bp.EarlyExit(THREE, exits=(1, 2), adapters=(FIRST,)), "an adapter for each exit"),
    (bp.EarlyExit(TWO, leave=3), "leave is one of"),
])
def test_what_cannot_be_built_is_refused(body, words):
    with pytest.raises((ValueError, TypeError), match=words):
        space(body)


def test_losses_say_which_layers_they_are_about():
    plain = built(TWO)
    for loss, macro in ((bp.exit_logits, "EarlyExit"), (bp.routing_loss, "Routed"), (bp.mean_gate, "GatedDepth")):
        with pytest.raises(ValueError, match=f"about {macro}"):
            loss(plain, ids())
