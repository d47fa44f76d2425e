"""Ordering by importance: the function stays, the best parts come first, and a supernet starts without loss."""

from dataclasses import dataclass

import bodyplan as bp
import pytest
import torch
from bodyplan.space.axes import Param, axis, param, take
from bodyplan.space.elastic.ordering import order_axes
from bodyplan.space.elastic.permuting import blocks
from bodyplan.space.macros.cell import Cell
from bodyplan.space.macros.encoder_decoder import EncoderDecoder
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.parallel import Parallel
from bodyplan.space.macros.residual import CrossLayerKV, DenseAverage, HyperConnections, Ladder, ValueResidual
from bodyplan.space.macros.stack import Stack
from bodyplan.space.macros.stage import Stage
from bodyplan.space.macros.ushape import UShape
from bodyplan.space.operator import Operator, Source
from bodyplan.space.operators.conv2d import Conv2d
from bodyplan.space.operators.cross_attention import CrossAttention
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.space.operators.moe import MoE
from example_spaces import macro_space, sparse_space
from torch import nn

torch.set_num_threads(1)

IDS = torch.arange(48).view(2, 24) * 7 % 40


def network(body, width=16, **rest):
    return bp.Space(embed=bp.TokenEmbedding(vocab=40), width=width, body=body,
                    head=rest.pop("head", bp.LanguageHead(tied=True)), **rest)


def block(mixer, channel=None):
    return bp.Block(mixer=mixer, channel=bp.SwiGLU(2) if channel is None else channel)


def images(body):
    return bp.Space(embed=bp.PatchEmbedding(patch=2, channels=1, image=8, grid=True), width=16, body=body,
                    head=bp.ClassifierHead(classes=5))


ATTENTION = bp.Attention(heads=4, kv_heads=2)
NETWORKS = {
    "transformer": network((block(ATTENTION), block(bp.Attention(heads=2), bp.MLP(2)))),
    "untied, no rotary": network(block(bp.Attention(heads=4, kv_heads=2, rotary=False, qk_norm=True), MoE(4, 2, 1)),
                                 head=bp.LanguageHead(tied=False)),
    "hybrid": network((block(bp.Mamba2(state=8, head_dim=8, groups=2)), block(bp.GatedDeltaNet(heads=2), LowRankMLP(2, 6)),
                       block(bp.Hyena(filter_dim=8)), block(bp.ShortConv(), bp.Identity()), block(GroupedConv(groups=2)))),
    "looped with LoRA": network((block(ATTENTION), block(bp.Mamba2(state=8, head_dim=8))),
                                recursion=bp.Loop(times=2, lora_rank=3)),
    "looped middle": network((block(ATTENTION), Looped((block(bp.ShortConv(), bp.Identity()), block(ATTENTION)),
                                                       bp.Loop(times=2, lora_rank=2)))),
    "parallel": network((block(Parallel((ATTENTION, bp.SwiGLU(2)), merge="gated")),
                         block(Parallel((bp.ShortConv(), ATTENTION), merge="concat")))),
    "hyper-connections": network(Stack((block(ATTENTION), block(ATTENTION)), HyperConnections(2))),
    "dense average": network(Stack((block(ATTENTION), block(ATTENTION)), DenseAverage())),
    "value residual": network(Stack((block(ATTENTION), block(ATTENTION)), ValueResidual())),
    "cross-layer K/V": network(Stack((block(ATTENTION), block(ATTENTION)), CrossLayerKV())),
    "ladder": network(Stack((block(ATTENTION), block(ATTENTION)), Ladder())),
    "encoder, decoder": network(EncoderDecoder(block(ATTENTION), block(CrossAttention(heads=2)))),
    "pyramid": images((Stage(block(Conv2d(kernel=3)), norm=bp.RMSNorm()), Stage(block(ATTENTION), width=24, stride=(2, 2)))),
    "u-shape": images(UShape(block(ATTENTION), before=block(Conv2d(kernel=3, norm=False)), stride=(2, 2), width=24,
                             skip="concat")),
    "cell": images(Cell((Conv2d(kernel=1), Conv2d(kernel=3), bp.Identity()))),
    "own module": network((block(bp.Custom(lambda width: nn.Linear(width, width)), bp.SwiGLU(2)), block(ATTENTION))),
}


def inputs_of(space):
    embed = space.definition["embed"]
    if hasattr(embed, "vocab"):
        return IDS, IDS.roll(-1, 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4)


