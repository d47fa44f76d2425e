"""Macros: what they compute, declare, cost and share, for every macro with choices inside."""

import dataclasses
from typing import Any, ClassVar

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from bodyplan.space.macros.base import Macro
from bodyplan.space.macros.encoder_decoder import EncoderDecoderLayers
from example_macros import ALL, ATTENTION, BLOCK, CAUSAL, inputs, shaken, space, varied

every = pytest.mark.parametrize("space", ALL.values(), ids=ALL.keys())
causal = pytest.mark.parametrize("space", CAUSAL.values(), ids=CAUSAL.keys())


@every
def test_declarations_are_the_modules_parameters(space):
    for architecture in varied(space):
        module = architecture.build()
        built = {name: tuple(p.shape) for name, p in module.named_parameters()}
        assert built == {name: declared.shape for name, declared in architecture.parameters.items()}
        assert architecture.cost().parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert not list(module.buffers())


@every
def test_extraction_is_bit_identical_forward_and_gradient(space):
    net = shaken(bp.Supernet(space))
    for architecture in varied(space):
        given, model = inputs(architecture), net.extract(architecture)
        packed = torch.func.functional_call(architecture.build(device="meta"), dict(model.named_parameters()), (given,),
                                            tie_weights=False)
        assert torch.equal(model(given), packed)
        view = net.subnet(architecture)
        torch.testing.assert_close(view(given), model(given), rtol=1e-5, atol=1e-5)
        model(given).square().mean().backward()
        taken = {name: p.grad for name, p in model.named_parameters()}
        net.zero_grad()
        view(given).square().mean().backward()
        used = {address for address in architecture.weight_addresses.values()}
        total = sum(float(g.square().sum()) for g in taken.values() if g is not None)
        shared = sum(float(net.tensors[a].grad.square().sum()) for a in used if net.tensors[a].grad is not None)
        assert shared == pytest.approx(total, rel=1e-3)


@causal
def test_step_by_step_equals_prefill(space):
    for architecture in varied(space):
        model, ids = shaken(architecture.build()).eval(), inputs(architecture, 9)
        whole, state, steps = model(ids), model.init_state(2), []
        for token in ids.split(1, dim=1):
            logits, state = model.step(token, state)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)
        first, state = model.step(ids[:, :4], model.init_state(2))
        torch.testing.assert_close(torch.cat([first, model.step(ids[:, 4:], state)[0]], 1), whole, rtol=1e-5, atol=1e-5)


@every
def test_macs_equal_what_torch_executes(space):
    for architecture in varied(space):
        given = inputs(architecture, 12)[:1]
        length = 12 if given.ndim == 2 else architecture.default_length
        executed = macs_flop_counter(architecture.build(), given)
        assert architecture.cost(length).macs == pytest.approx(executed, rel=1e-9)


@every
def test_networks_are_told_apart_as_networkx_does(space):
    import networkx as nx

    found = varied(space, 6)
    for a in found:
        for b in found:
            same = nx.is_isomorphic(a.graph, b.graph, node_match=lambda x, y: x["label"] == y["label"],
                                    edge_match=lambda x, y: sorted(e["kind"] for e in x.values())
                                    == sorted(e["kind"] for e in y.values()))
            assert same == (a.hash == b.hash)


@every
def test_a_space_with_macros_survives_json(space):
    again = bp.Space.from_json(space.to_json())
    assert again.hash == space.hash
    assert again.sample(3).hash == space.sample(3).hash


@dataclasses.dataclass(frozen=True)
class _Sides(Macro):
    """Blocks side by side, and an operator before them."""

    blocks: Any
    first: Any = bp.Identity()
    holds: ClassVar[tuple[str, ...]] = ("blocks", "first")
    streams: ClassVar[tuple[str, ...]] = ("blocks",)


BOTH_WAYS = bp.Attention(heads=2, bidirectional=True)


