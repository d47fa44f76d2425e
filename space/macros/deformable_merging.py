"""Merging tokens at places that are predicted.

Legend: B batch, D width in, E width out, H and W rows and columns of tokens, R and C rows and columns of merged tokens,
S side of the window (kernel).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.batchnorm import BatchNorm, BatchNormalisation
from ..operators.checks import require_whole
from ..operators.spatial import as_grid, shaped_like
from .merging import Merging, at_stage_width

__all__ = ["DeformableMerging", "DeformableTokens", "sampled"]


class DeformableTokens(nn.Module):
    """`gelu(norm(conv(tokens at their own places plus predicted steps)))`; steps are zero at the start.

    A convolution over the same window predicts a step down and across for each of its S x S places; what lies between
    tokens is interpolated, what lies outside is zero.
    """

    def __init__(self, width: int, out_width: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.offset = nn.Parameter(torch.empty(2 * kernel * kernel, width, kernel, kernel))
        self.offset_bias = nn.Parameter(torch.empty(2 * kernel * kernel))
        self.weight = nn.Parameter(torch.empty(out_width, width, kernel, kernel))
        self.norm = BatchNormalisation(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x_BDHW = as_grid(x).permute(0, 3, 1, 2)
        height, width, kernel = *x_BDHW.shape[2:], self.weight.shape[-1]
        rows, columns = ((-(-size // self.stride) - 1) * self.stride + kernel for size in (height, width))
        filled_BDHW = F.pad(x_BDHW, (0, max(columns - width, 0), 0, max(rows - height, 0)))
        steps = F.conv2d(filled_BDHW, self.offset, self.offset_bias, self.stride)
        steps_B2SSRC = torch.unflatten(steps, 1, (kernel, kernel, 2)).permute(0, 3, 1, 2, 4, 5)
        sampled_BDHW = sampled(x_BDHW, steps_B2SSRC, self.stride)
        y_BRCE = F.conv2d(sampled_BDHW, self.weight, stride=kernel).permute(0, 2, 3, 1)
        return shaped_like(x, F.gelu(self.norm(y_BRCE)))


def sampled(x_BDHW: Tensor, steps_B2SSRC: Tensor, stride: int) -> Tensor:
    """The S x S tokens of each of R x C windows, moved by their steps, side by side: [B, D, R * S, C * S].

    Places are computed in float32 at least: half precision cannot tell neighbours of a large grid apart.
    """
    _, _, kernel, _, rows, columns = steps_B2SSRC.shape
    steps = steps_B2SSRC.to(torch.promote_types(x_BDHW.dtype, torch.float32))
    tap_S, row_R, column_C = (torch.arange(n, device=steps.device, dtype=steps.dtype) for n in (kernel, rows, columns))
    down = steps[:, 0] + (tap_S[:, None, None, None] + stride * row_R[:, None])
    across = steps[:, 1] + (tap_S[None, :, None, None] + stride * column_C)
    places = [(2 * place.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2) + 1) / size - 1
              for place, size in ((across, x_BDHW.shape[3]), (down, x_BDHW.shape[2]))]
    y_BDHW = F.grid_sample(x_BDHW.to(steps.dtype), torch.stack(places, -1), padding_mode="zeros", align_corners=False)
    return y_BDHW.to(x_BDHW.dtype)


@dataclass(frozen=True)
class DeformableMerging(Merging):
    """The deformable token merging of LIT (Pan et al., 2021): a strided deformable convolution, batch norm, GELU.

    An item of a body between the blocks of two stages. kernel: side of the window, at least the stride; 2 at stride 2 in
    the paper, which trains the steps at a hundredth of the rate. Where they stay zero it is patch merging by a strided
    convolution.
    """

    width: Any = None
    kernel: Any = 2
    stride: Any = 2
    fixed: ClassVar[Mapping[str, str]] = {"steps": "a step of a place in the window, down or across"}
    source: ClassVar[Source] = Source("Less is More: Pay Less Attention in Vision Transformers", 2021, options=("S214",))

    def check(self, width: int, where: str) -> None:
        super().check(width, where)
        require_whole("kernel", self.kernel, where, low=self.stride, instead="a kernel covers its stride")

    def axes(self, width: int) -> dict[str, Param]:
        out, d = self.width or width, axis("width", width)
        rows, columns = axis("tap0", self.kernel), axis("tap1", self.kernel)
        steps = axis("step_rows", self.kernel) * axis("step_columns", self.kernel) * axis("steps", 2)
        return {"offset": param(steps, d, rows, columns, init="zeros"), "offset_bias": param(steps, init="zeros"),
                "weight": param(axis("stage_width", out), d, rows, columns),
                **at_stage_width("norm", BatchNorm(), out)}

    def build(self, width: int) -> nn.Module:
        return DeformableTokens(width, self.width or width, self.kernel, self.stride)

    def macs(self, width: int, length: Length) -> float:                             # type: ignore[override]
        """Both convolutions; interpolation is not counted."""
        out, smaller = self.out(width, length)
        return float(tokens_of(smaller) * width * self.kernel**2 * (out + 2 * self.kernel**2))