def trained(space, seed=0):
    """A model whose parameters are all away from where they start: no zeros, ones or constants."""
    model = space.sample(0).build(seed=seed)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    for name, declared in model.architecture.parameters.items():
        if declared.statistic:
            model.get_parameter(name).data.abs_().add_(0.5)
    return model.eval()


@torch.no_grad()
def output(model, inputs):
    return model(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_full_size_outputs_stay_and_most_weights_move(name):
    inputs, targets = inputs_of(NETWORKS[name])
    for criteria, dtype, tolerance in (("weight", torch.float32, 1e-5), ("activation", torch.float64, 1e-10),
                                       ("gradient", torch.float64, 1e-10)):
        model = trained(NETWORKS[name]).to(dtype)
        x = inputs.to(dtype) if inputs.is_floating_point() else inputs
        before, weights = output(model, x), {n: p.detach().clone() for n, p in model.named_parameters()}
        order_axes(model, criteria, [(x, targets)])
        assert (output(model, x) - before).abs().max() <= tolerance * before.abs().max().clamp(min=1)
        moved = sum(p.numel() for n, p in model.named_parameters() if not torch.equal(p, weights[n]))
        assert moved > 0.5 * sum(p.numel() for p in model.parameters()), "nothing was permuted"


def test_what_is_left_as_it_is_says_why():
    kept = {(entry.place, entry.axis): entry.kept for entry in order_axes(trained(NETWORKS["own module"]))}
    assert kept["", "width"] == "Custom: a module of your own may tell its entries apart"
    assert kept["layers.1.mixer.op", "kv_heads"] == kept["layers.0.channel.op", "hidden"] == ""
    assert kept["layers.1.mixer.op", "pairs"] == "a pair is a rotary frequency"
    assert kept["embed", "vocab"] == "a row is a token"
    shared = {(entry.place, entry.axis): entry.kept for entry in order_axes(trained(NETWORKS["cross-layer K/V"]))}
    assert shared["layers.0.layers.0.mixer.op", "kv_heads"] == "operators of several layers share its order"
    assert shared["layers.0.layers.0.mixer.op", "group"] == ""


def test_blocks_show_every_axis_and_share_memory():
    g, r, p, d = axis("g", 2), axis("r", 3), axis("p", 2), axis("d", 5)
    declared = param(g * ((r * p) + p), d)
    tensor = torch.arange(declared.numel).view(declared.shape)
    first, second = blocks(tensor, declared)
    assert [placed.axis.name for placed in first.axes] == ["g", "r", "p", "d"] and first.view.shape == (2, 3, 2, 5)
    assert [placed.inside for placed in first.axes] == [{}, {"g": 0}, {"g": 0, "r": 1}, {}]
    assert [placed.axis.name for placed in second.axes] == ["g", "p", "d"] and second.view.shape == (2, 2, 5)
    assert torch.equal(tensor.view(2, 8, 5)[:, 6:], second.view)
    second.view[1, 1, 4] = -1
    assert tensor.flatten()[-1] == -1


# -- planted importance: some entries are made small, the rest carry the function ---------------------------------------

def plant(model, place, weights, each):
    """Shrink what a random half of the entries of an axis give out; `each` draws anew for every outer entry."""
    declared, generator, drawn = model.architecture.parameters, torch.Generator().manual_seed(3), {}
    for key, dim, name in weights:
        (block,) = blocks(model.get_parameter(f"{place}.{key}").data, declared[f"{place}.{key}"])
        position = [i for i, placed in enumerate(block.axes) if placed.axis.name == name and placed.dim == dim][0]
        outer = list(block.axes[position].inside.values()) if each else []
        sizes = [s if i in (*outer, position) else 1 for i, s in enumerate(block.view.shape)]
        if name not in drawn:
            drawn[name] = torch.rand(sizes, generator=generator).argsort(position) < block.view.shape[position] // 2
        block.view.mul_(torch.where(drawn[name].view(sizes), 0.02, 1.0))


# axis: the operator, (parameter, its dimension, axis) whose entries are shrunk, the operator at half that axis
PLANTED = {
    "hidden": (bp.SwiGLU(4), [("down.weight", 1, "hidden")], bp.SwiGLU(2)),
    "kv_heads": (bp.Attention(heads=8, kv_heads=4, head_dim=4), [("out.weight", 1, "kv_heads")],
                 bp.Attention(heads=4, kv_heads=2, head_dim=4)),
    "group": (bp.Attention(heads=8, kv_heads=2, head_dim=4), [("out.weight", 1, "group")],
              bp.Attention(heads=4, kv_heads=2, head_dim=4)),
    "experts": (MoE(8, 1, 1), [("router.weight", 0, "experts"), ("down", 0, "experts")], MoE(4, 1, 1)),
    "rank": (LowRankMLP(4, 8), [("up_out.weight", 1, "up_rank"), ("down_out.weight", 1, "down_rank")], LowRankMLP(4, 4)),
    "channels_out": (GroupedConv(groups=2, channels=8), [("out.weight", 1, "channels_out"), ("taps", 1, "channels_in")],
                     GroupedConv(groups=2, channels=4)),
    "group_heads": (bp.Mamba2(state=8, head_dim=4), [("out.weight", 1, "group_heads")],
                    bp.Mamba2(state=8, head_dim=4, expand=1)),
    "heads": (bp.GatedDeltaNet(heads=4, head_dim=4), [("out.weight", 1, "heads")], bp.GatedDeltaNet(heads=2, head_dim=4)),
}
BATCHES = [(ids, ids.roll(-1, 1)) for ids in torch.randint(40, (12, 1, 24), generator=torch.Generator().manual_seed(9))]


@pytest.mark.parametrize("name", PLANTED)
def test_half_of_an_axis_loses_less_after_ordering(name):
    """Half the entries give out next to nothing. Ordered, the leading half is the other half."""
    operator, weights, smaller = PLANTED[name]
    role = "channel" if operator.kind == "channel" else "mixer"
    model = trained(network(bp.Block(**{role: operator})))
    plant(model, f"layers.0.{role}.op", weights, each=name in ("group", "channels_out"))
    whole = output(model, IDS)
    losses = {}
    for order in (None, "weight", "activation", "gradient"):
        losses[order] = (output(halved(model, bp.Block(**{role: smaller}), order), IDS) - whole).square().mean().item()
    assert all(losses[order] < 0.5 * losses[None] for order in ("weight", "activation", "gradient")), losses


def halved(model, smaller, order):
    """The smaller block's network with the leading parts of the model's weights, ordered first if asked."""
    ordered, small = model.architecture.build(), network(smaller).sample(0).build()
    ordered.load_state_dict(model.state_dict())
    if order is not None:
        order_axes(ordered, order, BATCHES)
    held = ordered.architecture.parameters
    with torch.no_grad():
        for key, wanted in small.architecture.parameters.items():
            nested = [Param(declared.dims) for declared in (held[key], wanted)]
            small.get_parameter(key).copy_(take(ordered.get_parameter(key), *nested))
    return small


@pytest.mark.parametrize("criteria", ["weight", "activation", "gradient"])
def test_half_of_the_residual_width_loses_less_after_ordering(criteria):
    """Channels that nobody writes to, in random places, come last."""
    body = (block(bp.Attention(heads=4, head_dim=4)), block(bp.ShortConv()))
    space = network(body, width=bp.choice(16, 32))
    largest, half = (space.architecture(found) for found in (space.largest(), space.smallest()))
    model = largest.build(seed=0)
    mute = torch.randperm(32, generator=torch.Generator().manual_seed(5))[:16]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("embed.weight"):
                p[:, mute] *= 0.01
            elif name.endswith(("out.weight", "down.weight")):
                p[mute] *= 0.01
    whole = output(model, IDS)
    losses = []
    for order in (None, criteria):
        net = bp.Supernet.from_model(space, model, order=order, batches=BATCHES)
        assert (output(net.subnet(largest), IDS) - whole).abs().max() < 1e-5
        losses.append((output(net.extract(half), IDS) - whole).square().mean().item())
    assert losses[1] < 0.5 * losses[0], losses


# -- supernets --------------------------------------------------------------------------------------------------------

def elastic():
    attention = bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2), head_dim=8)
    mixer = bp.choice(attention, bp.Mamba2(state=8, head_dim=8))
    return network(bp.repeat(block(mixer, bp.SwiGLU(bp.choice(1, 2))), times=bp.integer(1, 2)), width=bp.choice(16, 32),
                   recursion=bp.choice(bp.Once(), bp.Loop(times=2, lora_rank=2)))