@pytest.mark.parametrize(("macro", "causal", "streaming"), [
    (_Sides((ATTENTION, ATTENTION)), True, True),
    (_Sides((ATTENTION, bp.Block(mixer=BOTH_WAYS))), False, False),
    (_Sides((ATTENTION,), first=BOTH_WAYS), False, False),
    (bp.Block(mixer=BOTH_WAYS), False, False),
    (bp.Parallel((bp.MLP(), BOTH_WAYS)), False, False),
    (bp.Cell((BOTH_WAYS, bp.MLP(), bp.Zero())), True, True),                  # an edge that reaches no output is dead
    (bp.Cell((BOTH_WAYS, bp.Zero(), bp.MLP(ratio=1))), False, False),
    (bp.Looped((bp.Block(mixer=BOTH_WAYS),)), False, False),
    (bp.Stack((bp.Block(mixer=BOTH_WAYS),)), False, False),
    (bp.Stage((bp.Block(mixer=BOTH_WAYS),)), False, False),
    (bp.Stage((ATTENTION,), stride=2), False, False),
], ids=lambda value: type(value).__name__)
def test_a_macro_is_causal_and_streams_where_all_that_runs_inside_does(macro, causal, streaming):
    assert (macro.causal, macro.streaming) == (causal, streaming)


@pytest.mark.parametrize("macro", [bp.Block(), bp.Looped((bp.Block(),)), bp.Stack((bp.Block(), bp.Looped(())))])
def test_a_macro_without_anything_inside_leaves_no_trace(macro):
    assert macro.is_empty and space((macro, ATTENTION), width=16).sample(0).hash == space(ATTENTION, width=16).sample(0).hash


def test_branches_commute():
    orders = [(bp.Attention(heads=2), bp.SwiGLU()), (bp.SwiGLU(), bp.Attention(heads=2))]
    for merge in ("sum", "gated", "concat"):
        blocks = [bp.Block(mixer=bp.Parallel(branches=order, merge=merge)) for order in orders]
        assert len({space(block, width=16).sample(0).hash for block in blocks}) == 1


def test_a_loop_inside_a_body_that_runs_once_is_no_loop():
    once, loop, two = (space((bp.Looped(ATTENTION, recursion),), width=16).sample(0)
                       for recursion in (bp.Once(), bp.Loop(1), bp.Loop(2)))
    plain = space((ATTENTION,), width=16).sample(0)
    assert once.hash == loop.hash == plain.hash != two.hash


def test_a_layer_that_reuses_keys_and_values_has_none():
    architecture = CAUSAL["cross-layer"].sample(0)
    names = {name for name in architecture.parameters if ".key." in name}
    assert {name.split(".")[3] for name in names} < {"0", "1", "2", "3"}
    assert architecture.cost(64).state_bytes < space(bp.repeat(bp.Block(mixer=bp.Attention(heads=4)), 4),
                                                     width=24).sample(0).cost(64).state_bytes


AMONG = {
    "branches": bp.Block(mixer=bp.Parallel(branches=(bp.Attention(heads=2), bp.Zero()))),
    "a channel": bp.Block(channel=bp.Attention(heads=2)),
    "a cell": bp.Cell(edges=(bp.Attention(heads=2), bp.Identity(), bp.Identity())),
    "a cell as mixer": bp.Block(mixer=bp.Cell(edges=(bp.Attention(heads=2),))),
    "a loop": bp.Looped((bp.Block(mixer=bp.Attention(heads=2)),), bp.Loop(2)),
    "a stage": bp.Stage((bp.Block(mixer=bp.Attention(heads=2)),)),
    "a stack": bp.Stack((bp.Block(mixer=bp.Attention(heads=2)),), bp.Ladder()),
}


