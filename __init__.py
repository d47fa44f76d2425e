"""bodyplan: search the space of body plans of neural networks.

You write a search space down in Python, launch a sweep, read the Pareto front, and walk away with a standalone
model that does not need bodyplan any more. Importing this module imports neither torch nor ray nor mlflow: every
public name is loaded on first use.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "choice integer optional permutation real repeat subset tied": ".space.choices",
    "rule": ".space.grammar",
    "cost count measure monotone total value within": ".space.constraints",
    "graph_encoding path_encoding": ".space.encoding",
    "Macro": ".space.macros.base",
    "Genome": ".space.genome",
    "Space": ".space.space",
    "Architecture": ".space.architecture",
    "Block Once Loop Plan": ".space.plan",
    "Parallel": ".space.macros.parallel",
    "Cell": ".space.macros.cell",
    "Stage": ".space.macros.stage",
    "ConvEmbedding": ".space.macros.merging",
    "DeformableMerging": ".space.macros.deformable_merging",
    "HaloDownsample": ".space.macros.halo_downsample",
    "PooledMerging": ".space.macros.pooled_merging",
    "NextTransformer": ".space.macros.next_transformer",
    "GhostTransition": ".space.macros.ghost_transition",
    "StreamNorm": ".space.macros.stream_norm",
    "UShape": ".space.macros.ushape",
    "Looped": ".space.macros.looped",
    "EncoderDecoder": ".space.macros.encoder_decoder",
    "Stack": ".space.macros.stack",
    "Residual DenseAverage ValueResidual CrossLayerKV HyperConnections Ladder": ".space.macros.residual",
    "DeepCrossAttention PathEnsemble": ".space.macros.residual_history",
    "DualStream": ".space.macros.residual_streams",
    "GroupFusion": ".space.macros.residual_groups",
    "DeepNorm DeepScale NormScaling DepthScale": ".space.macros.residual_depth",
    "Conditioned": ".space.macros.conditioned",
    "ClassAttention": ".space.macros.class_attention",
    "DenseGroup": ".space.macros.dense_group",
    "Operator Source": ".space.operator",
    "Custom": ".space.operators.custom",
    "TokenEmbedding PatchEmbedding FrameEmbedding": ".space.operators.embedding",
    "ConvStem": ".space.operators.conv_stem",
    "FrameConvEmbedding": ".space.operators.frame_conv",
    "LanguageHead ClassifierHead": ".space.operators.head",
    "RMSNorm": ".space.operators.rmsnorm",
    "Attention": ".space.operators.attention",
    "GatedDeltaNet": ".space.operators.gated_delta",
    "Mamba": ".space.operators.mamba",
    "Scanned": ".space.operators.scanned",
    "SelectiveChannelMixer": ".space.operators.selective_channels",
    "Mamba2": ".space.operators.mamba2",
    "LinearAttention Based": ".space.operators.linear_attention",
    "Retention Lightning": ".space.operators.retention",
    "GLA": ".space.operators.gla",
    "Liger": ".space.operators.liger",
    "Aaren": ".space.operators.aaren",
    "KeyValueAttention": ".space.operators.key_value_attention",
    "NPRF": ".space.operators.nprf",
    "AgentAttention": ".space.operators.agent_attention",
    "SuperTokenAttention": ".space.operators.super_token",
    "EcoFormer": ".space.operators.hash_attention",
    "SequenceFF": ".space.operators.sequence_ff",
    "SEA": ".space.operators.estimated_attention",
    "DeltaNet": ".space.operators.delta_net",
    "NeuralMemory Atlas": ".space.operators.neural_memory",
    "HiddenStateMixer": ".space.operators.hidden_state_mixer",
    "LMU": ".space.operators.lmu",
    "RWKV VisionRWKV": ".space.operators.rwkv",
    "Extractor": ".space.operators.extractor",
    "VirtualNode": ".space.operators.virtual_node",
    "ShortConv": ".space.operators.short_conv",
    "Hyena": ".space.operators.hyena",
    "HyenaND": ".space.operators.hyena_nd",
    "Orchid": ".space.operators.orchid",
    "SwiGLU": ".space.operators.swiglu",
    "MLP": ".space.operators.mlp",
    "MoE": ".space.operators.moe",
    "LowRankMLP": ".space.operators.low_rank",
    "GroupedConv": ".space.operators.grouped_conv",
    "Identity": ".space.operators.identity",
    "Zero": ".space.operators.zero",
    "LayerNorm NoNorm": ".space.operators.layernorm",
    "BatchNorm": ".space.operators.batchnorm",
    "CRMSNorm": ".space.operators.crms_norm",
    "PRepBN Affine": ".space.operators.prepbn",
    "Spectral": ".space.operators.spectral",
    "AdaNorm AdaGate": ".space.operators.ada_norm",
    "TimeDependentNorm": ".space.operators.td_norm",
    "Add": ".space.operators.add",
    "LayerScale": ".space.operators.layer_scale",
    "GatedResidual": ".space.operators.gated_residual",
    "AugmentedShortcut": ".space.operators.augmented_shortcut",
    "CrossAttention": ".space.operators.cross_attention",
    "WindowAttention": ".space.operators.window_attention",
    "NeighbourhoodAttention": ".space.operators.neighbourhood_attention",
    "HaloAttention": ".space.operators.halo_attention",
    "HaloBottleneck": ".space.operators.halo_bottleneck",
    "ConvAttention": ".space.operators.conv_attention",
    "CausalNeighbourhood": ".space.operators.causal_neighbourhood",
    "InterleavedAttention": ".space.operators.interleaved_attention",
    "SpatialChannelCorrelation": ".space.operators.spatial_channel",
    "RecursiveAttention": ".space.operators.recursive_attention",
    "TransposedAttention": ".space.operators.transposed_attention",
    "DynamicLocalConv": ".space.operators.dynamic_local_conv",
    "ConvChannelAttention": ".space.operators.conv_channel_attention",
    "TokenAwarePooling": ".space.operators.token_aware_pooling",
    "ReducedAttention": ".space.operators.reduced_attention",
    "DepthwiseConv2d": ".space.operators.depthwise_conv2d",
    "InceptionMixer": ".space.operators.inception_mixer",
    "CrossCovarianceAttention": ".space.operators.cross_covariance",
    "SDTA": ".space.operators.split_depthwise",
    "MultiHeadConv": ".space.operators.multi_head_conv",
    "PooledAttention": ".space.operators.pooled_attention",
    "RaftMLP": ".space.operators.raft_mlp",
    "TokenMLP": ".space.operators.token_mlp",
    "NiNGate": ".space.operators.nin_gate",
    "DFCAttention": ".space.operators.dfc_attention",
    "GhostUnit": ".space.operators.ghost",
    "SubspaceAttention": ".space.operators.subspace_attention",
    "SqueezeExcite": ".space.operators.squeeze_excite",
    "DepthwiseMLP": ".space.operators.depthwise_mlp",
    "Conv2d": ".space.operators.conv2d",
    "ConvNeXtUnit": ".space.operators.convnext",
    "MobileConv": ".space.operators.inverted_residual",
    "FusedMobileConv": ".space.operators.fused_mobile_conv",
    "Pooling AveragePool": ".space.operators.pooling",
    "ConformerConv": ".space.operators.conformer_conv",
    "SqueezeformerConv": ".space.operators.squeezeformer_conv",
    "ChannelScale": ".space.operators.channel_scale",
    "Supernet": ".space.elastic.supernet",
    "order_axes": ".space.elastic.ordering",
    "Mup mup": ".space.scaling.mup",
    "deepnorm deepscale magneto": ".space.scaling.starts",
    "signal_propagation": ".space.scaling.moments",
    "compressed folded folded_into recentred": ".space.equivalents",
    "export": ".space.export",
    "Objective Estimate": ".evaluators.objectives",
    "latency": ".evaluators.latency",
    "train": ".evaluators.training",
    "TrainingStrategy Visit": ".evaluators.strategies",
    "SinglePath": ".evaluators.strategies.single_path",
    "Fair": ".evaluators.strategies.fair",
    "MultiPath": ".evaluators.strategies.multi_path",
    "Sandwich": ".evaluators.strategies.sandwich",
    "Attentive": ".evaluators.strategies.attentive",
    "ProgressiveShrinking": ".evaluators.strategies.shrinking",
    "ProgressiveDepth": ".evaluators.strategies.growing",
    "TwoStage": ".evaluators.strategies.two_stage",
    "Learngene": ".evaluators.strategies.learngene",
    "calibrate": ".evaluators.calibration",
    "Sweep": ".search.sweep",
    "train_supernet": ".search.data_parallel",
    "Front": ".search.front",
    "Journal": ".search.journal",
    "BodyplanError": ".errors",
}
_MODULES = {"presets": ".space.presets", "tasks": ".evaluators.tasks"}
_NAMES = {name: home for names, home in _HOMES.items() for name in names.split()}

__all__ = sorted([*_NAMES, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    if name not in _NAMES:
        near = difflib.get_close_matches(name, __all__, n=1)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
    target = getattr(importlib.import_module(_NAMES[name], __name__), name)
    globals()[name] = target
    return target


def __dir__() -> list[str]:
    return __all__