@pytest.mark.parametrize("criteria", ["weight", "activation", "gradient"])
@pytest.mark.parametrize("space", [elastic(), sparse_space(), macro_space()], ids=["elastic", "sparse", "macros"])
def test_the_largest_subnet_of_an_ordered_supernet_computes_what_it_did(space, criteria):
    net = bp.Supernet(space, seed=2)
    largest = space.architecture(space.largest())
    wanted = output(net.subnet(largest), IDS)
    before = {a: t.detach().clone() for a, t in net.tensors.items()}
    order_axes(net, criteria, [(IDS, IDS.roll(-1, 1))])
    assert (output(net.subnet(largest), IDS) - wanted).abs().max() < 1e-5
    moved = sum(t.numel() for a, t in net.tensors.items() if not torch.equal(t, before[a]))
    assert moved > 0.5 * sum(t.numel() for t in net.tensors.values())
    for seed in range(5):
        assert output(net.subnet(space.sample(seed)), IDS).isfinite().all()


def test_other_candidates_of_full_size_compute_what_they_did_too():
    space = elastic()
    net = bp.Supernet(space, seed=2)
    found = [space.sample(seed) for seed in range(400)]
    siblings = [a for a in found if a.plan.width == 32 and a.plan.recursion.times == 1 and len(a.plan.layers) == 2
                and all(isinstance(layer.mixer, bp.Mamba2) and layer.channel.ratio == 2 for layer in a.plan.layers)]
    wanted = output(net.subnet(siblings[0]), IDS)
    order_axes(net, "weight")
    assert (output(net.subnet(siblings[0]), IDS) - wanted).abs().max() < 1e-5