@pytest.mark.parametrize("kv_heads", [1, 2], ids=["other sizes", "equal sizes"])
@pytest.mark.parametrize("residual", [bp.CrossLayerKV(), bp.ValueResidual()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("item", AMONG.values(), ids=AMONG.keys())
def test_attention_inside_a_macro_takes_no_part_in_what_layers_share(item, residual, kv_heads):
    sharing = bp.Block(mixer=bp.Attention(heads=2, kv_heads=kv_heads))
    without = space(bp.Stack((sharing, sharing), residual), width=16).sample(0).build(seed=3)
    among = space(bp.Stack((item, sharing, item, sharing), residual), width=16).sample(0).build(seed=4)
    moved = {"layers.0.layers.0.": "layers.0.layers.1.", "layers.0.layers.1.": "layers.0.layers.3."}
    among.load_state_dict({moved.get(name[:18], name[:18]) + name[18:]: p for name, p in without.named_parameters()},
                          strict=False)
    with torch.no_grad():
        for name, parameter in among.named_parameters():
            if name.startswith(("layers.0.layers.0.", "layers.0.layers.2.")) and name.endswith("out.weight"):
                parameter.zero_()                               # it adds nothing, so that only what it hands on could show
    ids = inputs(without.architecture, 9)
    assert torch.equal(among(ids), without(ids))
    first, state = among.step(ids[:, :4], among.init_state(2))
    steps = torch.cat([first, among.step(ids[:, 4:], state)[0]], 1)
    torch.testing.assert_close(steps, without(ids), rtol=1e-5, atol=1e-5)


def test_branches_and_channels_of_a_decoder_read_the_memory_among_shared_keys():
    decoder = bp.Stack((bp.Block(mixer=bp.Attention(heads=2)),
                        bp.Block(mixer=bp.Parallel(branches=(bp.CrossAttention(heads=2), bp.Attention(heads=4)))),
                        bp.Block(channel=bp.CrossAttention(heads=4)), bp.Block(mixer=bp.Attention(heads=2))),
                       bp.CrossLayerKV())
    model = space(bp.EncoderDecoder(encoder=(), decoder=decoder), width=16).sample(0).build()
    ids, source = torch.arange(5)[None], torch.arange(7)[None]
    assert model(ids, source).shape == (1, 5, 32)
    assert not torch.equal(model(ids, source), model(ids, source.flip(1) + 1))


SELF, CROSS = bp.Block(mixer=bp.Attention(heads=2)), bp.Block(mixer=bp.CrossAttention(heads=4, kv_heads=2), channel=bp.MLP())
READER = bp.Block(mixer=BOTH_WAYS, channel=bp.MLP())
TWO_SIDED = {
    "layers": bp.EncoderDecoder(encoder=(READER, READER), decoder=(SELF, CROSS, SELF, CROSS)),
    "a looped decoder": bp.EncoderDecoder(encoder=READER, decoder=bp.Looped((SELF, CROSS), bp.Loop(2, lora_rank=2))),
    "a topology": (SELF, bp.EncoderDecoder(encoder=READER, decoder=bp.Stack((SELF, CROSS, CROSS), bp.HyperConnections())),
                   bp.Block(mixer=bp.GatedDeltaNet(heads=2))),
    "branches": bp.EncoderDecoder(encoder=bp.UShape(READER), decoder=bp.Block(mixer=bp.Parallel(
        (bp.ShortConv(), bp.CrossAttention(heads=2))), channel=bp.CrossAttention(heads=4))),
    "one in another": bp.EncoderDecoder(encoder=READER, decoder=(SELF, bp.EncoderDecoder(READER, (SELF, CROSS)), CROSS)),
    "two memories": bp.EncoderDecoder(encoder=READER, memory="first", decoder=bp.EncoderDecoder(READER, (
        SELF, bp.Block(mixer=bp.CrossAttention(heads=2, memory="first")), CROSS))),
}
two_sided = pytest.mark.parametrize("recursion", [bp.Once(), bp.Loop(2), bp.Loop(2, lora_rank=2)], ids=repr)


def translator(body, recursion=None):
    architecture = space(body, width=16, recursion=recursion).sample(0)
    generator = torch.Generator().manual_seed(2)
    ids, source = (torch.randint(32, (2, length), generator=generator) for length in (9, 13))
    return shaken(architecture.build()).eval(), ids, source


@two_sided
@pytest.mark.parametrize("body", TWO_SIDED.values(), ids=TWO_SIDED.keys())
@torch.no_grad()
def test_a_decoder_continues_token_by_token_from_one_reading_of_the_source(body, recursion):
    model, ids, source = translator(body, recursion)
    whole, read = model(ids, source), []
    readers = [m.encoder for m in model.modules() if isinstance(m, EncoderDecoderLayers)]
    for encoder in readers:
        encoder.register_forward_hook(lambda *_: read.append(len(steps)))
    state, steps = model.init_state(2, source=source), []
    for token in ids.split(1, dim=1):
        logits, state = model.step(token, state)
        steps.append(logits)
    assert read == [0] * model.times * len(readers), "the encoder runs in the first step alone"
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-5, atol=1e-5)
    start = model.init_state(2, source=source)
    for _ in range(2):                                                   # a given state stays as it was
        first, state = model.step(ids[:, :4], start)
        torch.testing.assert_close(torch.cat([first, model.step(ids[:, 4:], state)[0]], 1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_generation_goes_on_with_what_the_full_pass_finds_most_likely():
    model, ids, source = translator(TWO_SIDED["layers"])
    made = model.generate(ids[:, :2], 6, temperature=0, source=source)
    again = ids[:, :2]
    for _ in range(6):
        again = torch.cat([again, model(again, source)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, again)
    assert not torch.equal(model(ids, source), model(ids, source.flip(1)))


@torch.no_grad()
@pytest.mark.parametrize("recursion", [bp.Once(), bp.Loop(2), bp.Loop(2, lora_rank=2)], ids=repr)
def test_layers_that_take_nothing_stand_where_something_is_handed_on(recursion):
    inside = (bp.StreamNorm(), bp.Routed(READER), bp.FIT(local=READER, overall=READER, group=4, latents=1, heads=2))
    conditioned = bp.Block(mixer=BOTH_WAYS, norm=bp.AdaNorm())
    for body in (bp.Conditioned((conditioned, *inside)), bp.EncoderDecoder(READER, (*inside, CROSS)),
                 (bp.EncoderDecoder(READER, CROSS), *inside)):
        model, ids, source = translator(body, recursion)
        logits = model(ids, source) if model.reads_source else model(ids)
        assert logits.shape == (2, 9, 32) and logits.isfinite().all()


@torch.no_grad()
def test_a_decoder_reads_each_of_two_memories_under_its_name():
    model, ids, source = translator(TWO_SIDED["two memories"])
    outer, inner = (m for m in model.modules() if isinstance(m, EncoderDecoderLayers))
    embedded, stream = model.embed(source), model.embed(ids)
    memories = {"first": outer.encoder(embedded), "memory": inner.encoder(embedded)}
    wanted = stream
    for layer, name in zip(inner.decoder.layers, (None, "first", "memory"), strict=True):
        wanted = layer(wanted, {"memory": memories[name]} | {"first": memories[name]} if name else None)
    torch.testing.assert_close(outer(stream, {"source": embedded}), wanted, rtol=0, atol=0)
    assert not torch.allclose(memories["first"], memories["memory"])


@pytest.mark.parametrize("name", ["source", "kv", "", "two words", 3])
def test_a_memory_has_a_name_of_its_own(name):
    for body in (bp.EncoderDecoder(READER, CROSS, memory=name),
                 bp.EncoderDecoder(READER, bp.Block(mixer=bp.CrossAttention(memory=name)))):
        with pytest.raises(ValueError, match="memory is a name, none of source, .*; use 'memory'"):
            space(body)


def test_decoders_that_read_the_encoders_the_other_way_round_are_two_networks():
    def made(outer, inner):
        return space(bp.EncoderDecoder(READER, memory=outer, decoder=bp.EncoderDecoder(
            bp.Block(mixer=BOTH_WAYS), memory=inner, decoder=(
                bp.Block(mixer=bp.CrossAttention(memory="a")), bp.Block(mixer=bp.CrossAttention(memory="b")))))).sample(0)

    assert made("a", "b").hash != made("b", "a").hash


@torch.no_grad()
@pytest.mark.parametrize("case", ["layers", "a looped decoder", "one in another", "two memories"])
def test_costs_of_decoding_are_those_of_the_decoder_and_of_what_it_keeps(case):
    architecture = space(TWO_SIDED[case], width=16).sample(0)
    model, ids, cost = architecture.build().eval(), torch.arange(12)[None], architecture.cost(12)
    _, state = model.step(ids, model.init_state(1, source=ids))
    held = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    assert 4 * sum(leaf.numel() for leaf in held) == cost.state_bytes > 0

    class Next(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, token):
            return self.model.step(token, state)[0]

    assert macs_flop_counter(Next(), ids[:, :1]) == pytest.approx(cost.decode_macs, rel=1e-9)


def test_a_decoder_that_looks_ahead_does_not_stream():
    body = bp.EncoderDecoder(encoder=READER, decoder=(READER, CROSS))
    assert (body.causal, body.streaming) == (False, False)
    assert (TWO_SIDED["layers"].causal, TWO_SIDED["layers"].streaming) == (True, True)
    model, _, source = translator(body)
    with pytest.raises(ValueError, match=r"a state at layers\[0\]: EncoderDecoder has none"):
        model.init_state(2, source=source)


def test_cross_attention_says_where_it_belongs():
    model, ids, _ = translator(CROSS)
    with pytest.raises(ValueError, match="got no memory; put it into EncoderDecoder"):
        model(ids)


def test_a_source_is_asked_for_where_it_is_read_and_nowhere_else():
    model, ids, source = translator(TWO_SIDED["layers"])
    with pytest.raises(ValueError, match="got none; write init_state"):
        model.init_state(2)
    with pytest.raises(ValueError, match="got none; write init_state"):
        model.generate(ids, 3)
    with pytest.raises(ValueError, match="one row per sequence: got 2 for a batch of 3"):
        model.init_state(3, source=source)
    plain, _, _ = translator(SELF)
    assert not plain.reads_source and model.reads_source
    with pytest.raises(ValueError, match="a body without EncoderDecoder"):
        plain.init_state(2, source=source)


def test_a_fresh_topology_starts_as_the_plain_stream():
    layers = (ATTENTION, ATTENTION)
    plain = space(bp.Stack(layers, bp.Residual()), width=16)
    reference = plain.sample(0)
    given, weights = inputs(reference), dict(reference.build(seed=3).named_parameters())
    for residual in (bp.DenseAverage(), bp.HyperConnections(rate=2)):
        other = space(bp.Stack(layers, residual), width=16).architecture(reference.genome).build()
        other.load_state_dict({**dict(other.named_parameters()), **weights})
        expected = reference.build(seed=3)(given)
        torch.testing.assert_close(other(given), expected, rtol=1e-4, atol=1e-4)   # the last norm undoes the sum of streams


@pytest.mark.parametrize(("body", "words"), [
    (bp.Cell(edges=bp.repeat(bp.Identity(), 4)), "an edge for every pair"),
    (bp.Block(mixer=bp.Parallel(branches=(bp.MLP(),), merge="product")), "merge is one of"),
    (bp.Stage((BLOCK,), stride=0), "stride is a number of at least 1"),
    (bp.Stack((BLOCK,), bp.HyperConnections(rate=1)), "rate is 2 or more"),
    (bp.Stack((BLOCK,), "dense"), "residual is a topology"),
    (bp.Stage((BLOCK,), width=40), "a tied head needs the stream"),
    (bp.Looped((bp.MLP(),)), "a body is made of"),
    (bp.Block(mixer=bp.Parallel(branches=())), "at least one operator"),
], ids=["cell", "merge", "stride", "streams", "residual", "tied", "layers", "branches"])
def test_what_cannot_be_built_is_refused(body, words):
    with pytest.raises((ValueError, TypeError), match=words):
        space(body)


@every
def test_a_network_of_macros_is_drawn_and_compared(space):
    import xml.etree.ElementTree as tree

    first, second = space.sample(0), space.sample(5)
    tree.fromstring(first.draw("svg"))
    text = first.draw()
    assert f"{first.cost().parameters:,}" in text.splitlines()[-1]
    assert all(type(place.operator).__name__ in text for place in first.placed if place.operator.kind == "mixer")
    assert first.diff(first) == "no difference"
    assert (first.diff(second) == "no difference") == (first.genome == second.genome)


def test_a_stride_for_sequences_is_refused_on_a_grid():
    from example_macros import IMAGES

    for body in (bp.Stage((ATTENTION,), stride=2), bp.UShape(inner=(ATTENTION,), stride=2)):
        model = space(body, **IMAGES).sample(0).build()
        with pytest.raises(ValueError, match=r"write 2 for a sequence, \(2, 2\) for a grid"):
            model(torch.randn(1, 1, 28, 28))
