"""Attention over space, over time and over both: orders of blocks, and what ties it to full attention."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.testing import built
from exported_folders import assert_equal_to_the_module, export_all, judged

torch.set_num_threads(1)


def tokens(length, width=16):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def alike(config, other):
    """Both modules with the same weights."""
    first, second = built(config, 16, dtype=torch.float64), built(other, 16, dtype=torch.float64)
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("rotary", [False, True])
def test_over_both_it_is_attention_that_looks_both_ways(rotary):
    ours, full = alike(bp.SpaceTimeAttention(heads=2, over="both", rotary=rotary),
                       bp.Attention(heads=2, bidirectional=True, rotary=rotary))
    torch.testing.assert_close(ours(tokens(23)), full(tokens(23)))


def test_one_frame_and_one_place_are_full_attention():
    for over, places in (("space", 40), ("time", 1)):
        ours, full = alike(bp.SpaceTimeAttention(heads=2, places=places, over=over), bp.Attention(
            heads=2, bidirectional=True, rotary=False))
        torch.testing.assert_close(ours(tokens(23)), full(tokens(23)))


def test_over_space_in_one_layout_is_over_time_in_the_other():
    space, time = alike(bp.SpaceTimeAttention(heads=2, places=4, rotary=True),
                        bp.SpaceTimeAttention(heads=2, places=6, over="time", rotary=True))
    x = tokens(24)
    turned = x.view(2, 6, 4, 16).transpose(1, 2).flatten(1, 2)
    wanted = space(x).view(2, 6, 4, 16).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(time(turned), wanted)


def test_the_papers_orders():
    assert bp.space_time_order("F", 3) == ("both",) * 3
    assert bp.space_time_order("ST", depth=2) == ("space", "space", "time", "time")
    assert bp.space_time_order("TSST", 2) == ("time", "space", "space", "time") * 2
    with pytest.raises(ValueError, match="pattern is made of S, T and F: got 'TX'"):
        bp.space_time_order("TX")


def network(pattern):
    """Frames of 7 by 7 patches, which an image of 28 by 28 pixels stands for."""
    return bp.Space(embed=bp.PatchEmbedding(patch=4, image=28), width=16, head=bp.ClassifierHead(classes=5), body=tuple(
        bp.Block(mixer=bp.SpaceTimeAttention(heads=2, places=7, over=over), channel=bp.SwiGLU(ratio=1))
        for over in bp.space_time_order(pattern)))


def test_interleaved_blocks_multiply_less_than_full_ones():
    full, mixed = (network(pattern).sample(0).cost() for pattern in ("FFFF", "TSST"))
    assert mixed.parameters == full.parameters and mixed.macs < full.macs


def test_an_exported_folder_attends_as_the_module_does(tmp_path):
    root = export_all(tmp_path, {"orders": network("TSF").sample(0)})
    assert_equal_to_the_module(judged(root, ["orders"])["orders"], root, "orders")


@pytest.mark.parametrize("over", ["space", "time", "both"])
@pytest.mark.parametrize("length", [3, 24, 26])
def test_two_counters_of_multiply_adds_agree(over, length):
    module, x = built(bp.SpaceTimeAttention(heads=2, places=4, over=over), 16).eval(), tokens(length).float()
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9)


@pytest.mark.parametrize(("fields", "text"), [({"over": "places"}, "unknown over"), ({"places": 0}, "places must be"),
                                              ({"heads": 3}, "heads must divide"),
                                              ({"head_dim": 3}, "head_dim must be even")])
def test_numbers_that_cannot_be_built_are_named(fields, text):
    with pytest.raises(ValueError, match=f"{text}.*here"):
        bp.SpaceTimeAttention(**{"heads": 2, **fields}).check(16, "here")
