"""Trained networks as others that start from their weights: what each equals, how far it moves, and what is refused."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.stack import Stack
from toy_models import IDS, built, layer, loss_of, train_on, trained

# -- grouped key/value heads ---------------------------------------------------------------------------------------------

def agreeing(model, kv_heads):
    """The model with the keys and values of the heads of each group made equal."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("key.weight", "value.weight")):
                rows = tensor.unflatten(0, (kv_heads, -1, 4))
                rows.copy_(rows[:, :1].expand_as(rows))
    return model


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_compute_the_same_where_heads_agree(kv_heads):
    model = agreeing(trained(layer(heads=8), layer(heads=8, qk_norm=True), steps=5), kv_heads)
    ours = bp.grouped_heads(model, kv_heads)
    assert bp.difference(model, ours, IDS) < 1e-12
    assert [op.kv_heads for _, op in ours.architecture.modules if isinstance(op, bp.Attention)] == [kv_heads, kv_heads]
    assert ours.architecture.cost(64).state_bytes * 8 == model.architecture.cost(64).state_bytes * kv_heads


def test_grouped_heads_are_means_of_neighbours_and_cost_loss():
    model = trained(layer())
    ours = bp.grouped_heads(model, 2)
    before, after = model.layers[0].mixer.op, ours.layers[0].mixer.op
    for old, new in ((before.key.weight, after.key.weight), (before.value.weight, after.value.weight)):
        for head in range(2):
            wanted = (old[8 * head:8 * head + 4] + old[8 * head + 4:8 * head + 8]) / 2
            torch.testing.assert_close(new[4 * head:4 * head + 4], wanted)
    assert torch.equal(before.query.weight, after.query.weight)
    assert loss_of(ours) > loss_of(model) and 0.01 < bp.difference(model, ours, IDS) < 1
    state = ours.init_state(3)
    steps = []
    for ids in IDS.split(1, 1):
        logits, state = ours.step(ids, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), ours(IDS), rtol=1e-4, atol=1e-5)


def test_grouping_in_steps_is_grouping_at_once():
    model = trained(layer(heads=8), steps=3)
    assert bp.difference(bp.grouped_heads(bp.grouped_heads(model, 4), 1), bp.grouped_heads(model, 1), IDS) < 1e-6


def test_grouped_heads_reach_options_and_macros_and_chosen_layers():
    inner = layer(position="transformer_xl", persistent=2, qkv_conv=3)
    model = trained(inner, Stack((layer(), layer()), bp.ValueResidual()), layer(), steps=2)
    ours = bp.grouped_heads(model, 2, layers=[0, 1])
    found = [(op.kv_heads, op.persistent) for _, op in ours.architecture.modules if isinstance(op, bp.Attention)]
    assert found == [(2, 2), (2, 0), (2, 0), (None, 0)]
    assert torch.isfinite(ours(IDS)).all()


# -- heads that tokens choose --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"window": 3}, {"rotary": False}, {"bidirectional": True}])
def test_a_mixture_of_heads_with_every_head_open_is_the_attention(options):
    model = trained(layer(**options), steps=10)
    ours = bp.routed_heads(model, shared_heads=1, top_k=3)
    assert bp.difference(model, ours, IDS) < 1e-12
    assert isinstance(ours.architecture.plan.layers[0].mixer, bp.MixtureOfHeads)
    torch.testing.assert_close(ours(IDS), model(IDS), rtol=1e-4, atol=1e-5)


def test_a_mixture_of_heads_orders_heads_without_a_change():
    model = trained(layer(), layer(kv_heads=2), steps=20)
    with torch.no_grad():
        model.layers[0].mixer.op.out.weight[:, :8] *= 0.01
    ours = bp.routed_heads(model, 1, 3, inputs=IDS)
    assert bp.difference(model, ours, IDS) < 1e-12
    last = ours.layers[0].mixer.op.out.weight[:, 8:]
    assert last.abs().max() < 0.1 * ours.layers[0].mixer.op.out.weight[:, :8].abs().max()


def test_a_mixture_of_heads_with_fewer_loses_less_when_the_largest_stay():
    model = trained(layer(heads=4), steps=80)
    with torch.no_grad():
        model.layers[0].mixer.op.out.weight[:, :8] *= 1e-3
    plain, ordered = bp.routed_heads(model, 1, 1), bp.routed_heads(model, 1, 1, inputs=IDS)
    assert loss_of(model) < loss_of(ordered) + 0.01 < loss_of(plain)
    before = loss_of(plain)
    train_on(plain, 10)
    assert loss_of(plain) < before and plain.layers[0].mixer.op.route.weight.abs().max() > 0


# -- attention as a gated recurrence -------------------------------------------------------------------------------------

def test_liger_without_its_recurrence_is_attention_within_its_window():
    model = trained(layer(), layer(kv_heads=2), steps=20)
    ours = bp.linearised(model, window=11, mix=0.0)
    assert bp.difference(model, ours, IDS) < 1e-12
    longer = torch.randint(32, (2, 30), generator=torch.Generator().manual_seed(3))
    assert bp.difference(model, ours, longer) > 1e-3


def test_liger_keeps_every_parameter_and_recovers_by_training():
    model = trained(layer(), steps=100)
    ours = bp.linearised(model, window=4)
    assert all(torch.equal(p, dict(ours.named_parameters())[name]) for name, p in model.named_parameters())
    before, fresh = loss_of(ours), built(*ours.architecture.plan.layers)
    assert loss_of(model) < before < loss_of(fresh)
    assert ours.architecture.cost(4096).state_bytes < model.architecture.cost(4096).state_bytes / 50


# -- what is refused -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("convert", "model", "words"), [
    (lambda m: bp.grouped_heads(m, 3), lambda: built(layer()), "must divide the key/value heads there are: got 3 and 4"),
    (lambda m: bp.grouped_heads(m, 0), lambda: built(layer()), "must divide the key/value heads there are: got 0 and 4"),
    (lambda m: bp.grouped_heads(m, 4), lambda: built(layer()), "needs attention with more than 4 key/value heads"),
    (lambda m: bp.grouped_heads(m, 2, layers=[4]), lambda: built(layer()), "counted from 0 to 0: got 4"),
    (lambda m: bp.grouped_heads(m, 2), lambda: built(layer(), recursion=bp.Loop(2, lora_rank=1)), "got lora_rank"),
    (lambda m: bp.grouped_heads(m, 2), lambda: torch.nn.Linear(2, 2), "not built from an architecture"),
    (lambda m: bp.routed_heads(m, 1, 2), lambda: built(layer(qk_norm=True)), "needs plain attention"),
    (lambda m: bp.routed_heads(m, 2, 4), lambda: built(layer()), "must not exceed heads"),
    (lambda m: bp.linearised(m), lambda: built(layer(bidirectional=True)), "needs causal attention"),
    (lambda m: bp.linearised(m, mix=2), lambda: built(layer()), "mix must be a number from 0 to 1")])
def test_what_cannot_be_converted_is_refused(convert, model, words):
    with pytest.raises(ValueError, match=words):
        convert(model())
