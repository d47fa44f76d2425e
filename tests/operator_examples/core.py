"""The operators of the first spaces: transformers, state spaces, convolutions, embeddings and heads."""

from __future__ import annotations

import bodyplan as bp
import torch
from bodyplan.space.operator import Operator
from bodyplan.space.operators.batchnorm import BatchNorm
from bodyplan.space.operators.conformer_conv import ConformerConv
from bodyplan.space.operators.conv2d import Conv2d
from bodyplan.space.operators.convnext import ConvNeXtUnit
from bodyplan.space.operators.cross_attention import CrossAttention
from bodyplan.space.operators.depthwise_conv2d import DepthwiseConv2d
from bodyplan.space.operators.embedding import FrameEmbedding
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.inverted_residual import MobileConv
from bodyplan.space.operators.layernorm import LayerNorm, NoNorm
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.space.operators.moe import MoE
from bodyplan.space.operators.pooling import AveragePool, Pooling
from bodyplan.space.operators.reduced_attention import ReducedAttention
from bodyplan.space.operators.window_attention import WindowAttention
from bodyplan.space.operators.zero import Zero

__all__ = ["EXAMPLES", "UNVARIED", "UNVARIED_OPTIONS", "Doubled"]


class Doubled(torch.nn.Module):
    """A module of somebody's own."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(2 * width, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(x_BTD).tanh())


EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "AveragePool": [(AveragePool(size=5), 16), (AveragePool(size=3), 8)],
    "BatchNorm": [(BatchNorm(), 32), (BatchNorm(momentum=0.3, eps=1e-3), 16)],
    "ConformerConv": [
        (ConformerConv(kernel=7), 32), (ConformerConv(kernel=5, norm="layer"), 16),
        (ConformerConv(kernel=3, folded=True), 12),
        (ConformerConv(kernel=4, norm="layer", bidirectional=False), 24)],
    "Conv2d": [(Conv2d(kernel=5), 16), (Conv2d(kernel=3, activation="silu", norm=False), 8),
               (Conv2d(kernel=1, activation=None), 12), (Conv2d(kernel=3, folded=True), 12)],
    "ConvNeXtUnit": [(ConvNeXtUnit(kernel=7, layer_scale=0.5), 16), (ConvNeXtUnit(kernel=3, ratio=2), 8)],
    "CrossAttention": [
        (CrossAttention(heads=4, kv_heads=2), 32), (CrossAttention(heads=2, kv_heads=1, head_dim=6), 24),
        (CrossAttention(heads=2), 8)],
    "DepthwiseConv2d": [(DepthwiseConv2d(kernel=7), 16), (DepthwiseConv2d(kernel=3), 8),
                        (DepthwiseConv2d(kernel=5, trainable=False), 8), (DepthwiseConv2d(kernel=3, dilation=2), 8)],
    "FrozenEmbedding": [(bp.FrozenEmbedding(vocab=40, features=12), 16), (bp.FrozenEmbedding(vocab=30, features=9), 8),
                        (bp.FrozenEmbedding(vocab=24, table="bits"), 8)],
    "VariateEmbedding": [(bp.VariateEmbedding(steps=10), 16), (bp.VariateEmbedding(steps=7, norm=False), 8)],
    "ForecastHead": [(bp.ForecastHead(horizon=5, variates=3), 16), (bp.ForecastHead(horizon=3, variates=2), 8),
                     (bp.ForecastHead(horizon=4), 8)],
    "FrameEmbedding": [(FrameEmbedding(features=10, stack=3), 16), (FrameEmbedding(features=6, stack=2), 8)],
    "GatedDeltaNet": [
        (bp.GatedDeltaNet(heads=2, expand_v=2), 32), (bp.GatedDeltaNet(heads=1, head_dim=8), 16),
        (bp.GatedDeltaNet(heads=2, conv=3, allow_neg_eigval=True), 24),
        (bp.GatedDeltaNet(heads=2, conv=None, gate=False, decay=False), 24), (bp.GatedDeltaNet(heads=2, conv=1), 16)],
    "Mamba2": [
        (bp.Mamba2(state=16, head_dim=8, groups=2), 32), (bp.Mamba2(state=8, head_dim=8, expand=1, groups=2), 32),
        (bp.Mamba2(state=8, head_dim=8, conv=2), 16), (bp.Mamba2(state=16, head_dim=4, conv=None), 24)],
    "Hyena": [
        (bp.Hyena(order=3, filter_dim=16), 32), (bp.Hyena(order=2, filter_dim=8, bands=4, conv=2, reach=64), 24)],
    "ShortConv": [(bp.ShortConv(kernel=6), 32), (bp.ShortConv(kernel=3), 16), (bp.ShortConv(kernel=1), 32)],
    "GroupedConv": [
        (GroupedConv(kernel=5, groups=4), 32), (GroupedConv(kernel=3, groups=2, channels=6), 16),
        (GroupedConv(kernel=1, groups=1), 8)],
    "LowRankMLP": [(LowRankMLP(ratio=4, rank=12), 32), (LowRankMLP(ratio=1, rank=5, activation="silu"), 16),
                   (LowRankMLP(ratio=2, rank=8, activation="squared_relu"), 24)],
    "MoE": [(MoE(experts=6, top_k=2, ratio=2), 32), (MoE(experts=3, top_k=1, ratio=1), 16),
            (MoE(experts=4, top_k=3, ratio=1), 24)],
    "LayerNorm": [(LayerNorm(), 32), (LayerNorm(bias=False, eps=1e-3, scale=False), 16), (LayerNorm(project=False), 16)],
    "MobileConv": [(MobileConv(kernel=5, expand=3), 16), (MobileConv(kernel=3, expand=1), 8),
                   (MobileConv(kernel=3, expand=2, folded=True), 12)],
    "NoNorm": [(NoNorm(), 32)],
    "Pooling": [(Pooling(size=5), 16), (Pooling(size=3), 8)],
    "ReducedAttention": [(ReducedAttention(heads=4, reduction=3), 16), (ReducedAttention(heads=2, reduction=2), 8),
                         (ReducedAttention(heads=2, reduction=1, head_dim=6), 8)],
    "WindowAttention": [
        (WindowAttention(heads=4, window=4, shift=True), 16), (WindowAttention(heads=2, window=3, head_dim=3), 8)],
    "Zero": [(Zero(), 16)],
    "SwiGLU": [(bp.SwiGLU(3), 32), (bp.SwiGLU(8 / 3), 32), (bp.SwiGLU(1, activation=None), 16),
               (bp.SwiGLU(1, sub_norm=True), 16)],
    "MLP": [(bp.MLP(4), 32), (bp.MLP(2.5, activation="squared_relu"), 16), (bp.MLP(1, activation="silu"), 24),
            (bp.MLP(1, activation="abs", sub_norm=True), 24), (bp.MLP(2, activation="sine"), 16),
            (bp.MLP(2, activation="relu", top_k=5), 8), (bp.MLP(2, activation="poly_relu"), 16),
            (bp.MLP(1, activation="poly_norm", order=2, top_k=7), 24)],
    "Identity": [(bp.Identity(), 32)],
    "RMSNorm": [(bp.RMSNorm(), 32), (bp.RMSNorm(eps=1e-3), 16), (bp.RMSNorm(gain=False), 24)],
    "MarkedEmbedding": [(bp.MarkedEmbedding(vocab=40), 32), (bp.MarkedEmbedding(vocab=11, marks=(3, 7)), 16)],
    "TokenEmbedding": [(bp.TokenEmbedding(vocab=40), 32), (bp.TokenEmbedding(vocab=11), 16)],
    "PatchEmbedding": [(bp.PatchEmbedding(patch=4, channels=3, image=(16, 24)), 32),
                       (bp.PatchEmbedding(patch=2, channels=1, image=6, grid=True), 16),
                       (bp.PatchEmbedding(patch=8, channels=1, image=8, position=False), 16),
                       (bp.PatchEmbedding(patch=4, channels=3, image=(8, 12), kernel=7, norm=True), 16),
                       (bp.PatchEmbedding(patch=2, channels=1, image=(8, 10), kernel=4, padded=False, class_token=True), 16),
                       (bp.PatchEmbedding(patch=2, channels=1, image=(4, 6), position="conv"), 16)],
    "LanguageHead": [(bp.LanguageHead(tied=False, vocab=11), 32), (bp.LanguageHead(tied=False, vocab=7), 16),
                     (bp.LanguageHead(tied=True), 16)],
    "ClassifierHead": [(bp.ClassifierHead(classes=10), 32), (bp.ClassifierHead(classes=3), 16),
                       (bp.ClassifierHead(classes=10, hidden=24), 32), (bp.ClassifierHead(classes=3, hidden=8), 16)],
    "Custom": [(bp.Custom(Doubled), 32), (bp.Custom(Doubled, causal=False), 16)],
}

# Axes that have one size in every network: operator, axis -> why.
UNVARIED: dict[str, dict[str, str]] = {
    "MLP": {"constant": "a polynomial has one constant term"},
    "Hyena": {"time": "one positional feature is the distance itself"},
    "PatchEmbedding": {way: "positions are filtered by 3 x 3" for way in ("tap_rows", "tap_columns")},
    "Custom": {"copies1": "Doubled packs two copies", "copies0": "Doubled packs two copies"},
}

# Options that no example varies: operator, option -> why.
UNVARIED_OPTIONS: dict[str, dict[str, str]] = {
    "CrossAttention": {"memory": "only says which encoder is read"},
    "Custom": {"factory": "one module stands for all", "name": "only tells networks apart"},
}
