"""Declared costs against two independent counters, for every operator and for whole models."""

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.operator import operators
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.space.operators.moe import MoE
from bodyplan.testing.modules import built, example_inputs, fresh
from operator_examples import EXAMPLES
from torch import nn
from torch.nn import functional as F

WIDTH = 32

CASES = {
    "attention": bp.Attention(heads=4),
    "grouped attention": bp.Attention(heads=4, kv_heads=2, head_dim=6),
    "windowed attention": bp.Attention(heads=2, window=16),
    "gated delta": bp.GatedDeltaNet(heads=2),
    "delta without convolution or gate": bp.GatedDeltaNet(heads=2, conv=None, gate=False, decay=False),
    "delta with wide values": bp.GatedDeltaNet(heads=1, head_dim=8, expand_v=2),
    "mamba-2": bp.Mamba2(state=16, head_dim=16),
    "mamba-2 with groups": bp.Mamba2(state=8, head_dim=8, groups=2, conv=None),
    "hyena": bp.Hyena(),
    "hyena of order 3": bp.Hyena(order=3, filter_dim=16, bands=4),
    "short convolution": bp.ShortConv(kernel=3),
    "swiglu": bp.SwiGLU(ratio=2),
    "attention both ways": bp.Attention(heads=2, bidirectional=True, rotary=False, qk_norm=True),
    "windowed attention both ways": bp.Attention(heads=4, kv_heads=1, window=16, bidirectional=True),
    "window attention": bp.WindowAttention(heads=2, window=8),
    "reduced attention": bp.ReducedAttention(heads=2, reduction=3),
    "attention to a fixed grid": bp.LinearReducedAttention(heads=2, side=3),
    "attention beside filtered values": bp.LocalValueAttention(heads=4),
    "mlp that filters": bp.ConvMLP(ratio=2),
    "attention that reduces nothing": bp.ReducedAttention(heads=2, reduction=1),
    "conformer convolution": bp.ConformerConv(kernel=7),
    "causal conformer convolution": bp.ConformerConv(kernel=4, norm="layer", bidirectional=False),
    "depthwise convolution": bp.DepthwiseConv2d(kernel=5),
    "convnext unit": bp.ConvNeXtUnit(kernel=3, ratio=2),
    "inception mixer": bp.InceptionMixer(heads=2, head_dim=6),
    "cross-covariance attention": bp.CrossCovarianceAttention(heads=4, head_dim=6),
    "split depthwise transpose attention": bp.SDTA(heads=4, splits=3, position=True),
    "multi-head convolution": bp.MultiHeadConv(head_dim=8),
    "pooled attention": bp.PooledAttention(heads=4, reduction=3),
    "token mlp along rows": bp.RaftMLP(side=9, raft=4),
    "token mlp along columns": bp.RaftMLP(side=9, along="columns"),
    "token mlp": bp.TokenMLP(max_len=64, hidden=7),
    "mixer gate": bp.NiNGate(max_len=64, hidden=7),
    "decoupled gate": bp.DFCAttention(kernel=3),
    "ghost unit": bp.GhostUnit(expand=2, squeeze=True),
    "subspace attention": bp.SubspaceAttention(groups=4),
    "squeeze and excitation": bp.SqueezeExcite(reduction=4),
    "depthwise mlp": bp.DepthwiseMLP(ratio=2),
    "fused mobile convolution": bp.FusedMobileConv(expand=2),
    "squeezeformer convolution": bp.SqueezeformerConv(kernel=7),
    "random filters": bp.DepthwiseConv2d(kernel=5, trainable=False),
    "convolution": bp.Conv2d(kernel=3),
    "mobile convolution": bp.MobileConv(kernel=3, expand=2),
    "pooling": bp.Pooling(),
    "average pooling": bp.AveragePool(),
    "zero": bp.Zero(),
    "grouped convolution": GroupedConv(kernel=3, groups=2),
    "experts": MoE(experts=4, top_k=2, ratio=1),
    "experts above a threshold": bp.DynamicMoE(experts=3, top_p=1, ratio=1),
    "routed channels": bp.MoHD(groups=4, ratio=2),
    "routed channels without shared ones": bp.MoHD(shared=0, groups=4, top_k=1, ratio=1),
    "rational units": bp.GRKAN(ratio=2),
    "tables": bp.MemoryLayers(bits=4),
    "parameter tokens": bp.Pattention(ratio=2),
    "attention by parameter tokens": bp.PattentionMixer(heads=2, ratio=2),
    "a fixed graph": bp.FixedGraph(neurons=40, sensory=10, outputs=8, density=0.1),
    "attention by tables": bp.MemoryLayerMixer(heads=2, bits=4),
    "attention by tables with small heads": bp.MemoryLayerMixer(heads=4, head_dim=6, bits=8),
    "networks in heads": bp.PartialFormer(heads=4, ratio=2),
    "adapters": bp.AdapterMLP(ratio=2, adapters=3),
    "polynomial mlp": bp.MLP(ratio=2, activation="poly_norm", top_k=5),
    "low-rank mlp": LowRankMLP(ratio=2, rank=8),
    "mlp": bp.MLP(ratio=3, activation="squared_relu"),
    "linear attention": bp.LinearAttention(heads=4, key_dim=6),
    "linear attention without a denominator": bp.LinearAttention(heads=2, feature="silu", normalise=False, output_norm=True),
    "linear attention both ways": bp.LinearAttention(heads=2, bidirectional=True),
    "taylor features": bp.Based(heads=2, key_dim=5),
    "retention": bp.Retention(heads=4),
    "lightning": bp.Lightning(heads=4),
    "gated linear attention": bp.GLA(heads=4, rank=3),
    "liger": bp.Liger(heads=4, kv_heads=2, window=16),
    "aaren": bp.Aaren(heads=4, key_dim=3),
    "key-value attention": bp.KeyValueAttention(heads=4),
    "key-value attention with places": bp.KeyValueAttention(heads=2, frequencies=5),
    "key-value attention both ways": bp.KeyValueAttention(heads=2, frequencies=3, bidirectional=True),
    "nprf": bp.NPRF(heads=2, features=5, reach=9),
    "nprf both ways": bp.NPRF(heads=2, features=3, reach=9, bidirectional=True),
    "agent attention": bp.AgentAttention(heads=4, side=3),
    "super tokens": bp.SuperTokenAttention(heads=4, cell=3, iterations=2),
    "ecoformer": bp.EcoFormer(heads=4, bits=5, anchors=7),
    "sea": bp.SEA(heads=2, tokens=10, columns=20, features=5, channels=3),
    "a network over sequences": bp.SequenceFF(max_len=64, hidden=9),
    "a network per head": bp.SequenceFF(max_len=64, hidden=9, heads=4),
}


