"""Spaces with every macro, which tests share: by what they are made of."""

import random

import bodyplan as bp
import torch

MIXER = bp.choice(bp.Attention(heads=bp.choice(2, 4)), bp.ShortConv(kernel=3))
BLOCK = bp.Block(mixer=MIXER, channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.Identity()))
ATTENTION = bp.Block(mixer=bp.Attention(heads=4, kv_heads=bp.choice(2, 4)), channel=bp.MLP(ratio=2))
BOTH_WAYS = bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4), kv_heads=2, bidirectional=True), channel=bp.MLP(ratio=2))
OPEN = bp.Block(mixer=bp.choice(bp.ShortConv(kernel=3), bp.Identity()))


def space(body, **more):
    given = {"embed": bp.TokenEmbedding(vocab=32), "width": bp.choice(16, 24), "head": bp.LanguageHead(tied=True)}
    return bp.Space(**(given | more), body=body)


CAUSAL = {
    "sum": space(bp.Block(mixer=bp.Parallel(branches=bp.repeat(MIXER, bp.integer(1, 3))))),
    "gated": space(bp.repeat(bp.Block(mixer=bp.Parallel(branches=(MIXER, bp.Identity()), merge="gated")), 2)),
    "concat": space(bp.Block(mixer=bp.Parallel(branches=bp.subset(MIXER, bp.SwiGLU(), size=(1, 2)), merge="concat"))),
    "attention beside the feed-forward": space(bp.Block(mixer=bp.Parallel(branches=(bp.Attention(heads=2), bp.SwiGLU())))),
    "cell": space(bp.Cell(edges=bp.repeat(bp.choice(bp.Zero(), bp.Identity(), bp.ShortConv(kernel=3), bp.MLP(ratio=1)), 6))),
    "looped middle": space((BLOCK, bp.Looped(bp.repeat(BLOCK, bp.integer(1, 2)),
                                             bp.choice(bp.Once(), bp.Loop(2), bp.Loop(2, lora_rank=2))), BLOCK)),
    "tied loops in a loop": space(bp.repeat(bp.tied(bp.Looped((BLOCK,), bp.Loop(2, lora_rank=1))), 2),
                                  recursion=bp.choice(bp.Once(), bp.Loop(2, lora_rank=1))),
    "stages of one resolution": space((bp.Stage((BLOCK,)), bp.Stage((BLOCK,), width=bp.choice(8, 32))),
                                      head=bp.LanguageHead(tied=False)),
    "dense": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.DenseAverage())),
    "value residual": space(bp.Stack(bp.repeat(ATTENTION, bp.integer(2, 3)), bp.ValueResidual())),
    "values of the first": space(bp.Stack(bp.repeat(ATTENTION, bp.integer(2, 4)), bp.choice(
        bp.ValueResidual("identity"), bp.ValueResidual("single"), bp.ValueResidual("single", last=1),
        bp.ValueResidual(last=2)))),
    "sub-norms": space(bp.Stack(bp.repeat(bp.Block(
        mixer=bp.Attention(heads=4, kv_heads=2, sub_norm=bp.choice(True, False), qk_norm=True, window=bp.choice(None, 4)),
        channel=bp.choice(bp.MLP(ratio=1, sub_norm=True), bp.SwiGLU(ratio=1, sub_norm=True)),
        placement=bp.choice("pre", "peri")), 3),
        bp.choice(bp.CrossLayerKV(), bp.ValueResidual("single")))),
    "cross-layer": space(bp.Stack(bp.repeat(ATTENTION, 4), bp.choice(bp.CrossLayerKV(), bp.CrossLayerKV(every=3)))),
    "hyper": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.HyperConnections(bp.choice(2, 3)))),
    "static hyper": space(bp.Stack(bp.repeat(BLOCK, 2), bp.HyperConnections(dynamic=False))),
    "ladder": space(bp.Stack(bp.repeat(BLOCK, bp.integer(2, 3)), bp.Ladder())),
    "placed norms": space(bp.repeat(bp.Block(
        mixer=MIXER, channel=bp.MLP(ratio=2), placement=bp.choice("pre", "post", "peri", "out"),
        input_scale=bp.choice(1.0, 0.5), join=bp.choice(bp.Add(), bp.Add(skip=1.5))), 3)),
    "joins": space(bp.repeat(bp.Block(mixer=MIXER, channel=bp.choice(bp.MLP(ratio=1), bp.Identity()), join=bp.choice(
        bp.LayerScale(), bp.LayerScale(init=0.0, per_channel=False), bp.GatedResidual(), bp.GatedResidual("highway"),
        bp.AugmentedShortcut(paths=bp.choice(1, 2)))), 3), recursion=bp.choice(bp.Once(), bp.Loop(2, lora_rank=2))),
    "dilated dense": space(bp.Stack(bp.repeat(BLOCK, bp.integer(3, 5)), bp.choice(bp.DenseAverage(dilation=2),
                                                                              bp.DenseAverage(2, period=2)))),
    "deep cross": space(bp.Stack(bp.repeat(BLOCK, bp.integer(2, 3)), bp.DeepCrossAttention(bp.choice(1, 2, None)))),
    "separate deep cross": space(bp.Stack(bp.repeat(ATTENTION, bp.integer(1, 3)), bp.DeepCrossAttention(
        bp.choice(1, None), separate=True))),
    "deep cross, separate or not": space(bp.Stack(bp.repeat(ATTENTION, 2), bp.DeepCrossAttention(
        separate=bp.choice(True, False)))),
    "averaged features": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.FeatureAverage())),
    "ensemble": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.PathEnsemble(bp.choice(True, False)))),
    "dual": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.DualStream(bp.choice("both", "token"),
                                                                             bp.choice("both", "token", "context")))),
    "groups": space(bp.Stack(bp.repeat(BLOCK, bp.integer(2, 5)), bp.GroupFusion(bp.choice(2, 3)))),
    "depth": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.choice(bp.NormScaling(), bp.DeepNorm(), bp.DeepScale(),
                                                                          bp.DepthScale()))),
    "units of other kinds": space(bp.Stack((BLOCK, bp.Block(mixer=MIXER, placement="peri"), bp.Looped((BLOCK,), bp.Loop(2))),
                                           bp.choice(bp.DeepCrossAttention(), bp.PathEnsemble(), bp.HyperConnections()))),
    "dense group": space(bp.DenseGroup(bp.repeat(bp.Block(
        mixer=bp.choice(bp.Attention(heads=2, head_dim=8), bp.ShortConv()), channel=bp.MLP(ratio=1)), bp.integer(1, 3)),
        growth=bp.choice(4, 8))),
    "conditioned": space(bp.Conditioned(bp.repeat(bp.Block(
        mixer=MIXER, channel=bp.MLP(ratio=1), join=bp.AdaGate(), norm=bp.choice(bp.AdaNorm(), bp.TimeDependentNorm())), 2))),
    "conditioned now and then": space(bp.Conditioned((BLOCK, bp.Block(mixer=MIXER, norm=bp.AdaNorm()), bp.Stack((
        BLOCK, bp.Block(mixer=MIXER, join=bp.AdaGate())), bp.Ladder())))),
    "spectral": space((bp.StreamNorm(bp.choice(bp.LayerNorm(), bp.RMSNorm())), bp.repeat(bp.Block(
        mixer=bp.choice(bp.Spectral(bp.Attention(heads=bp.choice(2, 4))), bp.Spectral(bp.ShortConv(), iterations=2)),
        channel=bp.Spectral(bp.SwiGLU(ratio=bp.choice(1, 2))), placement="peri"), 2))),
    "a recursion as a choice": space(bp.Looped(bp.repeat(BLOCK, bp.integer(1, 2)), bp.choice(
        bp.Loop(2), bp.IterationEncoding(bp.choice(2, 3)), bp.HyperLoop(2, rate=bp.choice(2, 3)),
        bp.VisitOrder(reuse=(bp.integer(1, 3), 2)), bp.OwnNorms(2)))),
    "layers in another order": space(bp.Looped(bp.repeat(BLOCK, 3), bp.choice(
        bp.VisitOrder(order=bp.choice((1, 0), (2, 0, 0))), bp.VisitOrder(side_by_side=True, times=2)))),
    "exits": space((BLOCK, bp.EarlyExit(bp.repeat(BLOCK, 3), exits=(1, 2), adapters=(BLOCK, bp.Block()),
                                        leave=bp.choice(None, 0, 1, "token")))),
    "two rates": space((
        bp.MultiRate((BLOCK, OPEN, BLOCK), exits=(1, 2), fast=(bp.Block(channel=bp.MLP(ratio=1)), BLOCK), leave="token"),
        bp.MultiRate((BLOCK, BLOCK), fast=bp.Block(channel=bp.MLP(ratio=1)), leave=bp.choice(None, 0)))),
    "shortcuts": space(bp.Shortcuts((BLOCK, OPEN), adapters=(bp.Block(channel=bp.MLP(ratio=1)), bp.choice(
        bp.Block(), BLOCK)), reuse=bp.choice(True, False), hard=bp.choice(True, False))),
    "chunks of a fixed length": space((BLOCK, bp.Hierarchy(
        encoder=bp.Block(mixer=bp.Attention(heads=2, bidirectional=True)), inner=bp.repeat(BLOCK, bp.integer(1, 2)),
        decoder=ATTENTION, chunker=bp.FixedChunks(bp.choice(2, 4), bp.choice(1, 2)), width=bp.choice(None, 32)))),
    "segments": space((BLOCK, bp.SegmentRecurrence(
        bp.repeat(BLOCK, bp.integer(1, 2)), segment=bp.choice(4, 6), sensory=bp.choice(0, 2), cache=bp.choice(1, 4),
        memory=bp.choice(None, "mean", "recall"), key_dim=bp.choice(None, 8)))),
    "memories and attention": space((
        bp.Block(mixer=bp.MemoryAsContext(bp.NeuralMemory(heads=2, depth=bp.choice(1, 2), chunk=2), chunks=bp.choice(2, 3),
                                          persistent=bp.choice(0, 2), heads=bp.choice(1, 2)), channel=bp.MLP(ratio=1)),
        bp.PersistentTokens(bp.repeat(BLOCK, bp.integer(1, 2)), tokens=bp.choice(1, 3)),
        bp.Block(mixer=bp.MemoryAsGate(bp.choice(bp.NeuralMemory(heads=2, chunk=4), bp.ShortConv(kernel=3)),
                                       window=bp.choice(3, 5), persistent=bp.choice(0, 2), heads=bp.choice(1, 2))))),
    "reversible": space(bp.Stack(bp.repeat(BLOCK, bp.integer(1, 3)), bp.Reversible())),
    "persistent selection": space(bp.Stack(bp.repeat(bp.Block(mixer=bp.SelectiveAttention(
        heads=2, tokens=3), channel=bp.SwiGLU(ratio=1)), bp.integer(2, 4)), bp.PersistentSelection(dense=bp.choice(0, 1)))),
    "topology as a choice": space(bp.Stack((BLOCK, bp.Looped((BLOCK,), bp.Loop(2)), ATTENTION), bp.choice(
        bp.Residual(), bp.DenseAverage(), bp.ValueResidual(), bp.CrossLayerKV(), bp.HyperConnections(), bp.Ladder()))),
}
NOT_CAUSAL = {
    "pyramid": space((bp.Stage((BLOCK,), stride=2, width=bp.choice(16, 32)),
                      bp.Stage((BLOCK,), stride=2, kernel=3, width=40, norm=bp.RMSNorm())), head=bp.LanguageHead(tied=False)),
    "transitions of a sequence": space((bp.ConvEmbedding(), BLOCK, bp.DeformableMerging(width=bp.choice(None, 32)), BLOCK,
                                        bp.HaloDownsample(heads=2, head_dim=4, block=4, halo=1), BLOCK),
                                       head=bp.LanguageHead(tied=False)),
    "blocks of a document": space((bp.BlockEncoder(
        bp.repeat(bp.Block(mixer=bp.Attention(heads=2, bidirectional=True), channel=bp.MLP(ratio=1)), bp.integer(1, 2)),
        block=bp.choice(4, 5), width=bp.choice(None, 32)), BLOCK), head=bp.LanguageHead(tied=False)),
    "rounds over the end": space((BLOCK, bp.LatentReasoning(
        bp.repeat(BLOCK, bp.integer(1, 2)), block=bp.choice(2, 3), rounds=bp.choice(1, 2)), BLOCK)),
    "groups and latents": space(bp.FIT(local=bp.repeat(BLOCK, 2), overall=BLOCK, group=4, latents=bp.choice(1, 2))),
    "u-shape": space(bp.UShape(before=BLOCK, inner=bp.UShape(inner=(BLOCK, BLOCK), stride=2, width=32), after=BLOCK,
                               skip=bp.choice("sum", "concat", "gated"))),
    "separable u-shape": space(bp.UShape(before=BLOCK, inner=BLOCK, after=BLOCK, resample=bp.choice("full", "separable"))),
    "routed": space((BLOCK, bp.Routed(bp.repeat(BLOCK, 2), capacity=bp.choice(0.25, 0.5),
                                      weight=bp.choice("linear", "tanh", "sigmoid", "through", "none")))),
    "fewer tokens in every pass": space(bp.Looped(bp.repeat(BLOCK, 2), bp.choice(
        bp.RoutedLoop((1.0, 0.5), adds=bp.choice("output", "change", "whole")), bp.InnerThinking(bp.choice(2, 3))))),
    "sliced": space(bp.Looped(bp.repeat(BLOCK, 2), bp.SlicedLoop(bp.choice((4, 3), (1, 2, 2)), ratio=bp.choice(1, 2)))),
    "gates": space(bp.GatedDepth(bp.repeat(BLOCK, bp.integer(1, 3)), scope=bp.choice("layer", "input"), temperature=0)),
    "tokens merged and back": space((BOTH_WAYS, bp.Reduced(
        bp.repeat(BOTH_WAYS, bp.integer(2, 3)),
        bp.choice(bp.PiToMe(keep=bp.choice(0.6, 0.8)), bp.ToMe(remove=2, protected=1)), restore=True))),
    "tokens into rows of a matrix": space(bp.Reduced(
        bp.repeat(BOTH_WAYS, bp.integer(2, 3)), bp.choice(
            bp.TokenTransforming(keep=bp.choice(0.5, 0.7), protected=bp.choice(0, 1)), bp.ZeroTPrune(keep=0.6),
            bp.FasterVLM(0.5)),
        at=bp.choice((0,), (-1,)), restore=bp.choice(False, True))),
    "sequences leave": space(bp.EarlyExit(bp.repeat(BLOCK, 2), adapters=(BLOCK,), leave="sequence")),
    "encoder-decoder": space(bp.EncoderDecoder(encoder=bp.repeat(BLOCK, bp.integer(1, 2)), decoder=(
        bp.Block(mixer=bp.Attention(heads=2)), bp.Block(mixer=bp.CrossAttention(heads=bp.choice(2, 4)), channel=bp.MLP())))),
    "two encoders": space(bp.EncoderDecoder(encoder=BLOCK, memory="first", decoder=bp.EncoderDecoder(
        encoder=BLOCK, decoder=(bp.Block(mixer=bp.CrossAttention(heads=2, memory="first")),
                                bp.Block(mixer=bp.CrossAttention(heads=bp.choice(2, 4)), channel=bp.MLP()))))),
}
IMAGES = {"embed": bp.PatchEmbedding(patch=4, image=28, grid=True), "head": bp.ClassifierHead(classes=5)}
GRID = {
    "a stage of another width on a grid": space(bp.Stage(bp.repeat(BLOCK, 2), width=bp.choice(24, 32)), **IMAGES),
    "conditioned on a grid": space(bp.Conditioned(bp.repeat(bp.Block(
        mixer=bp.choice(bp.DepthwiseConv2d(kernel=3), bp.Attention(heads=2)), channel=bp.MLP(ratio=1), join=bp.AdaGate(),
        norm=bp.choice(bp.AdaNorm(), bp.TimeDependentNorm())), 2)), **IMAGES),
    "prompted": space(bp.Prompted((
        bp.Block(mixer=bp.choice(bp.DepthwiseConv2d(kernel=3), bp.Attention(heads=2)), norm=bp.AdaNorm()),
        bp.UShape(inner=bp.Block(channel=bp.MLP(ratio=1), norm=bp.AdaNorm()), stride=(2, 2), width=bp.choice(12, 24),
                  carry=("condition",))), features=5, tokens=1),
        **IMAGES | {"embed": bp.LatentEmbedding(channels=1, image=(6, 8))}),
    "shortcuts on a grid": space((bp.Shortcuts(BLOCK, adapters=bp.Block(channel=bp.MLP(ratio=1))), bp.MultiRate(
        (BLOCK, BLOCK), fast=bp.Block(channel=bp.MLP(ratio=1)), leave=0)), **IMAGES),
    "class attention": space((bp.repeat(bp.Block(mixer=bp.Attention(heads=2, bidirectional=True), channel=bp.MLP(ratio=1),
                                                 join=bp.LayerScale()), 2),
                              bp.ClassAttention(depth=bp.choice(1, 2), heads=bp.choice(2, 4), ratio=2)), **IMAGES),
    "grid": space((bp.Stage((bp.Block(mixer=bp.DepthwiseConv2d(kernel=bp.choice(3, 5)), channel=bp.MLP()),), stride=1),
                   bp.Stage(bp.repeat(BLOCK, 2), stride=(2, 2), width=bp.choice(24, 32))),
                  **IMAGES),
    "overlapping tokens": space((BLOCK, bp.ConvEmbedding(width=bp.choice(None, 32), kernel=bp.choice(2, 3, 5)), BLOCK,
                                 bp.ConvEmbedding(kernel=3, stride=3), BLOCK), **IMAGES),
    "averaged tokens": space((BLOCK, bp.PooledMerging(width=bp.choice(None, 32), stride=bp.choice(1, 2, 3),
                                                      activation=bp.choice(None, "relu")), BLOCK), **IMAGES),
    "attention beside convolutions": space((BLOCK, bp.NextTransformer(
        width=bp.choice(32, 40), head_dim=8, reduction=bp.choice(1, 2), ratio=bp.choice(1, 2)), BLOCK), **IMAGES),
    "states of every stage": space(bp.StateFusion(
        (BLOCK, bp.Block(mixer=bp.HiddenStateMixer(state=bp.choice(3, 5), tells=True))),
        (bp.InvertedMerging(width=bp.choice(None, 24)), bp.Block(
            mixer=bp.HiddenStateMixer(state=3, tells=True), join=bp.Blend())),
        (bp.Stack((BLOCK, bp.Block(mixer=bp.HiddenStateMixer(state=2, tells=True)))), bp.StreamNorm(bp.LayerNorm()))),
        norm=bp.NoNorm(), **IMAGES),
    "bottlenecks between stages": space((BLOCK, bp.InvertedMerging(
        width=bp.choice(None, 32), stride=bp.choice(1, 2), kernel=bp.choice(3, 5), expand=bp.choice(1, 2),
        of=bp.choice("in", "out"), squeeze=bp.choice(None, 4), activation=bp.choice("relu", "gelu")), BLOCK), **IMAGES),
    "ghosts": space((BLOCK, bp.GhostTransition(width=bp.choice(None, 32), stride=bp.choice(1, 2), gate=bp.choice(None, 3, 5),
                                               squeeze=bp.choice(False, True)), BLOCK), **IMAGES),
    "a separable u-shape on a grid": space(bp.UShape(inner=(BLOCK,), stride=(2, 2), width=bp.choice(None, 24),
                                                     resample="separable", kernel=bp.choice(3, 5)), **IMAGES),
    "tokens at predicted places": space((BLOCK, bp.DeformableMerging(width=bp.choice(None, 32), kernel=bp.choice(2, 3)),
                                         BLOCK), **IMAGES),
    "queries on a coarser grid": space((bp.HaloDownsample(
        width=bp.choice(None, 32), heads=2, head_dim=bp.choice(4, 8), block=bp.choice(2, 4), halo=bp.choice(0, 1),
        values=bp.choice(1.0, 1.5)), BLOCK), **IMAGES),
    "clusters of a grid and back": space((BOTH_WAYS, bp.Reduced(
        bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=2), bp.DepthwiseConv2d(kernel=3)), channel=bp.MLP(ratio=1)), 2),
        bp.Clusters(rows=bp.choice(2, 3), columns=4), restore=True)), **IMAGES),
    "a class token among fewer": space((bp.FactoredPositions(7, bp.choice(7, 9)), bp.ClassToken(), bp.Reduced(
        bp.repeat(BOTH_WAYS, 2), bp.choice(bp.PiToMe(0.7, protected=1), bp.ZeroTPrune(0.7, protected=1), bp.FasterVLM(0.5))),
        BOTH_WAYS, bp.Reduce(bp.choice(bp.FirstTokens(), bp.Clusters(3, 2), bp.ToMe(4, protected=1)))), **IMAGES),
    "pooled tokens": space((BLOCK, bp.TokenPooling(width=bp.choice(None, 48), stride=bp.choice(1, 2, 3)), BLOCK), **IMAGES),
    "pooled tokens and a class token": space(
        (BLOCK, bp.TokenPooling(width=bp.choice(None, 48), class_token=True, rows=4), BLOCK,
         bp.TokenPooling(stride=3, class_token=True, rows=2), BLOCK),
        **IMAGES | {"embed": bp.PatchEmbedding(4, 1, image=(16, 28), class_token=True),
                    "head": bp.PooledHead(5, pool="class")}),
    "pooled queries": space((bp.MultiscaleLayer(
        heads=bp.choice(1, 2), width=bp.choice(None, 24, 32), stride=bp.choice(1, 2), kv_stride=bp.choice(1, 2),
        kernel=bp.choice(1, 3), pool=bp.choice("conv", "max", "mean"), ratio=bp.choice(1, 2)), BLOCK), **IMAGES),
    "pooled queries and a class token": space(
        (bp.MultiscaleLayer(2, stride=bp.choice(1, 2), class_token=True, rows=4), BLOCK),
        **IMAGES | {"embed": bp.PatchEmbedding(4, 1, image=(16, 28), class_token=True)}),
    "words in sentences": space(bp.TransformerInTransformer(
        inner=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=2), bp.DepthwiseConv2d(kernel=3))), bp.integer(1, 2)),
        outer=bp.repeat(BLOCK, bp.integer(2, 3)), width=bp.choice(24, 32), side=bp.choice(2, 3)),
        **IMAGES | {"embed": bp.PatchEmbedding(4, 1, image=24, grid=True)}),
    "words in sentences behind a class token": space(bp.TransformerInTransformer(
        inner=bp.repeat(BLOCK, bp.integer(1, 2)), outer=bp.repeat(BLOCK, 2), width=bp.choice(24, 32), side=2, places=(3, 5),
        class_token=True), **IMAGES | {"embed": bp.PatchEmbedding(4, 1, image=(24, 40), grid=True, position=False)}),
    "a map of several layers": space(
        bp.DensePrediction(bp.repeat(BLOCK, bp.integer(3, 4)), width=bp.choice(6, 8), reads=bp.choice(2, 3)), **IMAGES),
    "u-shape on a grid": space(bp.UShape(inner=(BLOCK,), stride=(2, 2), skip=bp.choice("sum", "gated")), **IMAGES),
}
ALL = CAUSAL | NOT_CAUSAL | GRID
# What runs here depends on the input, so that their costs are expectations.
BY_INPUT = {
    "tokens above a threshold": space((BLOCK, bp.Routed(bp.repeat(BLOCK, 2), 0.5, choose="threshold", weight="through"))),
    "the best tokens of every frame": space(bp.Framed((BLOCK, bp.Routed(
        bp.repeat(BLOCK, bp.integer(1, 2)), bp.choice(0.2, 0.5), weight=bp.choice("linear", "sigmoid"), within="frame")),
        tokens=bp.choice(2, 3)), embed=bp.MarkedEmbedding(vocab=32, marks=tuple(range(20)))),
    "tokens an interpreter keeps": space((bp.ClassToken(), BOTH_WAYS, bp.DynamicDrop((BOTH_WAYS, bp.DynamicDrop(
        bp.repeat(BOTH_WAYS, bp.integer(1, 2)), heads=bp.choice(1, 2))), heads=4)), **IMAGES),
    "tokens choose their passes": space(bp.Looped(bp.repeat(BLOCK, 2), bp.TokenLoop(2))),
    "chunks begin at marks": space(bp.Hierarchy(
        encoder=bp.Block(mixer=bp.Attention(heads=2, bidirectional=True)), inner=bp.repeat(BLOCK, bp.integer(1, 2)),
        decoder=BLOCK, chunker=bp.WordChunks(bp.choice(3, 4)), width=bp.choice(None, 32)),
        embed=bp.MarkedEmbedding(vocab=32, marks=(0, 1, 2, 3, 4, 5))),
    "chunks begin where tokens differ": space((BLOCK, bp.Hierarchy(
        encoder=BLOCK, inner=bp.repeat(BLOCK, bp.integer(1, 2)), decoder=BLOCK, chunker=bp.DynamicChunks(bp.choice(2, 3)),
        width=bp.choice(None, 32)))),
}


def inputs(architecture, length=13):
    if hasattr(architecture.plan.embed, "vocab"):
        return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(0))
    if hasattr(architecture.plan.embed, "steps"):
        return torch.randn(2, architecture.plan.embed.steps, 5, generator=torch.Generator().manual_seed(0))
    return torch.randn(2, 1, *architecture.plan.embed.sides, generator=torch.Generator().manual_seed(0))


def varied(space, count=3):
    return [space.sample(random.Random(seed)) for seed in range(count)]


def shaken(module):
    """Parameters that start at zero get values, so that a test sees them."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return module
