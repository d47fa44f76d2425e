"""Pixels to tokens by the encoder of a learned image codec.

Legend: B batch, C channels in, E channels out, H and W rows and columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Axis, Init, Param, axis, param
from ..operator import Length, Operator, Source
from .checks import require_divisor, require_whole

__all__ = ["CompressionStem", "DivisiveNormalisation", "Encoder", "halved"]


def halved(x_BCHW: Tensor, weight_ECSS: Tensor) -> Tensor:
    """A convolution at stride 2, its window centred on every second place: [B, E, ceil(H / 2), ceil(W / 2)]."""
    return F.conv2d(x_BCHW, weight_ECSS, stride=2, padding=weight_ECSS.shape[-1] // 2)


class DivisiveNormalisation(nn.Module):
    """`x_i / sqrt(b_i^2 + sum over j of (g_ij x_j)^2)` at every place."""

    def __init__(self, channels: int):
        super().__init__()
        self.offset = nn.Parameter(torch.ones(channels))
        self.gain = nn.Parameter(torch.empty(channels, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        energy_BCHW = F.conv2d(x_BCHW.square(), self.gain.square()[:, :, None, None])
        return x_BCHW * torch.rsqrt(energy_BCHW + self.offset.square()[:, None, None])


class Encoder(nn.Module):
    """Convolutions of 5 x 5 at stride 2, a divisive normalisation between, and one of 3 x 3 at stride 2 to the width."""

    def __init__(self, channels: int, hidden: int, latent: int, halvings: int, width: int):
        super().__init__()
        sizes = [channels, *(hidden,) * (halvings - 1), latent]
        depth = halvings                     # in the names: encoders of different depths share nothing
        self.convs = nn.ParameterDict({f"{depth}_{i}": nn.Parameter(torch.empty(sizes[i + 1], sizes[i], 5, 5))
                                       for i in range(depth)})
        self.norms = nn.ModuleDict({f"{depth}_{i}": DivisiveNormalisation(hidden) for i in range(depth - 1)})
        self.reshape = nn.Parameter(torch.empty(width, latent, 3, 3))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x_BCHW = pixels_BCHW
        for name, weight in self.convs.items():
            x_BCHW = halved(x_BCHW, weight)
            if name in self.norms:
                x_BCHW = self.norms[name](x_BCHW)
        return halved(x_BCHW, self.reshape).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class CompressionStem(Operator):
    """CI2P-ViT (Zhao and Sun, 2025): the analysis transform of a learned codec (Balle et al., 2018) instead of patches.
    pixels (B, channels, H, W) to a grid (B, H / 2^(halvings + 1), W / 2^(halvings + 1), width).

    channels: of the images. image: their side, or (height, width). halvings: convolutions at stride 2 with divisive
    normalisation between them, 4 in the codec; one more reshapes the latent to tokens, a quarter as many as those of ViT's
    16 x 16 patches. hidden, latent: channels of the codec, inside and at its end. The paper takes the encoder as trained to
    compress, and frozen; here it is trained with the rest. The reshaping is read as one convolution.
    """

    channels: Any = 3
    image: Any = 224
    halvings: Any = 4
    hidden: Any = 128
    latent: Any = 192
    kind: ClassVar[str] = "embedding"
    grid: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"channels": "a colour of the image"}
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    source: ClassVar[Source] = Source("Compress image to patches for Vision Transformer", 2025, options=("S099",))

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image if isinstance(self.image, tuple) else (self.image, self.image)

    @property
    def length(self) -> Length:
        """(rows, columns) of tokens: what costs are counted for."""
        rows, columns = (side >> self.halvings + 1 for side in self.sides)
        return rows, columns

    def check(self, width: int, where: str) -> None:
        require_whole("channels", self.channels, where, instead="use 1 for grey and 3 for colour")
        for name in ("halvings", "hidden", "latent"):
            require_whole(name, getattr(self, name), where)
        for side in self.sides:
            require_whole("image", side, where, instead="give a side in pixels, or (height, width)")
            require_divisor("2^(halvings + 1)", 2 ** (self.halvings + 1), "image", side, where)

    def axes(self, width: int) -> dict[str, Param]:
        sizes = [self.channels, *(self.hidden,) * (self.halvings - 1), self.latent]
        names = ["channels", *(f"hidden{i}" for i in range(self.halvings - 1)), "latent"]
        dims, found = [axis(name, size) for name, size in zip(names, sizes, strict=True)], dict[str, Param]()
        for i in range(self.halvings):
            found[f"convs.{self.halvings}_{i}"] = _conv(dims[i + 1], dims[i], 5)
        for i, channels in enumerate(dims[1:-1]):
            flat = Init("constant", low=(0.1 / channels.size) ** 0.5)
            found |= {f"norms.{self.halvings}_{i}.offset": param(channels, share="own", init="ones"),
                      f"norms.{self.halvings}_{i}.gain": param(channels, channels, init=flat)}
        return found | {"reshape": _conv(axis("width", width), dims[-1], 3)}

    def build(self, width: int) -> nn.Module:
        return Encoder(self.channels, self.hidden, self.latent, self.halvings, width)

    def macs(self, width: int, length: Length) -> float:
        """All convolutions and normalisations of one image, whatever `length` says."""
        (rows, columns), total = self.sides, 0
        sizes = [self.channels, *(self.hidden,) * (self.halvings - 1), self.latent]
        for i in range(self.halvings):
            places = (rows >> i + 1) * (columns >> i + 1)
            total += places * (25 * sizes[i] * sizes[i + 1] + (self.hidden**2 if i + 1 < self.halvings else 0))
        last = (rows >> self.halvings + 1) * (columns >> self.halvings + 1)
        return float(total + last * 9 * self.latent * width)

    def decode_macs(self, width: int, length: Length) -> float:
        return 0.0


def _conv(out: Axis, into: Axis, side: int) -> Param:
    return param(out, into, axis(f"rows_of_{side}", side, "centre"), axis(f"columns_of_{side}", side, "centre"))