# Whose products are of masks that values make, of transforms and filters written out, or of what a memory learns: a formula
# by module would be the declaration again (WindowAttention's is of what runs, masked pairs of filled-up windows included).
# torch's counter alone holds them, here by name so that none slips in.
NO_SECOND_COUNT = {"MoHDAttention", "WindowAttention", "CompressionStem", "ChunkAttention", "Combiner", "LandmarkAttention",
                   "LSHAttention", "RoutingAttention", "Sparsifiner", "Atlas", "NeuralMemory", "HyenaND", "LMU", "Orchid",
                   "CausalNeighbourhood", "RecursiveAttention", "SpatialChannelCorrelation"}


def model_of(mixer, channel=None, recursion=None, embed=None, head=None):
    space = bp.Space(embed=embed or bp.TokenEmbedding(vocab=50), width=WIDTH,
                     body=bp.repeat(bp.Block(mixer=mixer, channel=channel or bp.SwiGLU()), times=2),
                     recursion=recursion or bp.Once(), head=head or bp.LanguageHead(tied=True))
    return space.sample(0)


def ids(length):
    return torch.randint(50, (1, length), generator=torch.Generator().manual_seed(0))


def build(operator):
    module = operator.build(WIDTH)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.parametrize("length", [40, 64])
@pytest.mark.parametrize("name", CASES)
def test_thop_and_torch_agree_on_every_operator(name, length):
    module, x = build(CASES[name]), torch.randn(1, length, WIDTH)
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9)


@pytest.mark.parametrize("length", [1, 40, 64])
@pytest.mark.parametrize("name", CASES)
def test_the_declaration_is_what_is_counted(name, length):
    module, x = build(CASES[name]), torch.randn(1, length, WIDTH)
    assert CASES[name].macs(WIDTH, length) == pytest.approx(macs_thop(module, x), rel=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES)
def test_modules_added_up_are_operations_added_up_but_where_it_is_said(name):
    config, width = EXAMPLES[name][0]
    module, given = built(config, width).eval(), [fresh(example_inputs(config, width, batch=1, length=40)) for _ in range(2)]
    found, executed = macs_thop(module, *given[0]), macs_flop_counter(module, *given[1])
    if name in NO_SECOND_COUNT:
        assert found != pytest.approx(executed, rel=1e-9)
    else:
        assert found == pytest.approx(executed, rel=1e-6)


