"""Pyramids of images: stages of layers, each at half the resolution of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..macros.stage import Stage
from ..operators.embedding import PatchEmbedding

__all__ = ["IMAGENET", "SMALL_IMAGES", "Images", "joined", "stages"]


@dataclass(frozen=True)
class Images:
    """What comes in: side in pixels, channels, classes, and the side of the patches the stem makes."""

    image: int
    channels: int
    classes: int
    patch: int

    def grid(self, position: bool = False) -> PatchEmbedding:
        """The stem of a pyramid: patches that keep their grid."""
        return PatchEmbedding(self.patch, self.channels, self.image, grid=True, position=position)

    def overlapping(self, kernel: int) -> PatchEmbedding:
        """A stem of windows of `kernel` pixels a side around the patches, and a layer norm."""
        return PatchEmbedding(self.patch, self.channels, self.image, grid=True, position=False, kernel=kernel, norm=True)


SMALL_IMAGES = Images(image=28, channels=1, classes=10, patch=2)
IMAGENET = Images(image=224, channels=3, classes=1000, patch=4)


def stages(widths: Sequence[Any], layers: Sequence[tuple[Any, ...]], kernel: int | None = None,
           norm: Any = None) -> tuple[Any, ...]:
    """A body: the layers of the first stage, at the width of the stem, then a `Stage` at half the resolution for each
    further width. kernel, norm: of the strided convolutions between stages."""
    below = [Stage(tuple(inner), width=width, stride=(2, 2), kernel=kernel, norm=norm)
             for width, inner in zip(widths[1:], layers[1:], strict=True)]
    return *layers[0], *below


def joined(layers: Sequence[tuple[Any, ...]], between: Sequence[Any]) -> tuple[Any, ...]:
    """A body: the layers of each stage, with one of the transitions before every stage but the first."""
    body = [*layers[0]]
    for transition, inner in zip(between, layers[1:], strict=True):
        body += [transition, *inner]
    return tuple(body)