def test_a_supernet_starts_from_a_trained_model_without_loss():
    space = elastic()
    model = trained(fixed := network(bp.repeat(block(bp.Attention(heads=4, kv_heads=2, head_dim=8)), times=2), width=32,
                                     recursion=bp.Loop(times=2, lora_rank=2)))
    choice = network(bp.repeat(block(bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2), head_dim=8),
                                     bp.SwiGLU(bp.choice(1, 2))), times=2), width=bp.choice(16, 32),
                     recursion=bp.Loop(times=2, lora_rank=2))
    net = bp.Supernet.from_model(choice, model)
    largest = choice.architecture(choice.largest())
    assert torch.equal(output(net.extract(largest), IDS), output(model, IDS))
    small = net.extract(choice.architecture(choice.smallest()))
    gains = [p for name, p in small.named_parameters() if name.endswith("norm.weight")]
    wanted = [p[:16] for name, p in model.named_parameters() if name.endswith("norm.weight")]
    assert all(torch.equal(a, b) for a, b in zip(gains, wanted, strict=True)), "gains of smaller sizes are parts"
    assert fixed.sample(0).hash == largest.hash
    with pytest.raises(ValueError, match="largest architecture: embed.weight is .40, 32. in the model and .40, 16. in the"):
        bp.Supernet.from_model(network(block(ATTENTION), width=16), model)
    assert space.size() > 1


def test_a_model_of_another_function_with_equal_sizes_is_refused():
    model = trained(network(block(bp.Attention(heads=2, window=4))))
    with pytest.raises(ValueError, match="largest architecture: got .*, the largest is .*; they differ in"):
        bp.Supernet.from_model(network(block(bp.Attention(heads=2))), model)


# -- refusals ---------------------------------------------------------------------------------------------------------

class Rolled(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x_BTD):
        return self.down(self.up(x_BTD).cumsum(-1))


@dataclass(frozen=True)
class _Telling(Operator):
    """Its hidden entries are told apart, which it does not say."""

    kind = "channel"
    source = Source("(test)", 2026)

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", 2 * width)
        return {"up.weight": param(f, d), "down.weight": param(d, f)}

    def build(self, width: int) -> nn.Module:
        return Rolled(width)


def test_an_operator_that_tells_its_entries_apart_is_found_and_nothing_changes():
    model = trained(network(bp.Block(mixer=ATTENTION, channel=_Telling())))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'hidden' of layers.0.channel.op moved them by .*; say fixed = .'hidden': why"):
        order_axes(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(("call", "text"), [
    (lambda model: order_axes(model, "size"), "unknown criterion 'size'; known: activation, gradient, weight"),
    (lambda model: order_axes(model, "gradient"), "the criterion 'gradient' needs batches: got none"),
    (lambda model: order_axes(nn.Linear(2, 2)), "got Linear, which was not built from an architecture")])
def test_bad_questions_are_answered(call, text):
    with pytest.raises(ValueError, match=text):
        call(trained(NETWORKS["transformer"]))


def test_weights_that_are_not_finite_are_named():
    model = trained(NETWORKS["transformer"])
    model.get_parameter("layers.0.channel.op.up.weight").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="importance must be finite: got nan"):
        order_axes(model)
