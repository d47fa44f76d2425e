"""Drawings say what is there: operators, numbers, loops, differences; and nothing that breaks the page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from bodyplan.space.drawing import diff_text, draw_svg, draw_text
from bodyplan.space.operator import Operator
from bodyplan.space.operators.attention import Attention
from bodyplan.space.operators.identity import Identity
from bodyplan.space.operators.rmsnorm import RMSNorm
from bodyplan.space.plan import Block, Loop, Once, Plan


@dataclass(frozen=True)
class _Embedding(Operator):
    vocab: int = 256


@dataclass(frozen=True)
class _Head(Operator):
    tied: bool = True


@dataclass(frozen=True)
class _Scan(Operator):
    state: Any = 16
    note: str | None = None
    decay: float = 0.5


@dataclass(frozen=True)
class _Feed(Operator):
    ratio: Any = 2


ATTENTION = Attention(heads=4, kv_heads=2, window=64)
LAYERS = (Block(ATTENTION, _Feed(3)), Block(_Scan(), Identity()), Block(_Scan(32), _Feed()))
PLAN = Plan(_Embedding(), 96, LAYERS, Loop(3, 4), _Head(), RMSNorm())
COUNTS = {"embed.weight": 24576, "layers.0.mixer.norm.weight": 96, "layers.0.mixer.op.query.weight": 9216,
          "layers.2.channel.op.up.weight": 18432, "norm.weight": 96,
          "lora.layers_0_mixer_op_query_weight.A": 384}
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_text_has_one_line_per_layer_inside_the_loop():
    assert draw_text(PLAN).splitlines() == [
        "  _Embedding(vocab=256) -> width 96",
        "┌ x3, LoRA rank 4",
        "│  0 Attention(heads=4, kv_heads=2, window=64)   _Feed(ratio=3)",
        "│  1 _Scan(state=16)                             -",
        "│  2 _Scan(state=32)                             _Feed(ratio=2)",
        "└",
        "  RMSNorm",
        "  _Head, tied to the embedding",
    ]


def test_what_is_as_expected_is_left_out():
    @dataclass(frozen=True)
    class _Gated(Operator):
        factory: Any = field(compare=False, default=None)
        heads: Any = 2
        gate: bool = True
        rate: float = 0.5

    def line(operator: Operator) -> str:
        return draw_text(replace(PLAN, layers=(Block(operator),))).splitlines()[2].split("   ")[0]

    assert line(_Gated(factory=print)) == "│  0 _Gated(heads=2)"
    assert line(_Gated(gate=False, rate=0.25)) == "│  0 _Gated(heads=2, gate=False, rate=0.25)"


def test_text_adds_up_parameters():
    lines = draw_text(PLAN, COUNTS).splitlines()
    ends = [line.split()[-1] for line in lines]
    assert [ends[i] for i in (0, 1, 2, 3, 4)] == ["24,576", "384", "9,312", "0", "18,432"]
    assert lines[-1].split() == ["parameters", f"{sum(COUNTS.values()):,}"]


def test_a_body_that_runs_once_has_no_bracket():
    for recursion in (Once(), Loop(1)):
        assert "┌" not in draw_text(replace(PLAN, recursion=recursion))
        assert not any("×" in text for text in words(draw_svg(replace(PLAN, recursion=recursion))))


def test_svg_shows_every_operator_loop_and_count():
    texts = words(draw_svg(PLAN, COUNTS))
    total = f"{sum(COUNTS.values()):,}"
    for expected in ("Attentionheads=4, kv_heads=2, window=64", "_Scanstate=32", "_Feedratio=3",
                     "_Headtied to the embedding", "×3", "LoRA rank 4", "384", "9,312",
                     f"3 layers, width 96, {total} parameters"):
        assert expected in texts
    assert sum(text.startswith("_Feed") for text in texts) == 2


def test_svg_is_self_contained_and_escapes_what_users_write():
    hostile = _Scan(note='</text><script>alert("x")</script> & more')
    svg = draw_svg(replace(PLAN, layers=(Block(hostile, Identity()),)), title='<b>"mine" & yours</b>')
    root = ElementTree.fromstring(svg)
    assert root.find(f".//{SVG}script") is None
    assert '<b>"mine" & yours</b>' in words(svg)
    assert svg.count("http") == 1 and "url(" not in svg and "@import" not in svg


def test_svg_boxes_stay_inside_the_picture_and_do_not_overlap():
    root = ElementTree.fromstring(draw_svg(PLAN, COUNTS))
    boxes = [group.find(f"{SVG}rect") for group in root.iter(f"{SVG}g")]
    spans = sorted((float(b.get("y")), float(b.get("y")) + float(b.get("height"))) for b in boxes)
    assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] < float(root.get("height"))
    assert all(float(b.get("x")) + float(b.get("width")) < float(root.get("width")) for b in boxes)


def test_long_details_are_cut_and_kept_in_full_as_a_tooltip():
    long = _Scan(note="a long remark " * 20)
    svg = draw_svg(replace(PLAN, layers=(Block(long, Identity()),)))
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert any("a long remark " * 20 in title for title in titles)
    assert max(map(len, words(svg))) < 90


def test_a_network_without_layers_can_be_drawn():
    empty = replace(PLAN, layers=())
    assert "┌" not in draw_text(empty)
    assert "0 layers, width 96" in words(draw_svg(empty))


def test_layers_with_another_norm_say_so():
    own = replace(PLAN, layers=(Block(ATTENTION, _Feed(), RMSNorm(eps=1e-3)),))
    assert "norm RMSNorm(eps=0.001)" in draw_text(own)
    assert any("norm RMSNorm(eps=0.001)" in text for text in words(draw_svg(own)))


@pytest.mark.parametrize(("changes", "lines"), [
    ({}, ["no difference"]),
    ({"width": 128}, ["width: 96 -> 128"]),
    ({"recursion": Once()}, ["recursion: Loop(times=3, lora_rank=4) -> Once"]),
    ({"head": _Head(False)}, ["head _Head: tied True -> False"]),
    ({"layers": (Block(replace(ATTENTION, heads=2, window=None), _Feed(3)), *LAYERS[1:])},
     ["layer 0 mixer Attention: heads 4 -> 2, window 64 -> None"]),
    ({"layers": (LAYERS[0], Block(_Scan(), _Feed()), LAYERS[2])},
     ["layer 1 channel: Identity -> _Feed(ratio=2)"]),
    ({"layers": (Block(_Scan(8), _Feed()), *LAYERS)}, ["layer 0 added: _Scan(state=8) + _Feed(ratio=2)"]),
    ({"layers": LAYERS[:2]}, ["layer 2 removed: _Scan(state=32) + _Feed(ratio=2)"]),
    ({"layers": (LAYERS[1], Block(_Scan(64), _Feed()))},
     ["layer 0 removed: Attention(heads=4, kv_heads=2, window=64) + _Feed(ratio=3)",
      "layer 2 (now 1) mixer _Scan: state 32 -> 64"]),
])
def test_difference_names_what_was_decided_otherwise(changes, lines):
    assert diff_text(PLAN, replace(PLAN, **changes)).splitlines() == lines


def test_difference_of_equal_networks_says_that_they_are_one():
    once = replace(PLAN, recursion=Once())
    text = diff_text(once, replace(PLAN, recursion=Loop(1)))
    assert text.splitlines() == ["recursion: Once -> Loop(times=1, lora_rank=0)",
                                 "One network: these decisions make no difference to the graph."]
