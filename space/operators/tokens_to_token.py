"""Images to tokens by overlapping windows of tokens, over and over, with a light transformer layer in between.

Legend: B batch, C channels, H and W rows and columns, T tokens, I entries of a window, P token_dim, M features, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Axis, Dim, Init, Param, as_dim, axis, param, renamed
from ..operator import Length, Operator, Source
from .checks import require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .mlp import FeedForward
from .places import sine_places
from .spatial import padding

__all__ = ["FeatureTokens", "LightTokens", "SoftSplits", "TokensToToken"]

MIXERS = ("performer", "transformer")


class LightTokens(nn.Module):
    """`y + mlp(norm(y))` with `y = v + out(attention(q, k, v))`, all of the normed window; one head."""

    def __init__(self, entries: int, token_dim: int):
        super().__init__()
        self.norm = LayerNormalisation(entries)
        self.query, self.key, self.value = (nn.Linear(entries, token_dim, bias=False) for _ in range(3))
        self.out = nn.Linear(token_dim, token_dim, bias=False)
        self.mlp_norm = LayerNormalisation(token_dim)
        self.mlp = FeedForward(token_dim, token_dim, "gelu")

    def forward(self, x_BTI: Tensor) -> Tensor:
        x_BTI = self.norm(x_BTI)
        v_BTP = self.value(x_BTI)
        y_BTP = v_BTP + self.out(self.mixed(self.query(x_BTI), self.key(x_BTI), v_BTP))
        return y_BTP + self.mlp(self.mlp_norm(y_BTP))                                # type: ignore[no-any-return]

    def mixed(self, q_BTP: Tensor, k_BTP: Tensor, v_BTP: Tensor) -> Tensor:
        """Softmax attention."""
        return F.scaled_dot_product_attention(q_BTP, k_BTP, v_BTP)


class FeatureTokens(LightTokens):
    """The same with attention by positive random features, `exp(w x - |x|^2 / 2) / sqrt(M)`: linear in the tokens."""

    def __init__(self, entries: int, token_dim: int, features: int):
        super().__init__(entries, token_dim)
        self.random_features = nn.Parameter(torch.empty(features, token_dim), requires_grad=False)

    def mixed(self, q_BTP: Tensor, k_BTP: Tensor, v_BTP: Tensor) -> Tensor:
        q_BTM, k_BTM = self.lifted(q_BTP), self.lifted(k_BTP)
        ones_BTP = F.pad(v_BTP.to(k_BTM.dtype), (0, 1), value=1.0)
        y_BTP = q_BTM @ (k_BTM.mT @ ones_BTP)
        return (y_BTP[..., :-1] / (y_BTP[..., -1:] + 1e-8)).to(v_BTP.dtype)

    def lifted(self, x_BTP: Tensor) -> Tensor:
        wide = torch.promote_types(x_BTP.dtype, torch.float32)
        x_BTP = x_BTP.to(wide)
        half_BT1 = x_BTP.square().sum(-1, keepdim=True) / 2
        features_MP = self.random_features.to(wide)
        return torch.exp(F.linear(x_BTP, features_MP) - half_BT1) / math.sqrt(len(features_MP))


class SoftSplits(nn.Module):
    """Windows of pixels, a light layer, windows of tokens, and so on; the last windows are projected to the width."""

    def __init__(self, layers: list[nn.Module], entries: int, width: int, kernels: tuple[int, ...], strides: tuple[int, ...],
                 position: str | None, class_token: bool):
        super().__init__()
        self.kernels, self.strides, self.position = kernels, strides, position
        splits = len(kernels)                # in the names: what was split more often is something else
        self.layers = nn.ModuleDict({f"{splits}_{i}": layer for i, layer in enumerate(layers)})
        self.project = nn.ModuleDict({f"{splits}": nn.Linear(entries, width, bias=False)})
        self.token = nn.Parameter(torch.empty(width)) if class_token else None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BTI, grid = self.windows(pixels_BCHW, 0)
        for i, layer in enumerate(self.layers.values(), 1):
            x_BTI, grid = self.windows(layer(x_BTI).transpose(1, 2).unflatten(2, grid), i)
        for project in self.project.values():
            x_BTI = project(x_BTI)
        if self.token is not None:
            x_BTI = torch.cat([self.token.expand(len(x_BTI), 1, -1), x_BTI], dim=1)
        if self.position != "sine":
            return x_BTI
        return x_BTI + sine_places(x_BTI.shape[1], x_BTI.shape[2], x_BTI)

    def windows(self, x_BCHW: Tensor, i: int) -> tuple[Tensor, tuple[int, int]]:
        """Every window of split i, zeros outside, [B, T, I], and how many rows and columns of them there are."""
        kernel, stride = self.kernels[i], self.strides[i]
        rows, columns = (-(-size // stride) for size in x_BCHW.shape[2:])
        down, across = (padding(size, stride, kernel) for size in x_BCHW.shape[2:])
        windows_BIT = F.unfold(F.pad(x_BCHW, (*across, *down)), kernel, stride=stride)
        return windows_BIT.transpose(1, 2), (rows, columns)


@dataclass(frozen=True)
class TokensToToken(Operator):
    """The tokens-to-token module of T2T-ViT (Yuan et al., 2021). pixels (B, channels, H, W) to (B, tokens, width).

    channels: of the images. image: their side, or (height, width). kernels, strides: of every soft split, sides of its
    windows and the steps between them; one split alone is a patch embedding. token_dim: of the tokens between splits. mixer:
    the layer between splits, "performer", linear in the tokens, with lift * token_dim random features, or "transformer".
    position: "sine" as in the paper, or None.
    class_token: whether a learned token goes before all.

    Scores of "transformer" are divided by the root of token_dim (of the window's entries in the authors' code). Random
    features are drawn by themselves (as rows of an orthogonal matrix there) and stay as they are drawn. No biases.
    """

    channels: Any = 3
    image: Any = 224
    kernels: Any = (7, 3, 3)
    strides: Any = (4, 2, 2)
    token_dim: Any = 64
    mixer: Any = "performer"
    lift: Any = 0.5
    position: Any = "sine"
    class_token: Any = False
    kind: ClassVar[str] = "embedding"
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", 2021,
                                      options=("S411",))

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Colours, and the channels of sines."""
        return {"channels": "a colour of the image"} | ({"width": "a wave of the position"} if self.position else {})

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    def tokens(self) -> list[int]:
        """How many windows every split has."""
        found, (rows, columns) = [], self.sides
        for stride in self.strides:
            rows, columns = -(-rows // stride), -(-columns // stride)
            found.append(rows * columns)
        return found

    @property
    def length(self) -> Length:
        """Tokens of an image: what costs are counted for."""
        return self.tokens()[-1] + bool(self.class_token)

    @property
    def num_features(self) -> int:
        """Random features of a performer."""
        return max(round(self.lift * self.token_dim), 1)  # type: ignore[no-any-return]

    def check(self, width: int, where: str) -> None:
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        require_whole("token_dim", self.token_dim, where)
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
        kernels, strides = self.kernels, self.strides
        if not isinstance(kernels, tuple) or not isinstance(strides, tuple) or not len(kernels) == len(strides) > 0:
            raise ValueError(f"kernels and strides have a number per split at {where}: got {kernels!r} and {strides!r}; "
                             "write (7, 3, 3) and (4, 2, 2)")
        for kernel, stride in zip(kernels, strides, strict=True):
            require_whole("strides", stride, where)
            require_whole("kernels", kernel, where, low=stride, instead="a window covers its stride")
        if self.mixer not in MIXERS:
            raise ValueError(f"{unknown('mixer', self.mixer, MIXERS)} (at {where})")
        if not isinstance(self.lift, (int, float)) or not self.lift > 0:
            raise ValueError(f"lift is a positive share of token_dim at {where}: got {self.lift!r}; use 0.5")
        if self.position not in (None, "sine"):
            raise ValueError(f"position is 'sine' or None at {where}: got {self.position!r}")

    def _entries(self, i: int) -> Dim:
        """A window of split i: channels of its rows and columns."""
        within = axis("token_dim", self.token_dim) if i else axis("channels", self.channels)
        return within * axis("tap_rows", self.kernels[i], "centre") * axis("tap_columns", self.kernels[i], "centre")

    def axes(self, width: int) -> dict[str, Param]:
        d, token, splits = axis("width", width), axis("token_dim", self.token_dim), len(self.kernels)
        found = {"token": param(d, init=Init("normal", gain=0.02))} if self.class_token else {}
        for i in range(splits - 1):
            found |= {f"layers.{splits}_{i}.{name}": part for name, part in self._layer(self._entries(i), token).items()}
        return found | {f"project.{splits}.weight": param(d, self._entries(splits - 1))}

    def _layer(self, entries: Dim, token: Axis) -> dict[str, Param]:
        found = {f"{name}.weight": param(token, entries) for name in ("query", "key", "value")}
        hidden = axis("hidden", token.size)
        found |= {"out.weight": param(token, token), "mlp.up.weight": param(hidden, token),
                  "mlp.down.weight": param(token, hidden)}
        for place, channels in (("norm", entries), ("mlp_norm", as_dim(token))):
            found |= {f"{place}.{name}": renamed(part, "width", channels) for name, part in LayerNorm().axes(1).items()}
        if self.mixer == "performer":
            drawn = Init("normal", gain=math.sqrt(self.num_features / token.size))
            found["random_features"] = param(axis("features", self.num_features), token, init=drawn, statistic=True)
        return found

    def build(self, width: int) -> nn.Module:
        entries = [self._entries(i).size for i in range(len(self.kernels))]
        layers: list[nn.Module] = [LightTokens(size, self.token_dim) for size in entries[:-1]]
        if self.mixer == "performer":
            layers = [FeatureTokens(size, self.token_dim, self.num_features) for size in entries[:-1]]
        return SoftSplits(layers, entries[-1], width, tuple(self.kernels), tuple(self.strides), self.position,
                          bool(self.class_token))

    def macs(self, width: int, length: Length) -> float:
        """All layers and the projection of one image, whatever `length` says."""
        tokens, size, total = self.tokens(), self.token_dim, 0
        for i, count in enumerate(tokens[:-1]):
            total += count * (3 * size * self._entries(i).size + 3 * size * size)
            total += count * (2 * self.num_features * (2 * size + 1) if self.mixer == "performer" else 2 * size * count)
        return float(total + tokens[-1] * self._entries(len(tokens) - 1).size * width)

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0
