"""A motif carried to another size: which layers stand where, what grows with the width, and what cannot be."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.stage import Stage
from bodyplan.space.scaling.scaling import layer_order
from hypothesis import given, settings
from hypothesis import strategies as st

HYBRID = (bp.Block(mixer=bp.Attention(heads=2, kv_heads=1), channel=bp.SwiGLU(ratio=2)),
          bp.Block(mixer=bp.Mamba2(state=16, head_dim=32)),
          bp.Block(mixer=bp.GatedDeltaNet(heads=2, head_dim=16), channel=bp.MLP(ratio=2)))


def architecture(*body, width=64, tied=True, **fields):
    return bp.Space(embed=bp.TokenEmbedding(vocab=64), width=width, body=body or HYBRID, head=bp.LanguageHead(tied=tied),
                    **fields).sample(0)


def mixers(scaled):
    return [type(layer.mixer).__name__[0] for layer in scaled.plan.layers]


@pytest.mark.parametrize("pattern, depth, order", [
    ("stack", 6, "AMGAMG"), ("stretch", 6, "AAMMGG"),
    ("stack", 7, "AMGAMGA"), ("stretch", 7, "AAAMMGG"),
    ("stack", 2, "AM"), ("stretch", 2, "AM"), ("stretch", 1, "A")])
def test_depth_repeats_the_layers_as_the_pattern_says(pattern, depth, order):
    assert mixers(architecture().scale(depth=depth, pattern=pattern)) == list(order)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40))
def test_patterns_keep_order_and_share_depth_evenly(layers, depth):
    stack, stretch = layer_order(layers, depth, "stack"), layer_order(layers, depth, "stretch")
    assert len(stack) == len(stretch) == depth
    assert all(b == (a + 1) % layers for a, b in zip(stack, stack[1:], strict=False)) and stack[0] == 0
    assert stretch == sorted(stretch)
    uses = [stretch.count(layer) for layer in range(layers)]
    assert max(uses) - min(uses) <= 1


def test_width_adds_heads_of_the_same_size():
    small, large = architecture(), architecture().scale(width=256)
    attention, mamba, delta = (layer.mixer for layer in large.plan.layers)
    assert (attention.heads, attention.kv_heads, attention.sizes(256)[2]) == (8, 4, small.plan.layers[0].mixer.sizes(64)[2])
    assert (mamba.state, mamba.head_dim, mamba.heads(256)) == (16, 32, 4 * small.plan.layers[1].mixer.heads(64))
    assert (delta.heads, delta.sizes(256)) == (8, small.plan.layers[2].mixer.sizes(64))
    assert large.parameters["layers.0.channel.op.up.weight"].shape == (512, 256)
    assert large.plan.layers[2].channel.ratio == 2


def test_a_scaled_architecture_is_a_space_of_one_and_builds():
    large = architecture().scale(width=128, depth=5)
    assert large.space.size() == 1 and large.space.sample(3).hash == large.hash
    model = large.build(seed=0)
    assert sum(p.numel() for p in model.parameters()) == large.cost().parameters
    assert torch.isfinite(model(torch.zeros(1, 4, dtype=torch.long))).all()
    assert large.hash == architecture(*large.plan.layers, width=128).hash


def test_scaling_by_nothing_changes_nothing():
    small = architecture()
    assert small.scale().hash == small.hash == small.scale(width=64, depth=3, pattern="stretch").hash


def test_scaling_in_two_steps_is_scaling_in_one():
    small = architecture()
    assert small.scale(width=128).scale(width=256, depth=6).hash == small.scale(width=256, depth=6).hash


def test_a_recursion_keeps_its_iterations():
    looped = architecture(recursion=bp.Loop(times=3, lora_rank=2)).scale(width=128, depth=6)
    assert looped.plan.recursion == bp.Loop(times=3, lora_rank=2) and len(looped.plan.layers) == 6


def test_layers_inside_macros_grow_in_proportion():
    middle = Looped(layers=(HYBRID[0], HYBRID[2]), recursion=bp.Loop(times=2))
    nested = architecture(HYBRID[1], middle, HYBRID[0]).scale(depth=8, pattern="stretch")
    first, second, inner, *after = nested.plan.layers
    assert first == second == HYBRID[1] and after == [HYBRID[0]] * 2
    assert inner.layers == (HYBRID[0], HYBRID[0], HYBRID[2], HYBRID[2])
    assert inner.recursion == middle.recursion


def test_stages_widen_with_the_stream():
    stages = architecture(HYBRID[0], Stage(layers=(HYBRID[0],), width=128), tied=False)
    pyramid = stages.scale(width=128, depth=4)
    first, second, stage = pyramid.plan.layers
    assert (stage.width, len(stage.layers), stage.layers[0].mixer.heads) == (256, 2, 4)
    assert pyramid.parameters["layers.2.resample.weight"].shape == (256, 128, 1)
    assert first == second


@pytest.mark.parametrize("wanted, text", [
    ({"width": 80}, r"come out whole at layers\[0\].mixer.heads: got 2 times 5/4; use a width that is a multiple of 1/2"),
    ({"width": 96}, r"layers\[0\].mixer.kv_heads: got 1 times 3/2"),
    ({"width": 0}, "width must be a positive int: got 0"),
    ({"width": 64.0}, "width must be a positive int: got 64.0"),
    ({"depth": True}, "depth must be a positive int: got True"),
    ({"pattern": "fold"}, "pattern is 'stack' or 'stretch': got 'fold'")])
def test_what_cannot_be_scaled_is_named(wanted, text):
    with pytest.raises(ValueError, match=text):
        architecture().scale(**wanted)


def test_a_nested_run_that_does_not_come_out_whole_is_named():
    nested = architecture(HYBRID[1], Looped(layers=(HYBRID[0], HYBRID[2])))
    with pytest.raises(ValueError, match=r"come out whole at layers: got 1 layers times 4/3; use a multiple of the present"):
        nested.scale(depth=4)


def test_an_empty_body_has_nothing_to_scale():
    with pytest.raises(ValueError, match="this architecture has none"):
        architecture(bp.Block()).scale(width=128)
