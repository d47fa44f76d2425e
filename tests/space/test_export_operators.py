"""Exported folders of every operator, of macros inside macros, and of a macro of one's own."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import bodyplan as bp
import pytest
import torch
from bodyplan.space.export.folder import _example as example_of
from exported_folders import assert_equal_to_the_module, assert_tidy, export_all, judged, model_text
from operator_examples import EXAMPLES

# One process writes all folders, another judges them, which is most of the time of every run.
pytestmark = [pytest.mark.contract, pytest.mark.timeout(900)]

TEXT = {"embed": bp.TokenEmbedding(vocab=32), "head": bp.LanguageHead(tied=False)}
IMAGE = {"embed": bp.PatchEmbedding(patch=4, image=28, grid=True), "head": bp.ClassifierHead(classes=5)}
SERIES = {"embed": bp.VariateEmbedding(steps=12), "head": bp.ForecastHead(horizon=3)}
CONV = bp.Block(mixer=bp.ShortConv(kernel=3), channel=bp.SwiGLU(ratio=1))
CROSS = bp.Block(mixer=bp.CrossAttention(heads=2), channel=bp.SwiGLU(ratio=1))
LORA = bp.Loop(times=2, lora_rank=2)


def plain(width):
    return torch.nn.Linear(width, width)


def layer(heads=2, **options):
    return bp.Block(mixer=bp.Attention(heads=heads, **options), channel=bp.MLP(ratio=2))


# What the shared spaces leave out: macros in macros, and weights of one iteration around them.
NESTED = {
    "corrections around macros": (TEXT, (layer(), bp.Stack((layer(), CONV), bp.Ladder()), bp.Block(
        mixer=bp.Parallel(branches=(bp.Attention(heads=2), bp.MLP()), merge="gated"))), LORA),
    "a loop among shared keys": (TEXT, bp.Stack((layer(), bp.Looped((CONV,), LORA), layer(), layer()),
                                                bp.CrossLayerKV(3)), bp.Loop(times=2)),
    "units that are macros": (TEXT, bp.Stack((layer(), bp.Looped((CONV,), bp.Loop(2)), bp.Stack((layer(),), bp.Ladder())),
                                             bp.HyperConnections(3)), bp.Once()),
    "hand-overs in one another": (TEXT, bp.Stack((layer(), bp.Stack((layer(4),), bp.CrossLayerKV()), layer()),
                                                 bp.CrossLayerKV()), bp.Once()),
    "attention among shared keys": (TEXT, bp.Stack((
        layer(), bp.Block(mixer=bp.Parallel(branches=(bp.Attention(heads=4), bp.MLP()))),
        bp.Block(channel=bp.Attention(heads=4)), bp.Cell(edges=(bp.Attention(heads=4), bp.Identity(), bp.Identity())),
        layer()), bp.CrossLayerKV()), bp.Once()),
    "attention beside the memory among shared keys": (TEXT, bp.EncoderDecoder(
        encoder=layer(bidirectional=True), decoder=bp.Stack((
            layer(), bp.Block(mixer=bp.Parallel(branches=(bp.CrossAttention(heads=2), bp.Attention(heads=4)))),
            bp.Block(mixer=bp.CrossAttention(heads=2), channel=bp.CrossAttention(heads=4)),
            bp.Cell(edges=(bp.CrossAttention(heads=2), bp.Identity(), bp.Identity())), layer()), bp.CrossLayerKV())),
        bp.Once()),
    "an encoder and a decoder of stacks": (TEXT, bp.EncoderDecoder(
        encoder=bp.Stack((layer(bidirectional=True), CONV), bp.DenseAverage()),
        decoder=bp.Stack((layer(qk_norm=True), CROSS, layer(qk_norm=True)), bp.ValueResidual())), bp.Once()),
    "a decoder that keeps no state": (TEXT, bp.EncoderDecoder(encoder=layer(bidirectional=True), decoder=(
        layer(), bp.Block(mixer=bp.Custom(plain)), CROSS)), bp.Once()),
    "a decoder with corrections": (TEXT, bp.EncoderDecoder(encoder=layer(), decoder=(layer(), CROSS)), LORA),
    "branches in branches": (TEXT, bp.Block(
        mixer=bp.Parallel(branches=(bp.Parallel(branches=(bp.ShortConv(), bp.Zero())), bp.Attention(heads=2)),
                          merge="concat"),
        channel=bp.Parallel(branches=(bp.MLP(), bp.SwiGLU()))), bp.Once()),
    "a stream that not every layer shares": (TEXT, bp.Conditioned((
        bp.Block(mixer=bp.Attention(heads=2), norm=bp.AdaNorm()), bp.StreamNorm(), bp.Routed(layer()))), bp.Loop(2)),
    "corrections around what takes none of a stream": (TEXT, bp.Conditioned((
        bp.Block(mixer=bp.Attention(heads=2), norm=bp.AdaNorm()), bp.Looped((layer(), bp.StreamNorm()), LORA),
        bp.Looped((bp.Block(mixer=bp.Attention(heads=2), norm=bp.AdaNorm()), CONV), LORA))), bp.Once()),
    "variates that mix": (SERIES, (bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False)), bp.Block(
        mixer=bp.CrossViewAttention(heads=2, views=3), channel=bp.MLP(activation="sine"))), bp.Once()),
    "shared keys on a grid": (IMAGE, bp.Stack((layer(), bp.Block(mixer=bp.DepthwiseConv2d(kernel=3)), layer()),
                                              bp.CrossLayerKV()), bp.Once()),
    "a cell on a grid": (IMAGE, bp.Cell(edges=(bp.Conv2d(kernel=3), bp.Identity(), bp.MLP(ratio=1))), bp.Once()),
    "tokens of tokens pooled by attention": (
        {"embed": bp.TokensToToken(1, 20, (3, 3), (2, 2), token_dim=8), "head": bp.PooledHead(5, pool="attention")},
        layer(bidirectional=True), bp.Once()),
    "a compressed image pooled by powers": (
        {"embed": bp.CompressionStem(1, 16, 2, hidden=6, latent=8), "head": bp.PooledHead(5, pool="power", groups=4)},
        layer(bidirectional=True), bp.Once()),
    "a video": ({"embed": bp.TubeEmbedding(channels=1, image=16, frames=4, tube_kernel=3),
                 "head": bp.PooledHead(5, pool="max")},
                (bp.MultiscaleLayer(2, stride=2, frames=2, width=24), layer(bidirectional=True)), bp.Once()),
    "filtered positions and scores of places": (
        {"embed": bp.PatchEmbedding(4, 1, 16, grid=True, position="conv"), "head": bp.DenseHead(3, hidden=4, up=2)},
        bp.DensePrediction((layer(bidirectional=True), bp.Block(mixer=bp.LocalValueAttention(heads=2))), width=6, reads=2),
        bp.Once()),
    "branches on a grid": (IMAGE, bp.Block(
        mixer=bp.Parallel(branches=(bp.Pooling(), bp.Attention(heads=2)), merge="gated"),
        channel=bp.Parallel(branches=(bp.Pooling(), bp.Conv2d(kernel=3)))), bp.Once()),
}


def operators_at(width, *, streaming, kinds=("mixer", "channel")):
    """One block for every registered operator of these kinds, so that what is added later is exported here too."""
    blocks = []
    for examples in EXAMPLES.values():
        for operator, _ in examples[:1]:
            norm = operator if operator.kind == "norm" else bp.RMSNorm()
            mixer = CONV.mixer if operator.kind == "norm" else operator
            join = operator if operator.kind == "join" else bp.Add()
            mixer = CONV.mixer if operator.kind == "join" else mixer
            is_part = operator.kind in kinds and not getattr(operator, "reads_shared", False)
            if is_part and streaming == (operator.causal and operator.streaming):
                operator.check(width, "here")
                blocks.append(bp.Block(mixer=mixer, norm=norm, join=join))
    return tuple(blocks)


EVERY = {"operators that stream": (TEXT, True), "operators that look ahead": (TEXT, False),
         "operators on a grid": (IMAGE, False)}
AROUND = {"norms and joins that stream": True, "norms that look ahead": False}
CASES = [*NESTED, *EVERY, *AROUND]
STREAMING = ("corrections around macros", "a loop among shared keys", "units that are macros", "hand-overs in one another",
             "attention beside the memory among shared keys", "an encoder and a decoder of stacks",
             "a decoder with corrections", "attention among shared keys", "branches in branches", "operators that stream",
             "norms and joins that stream", "corrections around what takes none of a stream")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    found = {name: bp.Space(width=16, body=body, recursion=recursion, **ends).sample(0)
             for name, (ends, body, recursion) in NESTED.items()}
    for name, (ends, streaming) in EVERY.items():
        found[name] = bp.Space(width=32, body=operators_at(32, streaming=streaming), **ends).sample(0)
    for name, streaming in AROUND.items():
        found[name] = bp.Space(width=32, body=operators_at(32, streaming=streaming, kinds=("norm", "join")), **TEXT).sample(0)
    return export_all(tmp_path_factory.mktemp("operators"), found)


@pytest.fixture(scope="module")
def verdicts(exported):
    return judged(exported, CASES)


@pytest.mark.parametrize("case", CASES)
def test_without_the_package_it_computes_what_the_trained_module_does_bit_for_bit(case, verdicts, exported):
    assert_equal_to_the_module(verdicts[case], exported, case)
    assert verdicts[case]["steps"] == (case in STREAMING)


@pytest.mark.parametrize("case", CASES)
def test_the_model_file_is_plain_torch_and_tidy(case, exported):
    assert_tidy(model_text(exported, case))


def test_a_part_is_asked_at_run_time_only_where_parts_differ(exported):
    assert "getattr" not in model_text(exported, "hand-overs in one another").split("def sharing")[0]
    among = model_text(exported, "attention among shared keys")
    assert "x_BTD = sharing(layer, x_BTD, own)" in among, "a layer of another kind takes nothing"
    assert "shared" not in among.split("class ParallelBranches")[1].split("class SharingLayers")[0]
    assert "without_attention" not in model_text(exported, "hand-overs in one another")
    assert "def on_grid_sharing" in model_text(exported, "shared keys on a grid")
    both = model_text(exported, "branches on a grid").split("class ParallelBranches")[1].split("\nclass ")[0]
    assert "on_grid(branch, x_BTD, spatial)" in both
    wrapped = model_text(exported, "corrections around macros")
    assert "Stepping(layer)" in wrapped and "AdaptedLayer" not in wrapped


OWN = '''
from dataclasses import dataclass
from typing import Any, ClassVar

from bodyplan.space.axes import axis, param
from bodyplan.space.macros.base import Macro, Part
from bodyplan.space.macros.running import as_sequence, initial_state, step_part
from bodyplan.space.operator import Source
import torch
from torch import nn


class Halves(nn.Module):
    """Half of one part and half of the other, weighed per channel."""

    shares = True

    def __init__(self, first, second, width):
        super().__init__()
        self.first, self.second = first, second
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, shared=None):
        return self.weight * (as_sequence(self.first, x, True, shared) + as_sequence(self.second, x, True, shared)) / 2

    def init_state(self, batch, dtype=torch.float32, device=None):
        return [initial_state(part, batch, dtype, device) for part in (self.first, self.second)]

    def step(self, x, state, shared=None):
        a, one = step_part(self.first, x, state[0], True, shared)
        b, two = step_part(self.second, x, state[1], True, shared)
        return self.weight * (a + b) / 2, [one, two]


@dataclass(frozen=True)
class Half(Macro):
    """Two blocks side by side."""

    first: Any
    second: Any
    holds: ClassVar[tuple[str, ...]] = ("first", "second")
    streams: ClassVar[tuple[str, ...]] = ("first", "second")
    source: ClassVar[Source] = Source("(yours)", 2026)

    def axes(self, width):
        return {"weight": param(axis("width", width), share="own", init="ones")}

    def parts(self, width, length):
        return [Part(name, getattr(self, name), (name,), width, length) for name in self.holds]

    def build(self, width):
        return Halves(self.first.build(width), self.second.build(width), width)

    def sketch(self, draft, stream, place, width):
        merged = draft.node("half", "merge", place, self)
        for name in self.holds:
            draft.join(draft.op(getattr(self, name), f"{place}.{name}", "mixer", stream, width), merged)
        return merged
'''


def test_a_macro_of_ones_own_is_written_into_the_file(tmp_path, monkeypatch):
    (tmp_path / "own_macros.py").write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_macros", tmp_path / "own_macros.py")
    own = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_macros", own)
    spec.loader.exec_module(own)
    body = (own.Half(layer(), CONV), own.Half(CONV, bp.Looped((layer(),), LORA)))
    architecture = bp.Space(width=16, body=body, **TEXT).sample(0)
    root = export_all(tmp_path, {"own": architecture})
    assert_equal_to_the_module(judged(root, ["own"])["own"], root, "own")
    text = model_text(root, "own")
    assert_tidy(text)
    assert "return self.weight * (self.first(x) + self.second(x)) / 2" in text and "self.first.step(x, state[0])" in text


def test_an_embedding_that_does_not_say_what_it_takes_is_named():
    with pytest.raises(ValueError, match="`vocab` of tokens"):
        example_of(SimpleNamespace(plan=SimpleNamespace(embed=bp.RMSNorm())))


def test_statistics_are_part_of_the_folder(exported):
    from safetensors.torch import load_file

    weights = load_file(exported / "norms_that_look_ahead" / "model.safetensors")
    means = [name for name in weights if name.endswith("running_mean")]
    assert means and all(torch.equal(weights[name], torch.linspace(0.5, 1.5, len(weights[name]))) for name in means)