def test_every_mixer_and_channel_is_counted_a_second_time():
    """By thop and torch's counter here, or by the latter in the contract."""
    ours = {name for name in operators.names() if operators.get(name).__module__.startswith("bodyplan.")
            and operators.get(name).kind in ("mixer", "channel")}
    assert ours - {"Custom", "Identity"} <= {type(operator).__name__ for operator in CASES.values()} | set(EXAMPLES)


@pytest.mark.parametrize(("first", "second", "narrow"), [
    ({}, {}, {}), ({"window": 8}, {}, {"window": 8}), ({}, {"window": 5}, {"window": 5}),
    ({"bidirectional": True}, {"bidirectional": True, "window": 9}, {"bidirectional": True, "window": 9})], ids=str)
def test_attention_with_borrowed_keys_counts_what_it_sees(first, second, narrow):
    x, shared = torch.randn(1, 40, WIDTH), {}
    build(bp.Attention(heads=2, **first))(x, shared)
    module = build(bp.Attention(heads=2, reuse_kv=True, **second))
    counted = macs_thop(module, x, shared)
    assert counted == macs_flop_counter(module, x, shared)
    assert counted == bp.Attention(heads=2, reuse_kv=True, **narrow).macs(WIDTH, 40)


@pytest.mark.parametrize("length", [40, 64])
def test_cross_attention_is_counted_with_the_memory_it_reads(length):
    module, x, shared = build(bp.CrossAttention(heads=4, kv_heads=2)), torch.randn(1, length, WIDTH), {}
    shared["memory"] = torch.randn(1, length, WIDTH)
    counted = macs_thop(module, x, shared)
    assert counted == macs_flop_counter(module, x, shared) == bp.CrossAttention(heads=4, kv_heads=2).macs(WIDTH, length)


@pytest.mark.parametrize("recursion", [bp.Once(), bp.Loop(times=2), bp.Loop(times=3, lora_rank=2)], ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_all_three_agree_on_whole_models_looped_or_not(name, recursion):
    parts = {"mixer": bp.Identity(), "channel": bp.MLP(), CASES[name].kind: CASES[name]}
    architecture = model_of(**parts, recursion=recursion)
    model, declared = architecture.build(), architecture.cost(64).macs
    assert macs_thop(model, ids(64)) == pytest.approx(macs_flop_counter(model, ids(64)), rel=1e-9)
    assert declared == pytest.approx(macs_thop(model, ids(64)), rel=1e-9)


def test_they_agree_on_image_models():
    architecture = model_of(bp.Identity(), embed=bp.PatchEmbedding(patch=4, channels=3, image=(8, 12)),
                            head=bp.ClassifierHead(classes=5), channel=bp.MLP())
    pixels = torch.randn(1, 3, 8, 12)
    declared = architecture.cost(length=6).macs
    assert macs_flop_counter(architecture.build(), pixels) == macs_thop(architecture.build(), pixels) == declared


def test_the_declared_parameters_are_those_of_the_module():
    for operator in CASES.values():
        declared = sum(p.numel for p in operator.axes(WIDTH).values())
        assert declared == sum(p.numel() for p in operator.build(WIDTH).parameters())


def test_profiling_leaves_the_module_as_it_was():
    model = model_of(bp.Attention(heads=2)).build()
    before, mode = list(model.state_dict()), model.training
    macs_thop(model, ids(8))
    macs_flop_counter(model, ids(8))
    assert list(model.state_dict()) == before and model.training == mode
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention_counts_the_visible_pairs(mask):
    class Attend(nn.Module):
        def forward(self, q, k, v):
            lower = torch.ones(7, 7, dtype=torch.bool).tril()
            given = {"none": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": lower},
                     "float": {"attn_mask": torch.zeros(7, 7).masked_fill(~lower, -torch.inf)}}[mask]
            return F.scaled_dot_product_attention(q, k, v, **given)

    q = torch.randn(2, 3, 7, 4)
    pairs = 49 if mask == "none" else 28
    assert macs_flop_counter(Attend(), q, q, q) == 2 * 3 * pairs * (4 + 4)


def test_a_plain_module_is_counted_by_its_layers():
    assert macs_thop(nn.Linear(6, 4), torch.randn(5, 6)) == macs_flop_counter(nn.Linear(6, 4), torch.randn(5, 6)) == 120
