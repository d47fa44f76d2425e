"""Two matrices, each with a norm of its own behind it.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Param, axis, param, renamed
from ..operator import Operator, Source
from .batchnorm import BatchNorm, BatchNormalisation
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import check_ratio, hidden_size
from .spiking import SPIKE_NORMS, SpikingNorm, spiking_norm_axes

__all__ = ["NormedFeedForward", "NormedMLP", "SpikingFeedForward"]

ACTIVATIONS, NORMS = ("relu", "gelu", "silu"), ("batch", "layer")


class NormedFeedForward(nn.Module):
    """`last(down_norm(down(activation(up_norm(up(x))))))`, `last` a ReLU or nothing."""

    def __init__(self, width: int, hidden: int, activation: str, last: bool, batch: bool, bias: bool = False):
        super().__init__()
        self.activation, self.last = activation, last
        self.up = nn.Linear(width, hidden, bias=bias)
        self.up_norm: Any = BatchNormalisation(hidden) if batch else LayerNormalisation(hidden)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.down_norm: Any = BatchNormalisation(width) if batch else LayerNormalisation(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up_norm(self.up(x_BTD))
        if self.activation == "relu":
            h_BTF = F.relu(h_BTF)
        elif self.activation == "gelu":
            h_BTF = F.gelu(h_BTF)
        else:
            h_BTF = F.silu(h_BTF)
        y_BTD: Tensor = self.down_norm(self.down(h_BTF))
        return F.relu(y_BTD) if self.last else y_BTD


class SpikingFeedForward(nn.Module):
    """`down(spikes(up(spikes(x))))`, spikes being those of a norm of each; the state is the voltages of both."""

    def __init__(self, width: int, hidden: int, norm: str, bias: bool):
        super().__init__()
        self.up_spikes = SpikingNorm(width, norm)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down_spikes = SpikingNorm(hidden, norm)
        self.down = nn.Linear(hidden, width, bias=bias)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        return {"up": self.up_spikes.init_state(batch, dtype, device),
                "down": self.down_spikes.init_state(batch, dtype, device)}

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        s_BTD, up = self.up_spikes.step(x_BTD, None if state is None else state["up"])
        h_BTF, down = self.down_spikes.step(self.up(s_BTD), None if state is None else state["down"])
        return self.down(h_BTF), {"up": up, "down": down}


@dataclass(frozen=True)
class NormedMLP(Operator):
    """The feed-forward layer of LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference (Graham et al., 2021):
    a batch norm behind each matrix, which inference folds into it; the block has no norm of its own (`norm=NoNorm()`).

    ratio: hidden size over width, rounded up to a multiple of 8. activation: "relu", "gelu" or "silu" in between; last: a
    ReLU on what leaves as well. norm: "batch", or "layer" for a network that decodes token by token while its norms learn:
    a batch norm looks at the whole batch then, so it is not causal. bias: of both matrices.

    activation="spike": norm and leaky integrate-and-fire neurons ahead of each matrix, along the tokens (the channel mixer
    of Spiking LMUFormer, Liu et al., 2024); norm is "batch" then, or "affine", a trained one, which streams.
    """

    ratio: Any = 2
    activation: Any = "relu"
    last: Any = False
    norm: Any = "batch"
    bias: Any = False
    kind: ClassVar[str] = "channel"
    source: ClassVar[Source] = Source("LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", 2021)

    @property
    def causal(self) -> bool:                                                         # type: ignore[override]
        return bool(self.norm != "batch")

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        return self.causal

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        """A neuron fires or does not."""
        return bool(self.activation == "spike")

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        norms = SPIKE_NORMS if self.activation == "spike" else NORMS
        for name, value, known in (("activation", self.activation, (*ACTIVATIONS, "spike")), ("norm", self.norm, norms)):
            if value not in known:
                raise ValueError(f"{unknown(name, value, known)} (at {where})")
        if self.last and self.activation == "spike":
            raise ValueError(f"a matrix is last where neurons are ahead of it at {where}: got last=True with "
                             "activation='spike'; leave it out")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        found = {"up.weight": param(f, d), "down.weight": param(d, f)}
        if self.bias:
            found |= {"up.bias": param(f, init="zeros"), "down.bias": param(d, init="zeros")}
        if self.activation == "spike":
            return found | spiking_norm_axes("up_spikes", d, self.norm) | spiking_norm_axes("down_spikes", f, self.norm)
        norm: Operator = BatchNorm() if self.norm == "batch" else LayerNorm()
        return {**found, **{f"up_norm.{name}": renamed(part, "width", f) for name, part in norm.axes(width).items()},
                **{f"down_norm.{name}": part for name, part in norm.axes(width).items()}}

    def build(self, width: int) -> nn.Module:
        hidden, bias = hidden_size(self.ratio, width), bool(self.bias)
        if self.activation == "spike":
            return SpikingFeedForward(width, hidden, self.norm, bias)
        return NormedFeedForward(width, hidden, self.activation, bool(self.last), self.norm == "batch", bias)

    def state_numel(self, width: int, length: int) -> int:
        """Voltages of neurons."""
        return width + hidden_size(self.ratio, width) if self.activation == "spike" else 0
