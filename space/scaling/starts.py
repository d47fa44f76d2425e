"""Starting values from the depth, for architectures that train without a smaller base.

    deepnorm    DeepNet: feed-forward matrices, values and attention outputs smaller by beta
    magneto     Foundation Transformers: the same matrices larger by gamma
    deepscale   DeepScaleLM: every sublayer gives a variance of 1

A start is a factor per parameter on the usual starting values, as in `mup`; the module stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..macros.encoder_decoder import EncoderDecoder
from ..macros.residual_depth import DeepNorm
from ..operators.attention import Attention
from ..operators.mlp import MLP
from ..operators.swiglu import SwiGLU
from ..plan import Block
from .moments import activation_square

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["Start", "deepnorm", "deepscale", "magneto"]

ATTENTION = ("value.weight", "out.weight")
FEED_FORWARD = ("gate.weight", "up.weight", "down.weight")


@dataclass(frozen=True)
class Start:
    """How one architecture starts. init: factor on the usual starting values, by name of parameter."""

    architecture: Architecture
    init: Mapping[str, float]

    def build(self, seed: int = 0, device: Any = None) -> SequenceModel:
        """The module with its starting values."""
        import torch

        model = self.architecture.build(seed, device)
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for name, factor in self.init.items():
                if factor != 1.0 and tensors[name].device.type != "meta":
                    tensors[name].mul_(factor)
        return model


def deepnorm(architecture: Architecture) -> Start:
    """DeepNet (Wang et al., 2022): values, attention outputs and feed-forward matrices start at Xavier times beta.

    beta comes from each `Stack(..., residual=DeepNorm())`; what stands elsewhere starts as usual. Raises ValueError for an
    architecture without such a stack.
    """
    found: dict[str, float] = {}
    for place in architecture.placed:
        residual = getattr(place.operator, "residual", None)
        if isinstance(residual, DeepNorm):
            depth = sum(isinstance(part.item, Block) for part in place.operator.parts(place.width, 1))  # type: ignore[attr-defined]
            inside = _matrices(architecture, f"{place.name}.")
            found |= {name: residual.beta(depth) * _xavier(architecture, name) for name in inside}
            found |= {name: _xavier(architecture, name) for name in _queries(architecture, f"{place.name}.")}
    if not found:
        raise ValueError("DeepNorm's starting values belong to its residual sum: got a body without it; use Stack(layers, "
                         "residual=DeepNorm())")
    return Start(architecture, found)


def magneto(architecture: Architecture, encoder_layers: int | None = None, decoder_layers: int | None = None) -> Start:
    """Foundation Transformers (Wang et al., 2022): values, attention outputs and feed-forward matrices start at Xavier times
    gamma = sqrt(log(2 N)), N the layers of an encoder or of a decoder alone.

    It belongs to `Attention(sub_norm=True)` and `MLP(sub_norm=True)`. Inside `EncoderDecoder`, with N layers of the encoder
    and M of the decoder, gamma = sqrt(log(3 M) log(2 N) / 3) in the encoder and sqrt(log(3 M)) in the decoder; the decoder's
    `CrossAttention` starts as usual and has no inner norm, as in the authors' code. Where one of the two is a network of its
    own: encoder_layers: N of the encoder that the architecture is the decoder of; decoder_layers: M of its decoder.

    A layer is two sublayers, one with `CrossAttention` three. Raises ValueError where both are given, or for an architecture
    that holds both itself.
    """
    pairs = [place.name for place in architecture.placed if isinstance(place.operator, EncoderDecoder)]
    if encoder_layers is not None and decoder_layers is not None or pairs and (encoder_layers or decoder_layers):
        raise ValueError("an architecture is the encoder, the decoder or holds both: got encoder_layers="
                         f"{encoder_layers} and decoder_layers={decoder_layers} for {len(pairs)} EncoderDecoder; name at "
                         "most the one that is missing")
    if not pairs:
        gamma = _gamma(_depth(architecture, ""), encoder_layers, decoder_layers)
        return _larger(architecture, {"": gamma})
    gammas = {}
    for pair in pairs:
        layers, later = _depth(architecture, f"{pair}.encoder."), _depth(architecture, f"{pair}.decoder.")
        gammas[f"{pair}.encoder."] = _gamma(layers, None, later)
        gammas[f"{pair}.decoder."] = _gamma(later, layers, None)
    return _larger(architecture, gammas)


def _gamma(depth: int, encoder_layers: int | None, decoder_layers: int | None) -> float:
    """Magneto's factor for `depth` layers of a decoder, of an encoder, or of one of them alone."""
    if encoder_layers is not None:
        return math.sqrt(math.log(3 * depth))
    if decoder_layers is not None:
        return math.sqrt(math.log(3 * decoder_layers) * math.log(2 * depth) / 3)
    return math.sqrt(math.log(2 * depth))


def _depth(architecture: Architecture, prefix: str) -> int:
    """Layers below a prefix: a cross-attention is a third sublayer of its layer."""
    sublayers = [operator for name, operator in architecture.modules if name.startswith(prefix) and name.endswith(".op")]
    return max(math.ceil(sum(not operator.cross for operator in sublayers) / 2), 1)


def _larger(architecture: Architecture, gammas: Mapping[str, float]) -> Start:
    """Xavier times the factor of each prefix."""
    crosses = tuple(f"{name}." for name, operator in architecture.modules if operator.cross)
    return Start(architecture, {name: gamma * _xavier(architecture, name) for prefix, gamma in gammas.items()
                                for name in _matrices(architecture, prefix) if not name.startswith(crosses)})


def deepscale(architecture: Architecture, correlation: float = 1.0) -> Start:
    """DeepScaleLM (Kedia et al., 2024): every sublayer's output has variance 1 when its input has.

    The last matrix of a feed-forward layer makes up for what the activation takes, 1 / sqrt(E[phi(z)^2]) (the paper divides
    that between its two). Values and attention outputs share (1 / r)^(1/2), r the correlation of the tokens that attention
    averages: `correlation`, 1 where they are alike. The paper's factors for dropout are 1 here.
    """
    if not 0 < correlation <= 1:
        raise ValueError(f"correlation of tokens is above 0 and at most 1: got {correlation!r}")
    found: dict[str, float] = {}
    for place in architecture.placed:
        operator = place.operator
        if isinstance(operator, Attention):
            found |= {f"{place.name}.{key}": correlation ** -0.25 for key in ATTENTION}
        elif isinstance(operator, MLP | SwiGLU):
            found[f"{place.name}.down.weight"] = activation_square(getattr(operator, "activation", "silu")) ** -0.5
    return Start(architecture, {name: factor for name, factor in found.items() if name in architecture.parameters})


def _matrices(architecture: Architecture, prefix: str) -> list[str]:
    """Values, attention outputs and feed-forward matrices below a prefix."""
    found = []
    for name, operator in architecture.modules:
        keys = ATTENTION if operator.kind == "mixer" else FEED_FORWARD if operator.kind == "channel" else ()
        if name.startswith(prefix):
            found += [f"{name}.{key}" for key in keys if f"{name}.{key}" in architecture.parameters]
    return found


def _queries(architecture: Architecture, prefix: str) -> list[str]:
    return [name for name in architecture.parameters if name.startswith(prefix)
            and name.endswith(("query.weight", "key.weight"))]


def _xavier(architecture: Architecture, name: str) -> float:
    """Xavier's spread, sqrt(2 / (inputs + outputs)), over the usual one, 1 / sqrt(inputs)."""
    outputs, inputs = architecture.parameters[name].shape
    return math.sqrt(2 * inputs / (inputs + outputs))
