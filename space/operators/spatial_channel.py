"""Correlations of places with parts of their window, and of channels with channels, in windows of any size.

Legend: B batch, H and W rows and columns of tokens, D width, C compressed width, R windows (rows * columns), N places of a
window, G parts of a window, A places of a part, K heads, P head_dim, E all heads, F features of an offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param, renamed
from ..operator import Length, Operator, Source, tokens_of
from .checks import require_divisor, require_whole
from .layernorm import LayerNorm, LayerNormalisation
from .spatial import as_grid, grid_of
from .windows import blocks, gather_windows, grid_of_windows, seen_in_windows

__all__ = ["Correlations", "OffsetNetwork", "SpatialChannelCorrelation"]


class OffsetNetwork(nn.Module):
    """A number per head for every offset (down, across): three layers, each behind a norm and ReLU, after a first one."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.first = nn.Linear(2, features, bias=False)
        self.norms = nn.ModuleList([LayerNormalisation(features) for _ in range(3)])
        self.layers = nn.ModuleList([nn.Linear(features, features if i < 2 else heads, bias=False) for i in range(3)])

    def forward(self, offsets: Tensor) -> Tensor:
        x: Tensor = self.first(offsets)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(F.relu(norm(x)))
        return x


class Correlations(nn.Module):
    """Half of the output are places correlated with parts of their window, half are channels correlated with channels.

    Queries and values are a product of a matrix and of a small network with a 3 x 3 convolution. Along space, each part of a
    window, `window` / `base` places a side, is one weighted sum of its values, which serves as key and value; there is no
    softmax. Offsets have a bias, averaged over the places of a part. What lies outside the grid counts as zeros.
    """

    def __init__(self, width: int, heads: int, head_dim: int, window: int, base: int, compressed: int, features: int):
        super().__init__()
        self.heads, self.window, self.base = heads, window, base
        self.gate = nn.Linear(width, 2 * heads * head_dim, bias=False)
        self.compress = nn.Linear(width, compressed, bias=False)
        self.conv = nn.Parameter(torch.empty(compressed, compressed, 3, 3))
        self.expand = nn.Linear(compressed, 2 * heads * head_dim, bias=False)
        self.parts = nn.Parameter(torch.empty(window // base, window // base))
        self.offsets = OffsetNetwork(features, heads)
        self.out = nn.Linear(2 * heads * head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x_BHWD = as_grid(x)
        _, height, width, _ = x_BHWD.shape
        rows_RN, columns_RN = (blocks(size, self.window, 0, x.device) for size in (height, width))
        windows = gather_windows(self.features(x_BHWD), rows_RN, columns_RN)
        windows = windows * seen_in_windows(height, width, rows_RN, columns_RN)[..., None]
        q_BRNE, v_BRNE = windows.chunk(2, -1)
        both_BRNE = torch.cat([self.along_space(q_BRNE, v_BRNE), self.along_channels(q_BRNE, v_BRNE)], -1)
        y_BHWD: Tensor = self.out(grid_of_windows(both_BRNE, (self.window, self.window), height, width))
        return y_BHWD.view(x.shape)

    def features(self, x_BHWD: Tensor) -> Tensor:
        """Queries, then values: [B, H, W, 2 E]."""
        h_BHWC = F.leaky_relu(self.compress(x_BHWD), 0.2)
        h_BCHW = F.leaky_relu(F.conv2d(h_BHWC.permute(0, 3, 1, 2), self.conv, padding=1), 0.2)
        y: Tensor = self.expand(h_BCHW.permute(0, 2, 3, 1)) * self.gate(x_BHWD)
        return y

    def along_space(self, q_BRNE: Tensor, v_BRNE: Tensor) -> Tensor:
        side = self.window // self.base
        cells = torch.unflatten(v_BRNE, 3, (self.base, side, self.base, side)).transpose(4, 5).flatten(5, 6).flatten(3, 4)
        part_BRGE = (cells.transpose(-1, -2) @ self.parts.reshape(-1, 1)).squeeze(-1)
        q_BRKNP, part_BRKGP = (torch.unflatten(each, -1, (self.heads, -1)).transpose(-2, -3) for each in (q_BRNE, part_BRGE))
        scores_BRKNG = q_BRKNP @ part_BRKGP.transpose(-1, -2) / q_BRKNP.shape[-1]
        return ((scores_BRKNG + self.bias(q_BRNE)) @ part_BRKGP).transpose(-2, -3).flatten(-2)

    def along_channels(self, q_BRNE: Tensor, v_BRNE: Tensor) -> Tensor:
        return v_BRNE @ (v_BRNE.transpose(-1, -2) @ q_BRNE) / q_BRNE.shape[-2]

    def bias(self, like: Tensor) -> Tensor:
        """Of every place and part, [K, N, G]: the mean over a part is a box filter over the table of offsets."""
        side = self.window // self.base
        offset = torch.arange(1 - self.window, self.window, device=like.device)
        table_OOK = self.offsets(torch.stack(torch.meshgrid(offset, offset, indexing="ij"), -1).to(like.dtype))
        mean_KOO = F.avg_pool2d(table_OOK.permute(2, 0, 1), side, 1)
        place_N, part_G = torch.arange(self.window, device=like.device), torch.arange(self.base, device=like.device)
        index_NG = place_N[:, None] - side * part_G + self.window - side
        bias_KNNGG = mean_KOO[:, index_NG[:, None, :, None], index_NG[None, :, None, :]]
        return bias_KNNGG.flatten(3, 4).flatten(1, 2)


@dataclass(frozen=True)
class SpatialChannelCorrelation(Operator):
    """HiT-SR (Zhang et al., 2024): correlations whose cost is linear in the size of the window, so that windows may grow from
    layer to layer (there 4, 8, 16, 32, 64 and half-way between).

    heads: of the correlation along space. window: side of the windows. base: parts along each side of a window; windows up to
    it are one part per place. head_dim defaults to width / (2 heads). compress: the width over that of the small network.
    Matrices have no biases. The paper fills up the last windows with reflections (here zeros) and puts the norm behind.
    """

    heads: Any = 4
    window: Any = 16
    base: Any = 8
    head_dim: Any = None
    compress: Any = 5
    causal: ClassVar[bool] = False
    streaming: ClassVar[bool] = False
    spatial: ClassVar[bool] = True
    keeps_zero: ClassVar[bool] = True
    fixed: ClassVar[Mapping[str, str]] = {"offset": "down, then across"}
    source: ClassVar[Source] = Source("HiT-SR: Hierarchical Transformer for Efficient Image Super-Resolution", 2024,
                                      options=("S197",))

    def check(self, width: int, where: str) -> None:
        require_whole("heads", self.heads, where)
        require_whole("window", self.window, where)
        require_whole("base", self.base, where)
        require_whole("compress", self.compress, where)
        require_divisor("base", self._base, "window", self.window, where)
        if self.head_dim is None:
            require_divisor("2 * heads", 2 * self.heads, "width", width, where)
        else:
            require_whole("head_dim", self.head_dim, where)

    @property
    def _base(self) -> int:
        return int(min(self.base, self.window))

    def _sizes(self, width: int) -> tuple[int, int, int]:
        """head_dim, compressed width, features of an offset."""
        return int(self.head_dim or width // (2 * self.heads)), max(width // self.compress, 1), max(width // 16, 1)

    def axes(self, width: int) -> dict[str, Param]:
        head_dim, compressed, features = self._sizes(width)
        d, c, f = axis("width", width), axis("compressed", compressed), axis("features", features)
        heads = axis("heads", self.heads)
        half, side = heads * axis("head_dim", head_dim), self.window // self._base
        taps = [axis("tap_rows", 3, "centre"), axis("tap_columns", 3, "centre")]
        norms = {f"offsets.norms.{i}.{name}": renamed(part, "width", f) for i in range(3)
                 for name, part in LayerNorm().axes(features).items()}
        layers = {f"offsets.layers.{i}.weight": param(out, f) for i, out in enumerate((f, f, heads))}
        return {"gate.weight": param(half + half, d), "compress.weight": param(c, d), "conv": param(c, c, *taps),
                "expand.weight": param(half + half, c), "out.weight": param(d, half + half),
                "parts": param(axis("part_rows", side, "centre"), axis("part_columns", side, "centre")),
                "offsets.first.weight": param(f, axis("offset", 2)), **norms, **layers}

    def build(self, width: int) -> nn.Module:
        head_dim, compressed, features = self._sizes(width)
        return Correlations(width, self.heads, head_dim, self.window, self._base, compressed, features)

    def macs(self, width: int, length: Length) -> float:
        """Projections, and in each window, filled-up places included, places with parts and channels with channels."""
        head_dim, c, f = self._sizes(width)
        inner, places, parts = self.heads * head_dim, self.window**2, self._base**2
        windows = -(-grid_of(length)[0] // self.window) * -(-grid_of(length)[1] // self.window)
        projected = tokens_of(length) * (width * c + 9 * c * c + 2 * inner * (c + 2 * width))
        products = places * inner * (1 + 2 * parts + 2 * inner)
        return float(projected + windows * products + (2 * self.window - 1)**2 * f * (2 + 2 * f + self.heads))

    def decode_macs(self, width: int, length: Length) -> float:
        """A whole pass: an operator that looks ahead has no next token."""
        return self.macs(width, length)
