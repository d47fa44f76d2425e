"""What a network of another architecture inherits: the function where it only grows, most of it where it shrinks."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.space.conversions.inheriting import aligned
from bodyplan.space.macros.stack import Stack
from toy_models import IDS, built, layer, loss_of, train_on, trained

MAMBA = bp.Mamba2(state=8, head_dim=8)
FIXED = bp.Attention(heads=4, head_dim=4)


def start(before, after, **more):
    """A trained model of some layers, and the one of other layers that inherits from it."""
    model = trained(*before, steps=30)
    return model, bp.inherited(model, built(*after, **more).architecture)


def block(mixer=FIXED, channel=None, **more):
    return bp.Block(mixer=mixer, channel=bp.SwiGLU(ratio=2) if channel is None else channel, **more)


SAME = {
    "nothing": ([block()], [block()]),
    "a layer at the end": ([block()], [block(), block()]),
    "a layer in the middle": ([block(), block(bp.GatedDeltaNet(heads=2))],
                              [block(), block(MAMBA), block(bp.GatedDeltaNet(heads=2))]),
    "a wider channel mixer": ([block()], [block(channel=bp.SwiGLU(ratio=4))]),
    "a wider multi-layer perceptron": ([block(channel=bp.MLP(ratio=1))], [block(channel=bp.MLP(ratio=3))]),
    "more heads": ([block()], [block(bp.Attention(heads=6, head_dim=4))]),
    "more key/value heads": ([block(bp.Attention(heads=4, kv_heads=2))], [block(bp.Attention(heads=4))]),
    "a mixture with every head open": ([block()], [block(bp.MixtureOfHeads(heads=4, shared_heads=1, top_k=3))]),
    "gates within the window": ([block()], [block(bp.Liger(heads=4, head_dim=4, window=16, mix=0.0))]),
    "a channel mixer where there was none": ([bp.Block(mixer=FIXED)], [block()]),
    "a mixer where there was none": ([bp.Block(channel=bp.MLP())], [bp.Block(mixer=FIXED, channel=bp.MLP())]),
    "more layers of a stack": ([Stack((block(), block()))], [Stack((block(), block(), block()))]),
}


@pytest.mark.parametrize("case", SAME)
def test_a_network_that_grows_computes_what_it_did(case):
    model, ours = start(*SAME[case])
    assert bp.difference(model, ours, IDS) < 1e-6
    torch.testing.assert_close(ours.eval()(IDS), model(IDS), rtol=1e-4, atol=1e-4)


def test_what_grew_is_drawn_and_not_dead():
    _, ours = start([block()], [block(channel=bp.SwiGLU(ratio=4)), block(bp.GatedDeltaNet(heads=2), bp.MLP())])
    grown = ours.layers[0].channel.op
    assert grown.up.weight[32:].all() and not grown.down.weight[:, 32:].any() and grown.down.weight[:, :32].all()
    ours.train()(IDS).square().mean().backward()
    assert grown.down.weight.grad[:, 32:].abs().max() > 0 and ours.layers[1].mixer.op.out.weight.grad.abs().max() > 0


def test_what_shrinks_keeps_its_leading_part():
    model, ours = start([block(channel=bp.SwiGLU(ratio=4))], [block(bp.Attention(heads=2, head_dim=4))])
    old, new = model.layers[0], ours.layers[0]
    assert torch.equal(new.mixer.op.query.weight, old.mixer.op.query.weight[:8])
    assert torch.equal(new.mixer.op.out.weight, old.mixer.op.out.weight[:, :8])
    assert torch.equal(new.channel.op.up.weight, old.channel.op.up.weight[:32])
    assert torch.equal(new.channel.op.down.weight, old.channel.op.down.weight[:, :32])
    assert torch.equal(ours.embed.weight, model.embed.weight)


def test_inheritance_of_converted_heads_is_the_conversion():
    model, ours = start([block()], [block(bp.Attention(heads=4, head_dim=4, kv_heads=2))])
    assert bp.difference(ours, bp.grouped_heads(model, 2), IDS) < 1e-6
    model, ours = start([block()], [block(bp.MixtureOfHeads(heads=4, head_dim=4, shared_heads=1, top_k=1))])
    assert bp.difference(ours, bp.routed_heads(model, 1, 1), IDS) < 1e-6
    model, ours = start([block()], [block(bp.Liger(heads=4, head_dim=4, window=4))])
    assert bp.difference(ours, bp.linearised(model, 4), IDS) < 1e-6


def test_a_layer_taken_out_leaves_the_others_theirs():
    others = [block(bp.GatedDeltaNet(heads=2)), block(MAMBA), block()]
    model, ours = start(others, [others[0], others[2]])
    assert bp.difference(ours, bp.dropped_layers(model, 1, 2), IDS) < 1e-6


def test_an_operator_without_a_counterpart_starts_silent():
    model, ours = start([block()], [block(MAMBA)])
    x = torch.randn(2, 5, 16)
    assert torch.equal(ours.layers[0].mixer(x), x)
    assert torch.equal(ours.layers[0].channel.op.down.weight, model.layers[0].channel.op.down.weight)


def test_other_widths_take_what_both_have():
    model = trained(block(), steps=10)
    for width in (8, 24):
        ours = bp.inherited(model, built(block(), width=width).architecture)
        least = min(width, 16)
        assert torch.equal(ours.embed.weight[:, :least], model.embed.weight[:, :least])
        assert torch.equal(ours.layers[0].mixer.op.query.weight[:, :least], model.layers[0].mixer.op.query.weight[:, :least])
        assert torch.isfinite(ours(IDS)).all()


def test_layers_are_aligned_by_the_cheapest_edits():
    a, b, c = block(), block(MAMBA), block(bp.GatedDeltaNet(heads=2), bp.MLP())
    near = block(bp.Attention(heads=4, head_dim=4, kv_heads=1))
    assert aligned([a, b, c], [a, c]) == {0: 0, 1: 2}
    assert aligned([a, c], [a, b, c]) == {0: 0, 2: 1}
    assert aligned([a, b], [near, b]) == {0: 0, 1: 1}
    assert aligned([c], [bp.Block(mixer=MAMBA)]) == {}
    assert set(aligned([a] * 3, [a] * 5).values()) == {0, 1, 2}


def test_a_child_of_a_search_starts_below_a_fresh_one():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=bp.choice(8, 16), head=bp.LanguageHead(tied=True),
                     body=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=4, kv_heads=bp.choice(1, 2, 4), head_dim=4),
                                 bp.MixtureOfHeads(heads=4, shared_heads=1, top_k=bp.choice(2, 3), head_dim=4),
                                 bp.Liger(heads=4, head_dim=4, window=8), bp.GatedDeltaNet(heads=2), bp.Identity()),
                 channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2, 3)), bp.MLP(ratio=2), bp.Identity())),
        times=bp.integer(2, 5)))
    rng, better = random.Random(3), 0
    genome = space.largest()
    model = space.architecture(genome).build(1)
    train_on(model, 60)
    for turn in range(12):
        child = space.architecture(space.mutate(genome, rng))
        ours = bp.inherited(model, child, seed=turn)
        assert torch.isfinite(ours(IDS)).all()
        better += loss_of(ours) < loss_of(child.build(turn))
    assert better >= 11


def test_only_what_was_built_from_an_architecture_hands_on():
    with pytest.raises(ValueError, match="not built from an architecture"):
        bp.inherited(torch.nn.Linear(2, 2), built(layer()).architecture)
