"""Tables of features that tokens have from the start: pictures of what they look like, or their number.

A table is a function of (vocab, features) that gives a tensor [vocab, features], the same every time; leading features must
be those of a table with fewer. `feature_tables.register("mine", function)` adds one, for any tokeniser:

    feature_tables.register("mine", lambda vocab, features: glyph_features(my_tokens[:vocab], features))

Legend: V tokens, F features, P pixels, N bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...registry import Registry

__all__ = ["bit_features", "feature_tables", "glyph_features"]

SIDE = 32                            # pixels of a picture's side in the table "glyphs"
GREY = 64                            # of the bits that stand for a picture, which have many more dots than a character
feature_tables: Registry[Callable[[int, int], Tensor]] = Registry("feature table")


def glyph_features(tokens: Sequence[str], features: int, size: int = SIDE, font: str | None = None) -> Tensor:
    """The principal components of pictures of the tokens, [V, F], by their share of the variance.

    A token is drawn in one line and squeezed into a square. One without a picture of its own, a control character or what
    the font has no glyph for, gets the bits of its number for a picture, so that no two tokens are alike.

    Args:
        tokens: the text of each.
        features: how many components; at most as many as there are tokens, or pixels.
        size: side of the pictures.
        font: a file of a font; default the one that comes with Pillow.

    Raises:
        ValueError: no Pillow of at least 10.1 to draw with, or more components than there are.
    """
    if not 1 <= features <= min(len(tokens), size * size):
        raise ValueError(f"glyphs have at most as many components as tokens or pixels: got {features} of {len(tokens)} "
                         f"tokens and {size * size} pixels; use {min(len(tokens), size * size)} or a larger size")
    picture_VP = _drawn(tokens, size, font)
    seen: set[bytes] = {bytes(size * size)}
    for number, picture_P in enumerate(picture_VP):
        known = picture_P.numpy().tobytes()
        if known in seen:
            picture_VP[number] = _number_bits(number + 1, len(tokens).bit_length() + 1, size * size)
        seen.add(known)
    centred_VP = picture_VP.double() - picture_VP.double().mean(0)
    u_VK, spread_K, _ = torch.linalg.svd(centred_VP, full_matrices=False)
    scores_VF = (u_VK * spread_K)[:, :features]
    largest_F = scores_VF.gather(0, scores_VF.abs().argmax(0, keepdim=True))
    table_VF: Tensor = (scores_VF * largest_F.sign()).float()    # an axis has no side of its own: its longest entry is up
    return table_VF


def _drawn(tokens: Sequence[str], size: int, font: str | None) -> Tensor:
    """Grey levels, uint8 [V, P]."""
    try:
        from PIL import Image, ImageDraw, ImageFont

        pen = ImageFont.load_default(size) if font is None else ImageFont.truetype(font, size)
    except (ImportError, TypeError) as error:
        raise ValueError("glyphs are drawn by Pillow of at least 10.1: install it, or give a font of your own, or use "
                         "FrozenEmbedding(table='bits')") from error
    rows = []
    for token in tokens:
        picture = Image.new("L", (size * max(len(token), 1), size))
        ImageDraw.Draw(picture).text((0, 0), token, fill=255, font=pen)
        rows.append(torch.frombuffer(bytearray(picture.resize((size, size)).tobytes()), dtype=torch.uint8))
    return torch.stack(rows)


def _number_bits(number: int, bits: int, pixels: int) -> Tensor:
    """The bits of a number over and over, as black and grey."""
    digits_N = torch.tensor([number >> bit & 1 for bit in range(bits)], dtype=torch.uint8)
    return (GREY * digits_N).repeat(-(-pixels // bits))[:pixels]


def code_point_glyphs(vocab: int, features: int) -> Tensor:
    """Pictures of the first `vocab` characters of Unicode, which are the bytes of Latin-1 where there are 256."""
    return glyph_features([chr(point) if not 0xD800 <= point < 0xE000 else "" for point in range(vocab)], features, SIDE)


def bit_features(vocab: int, features: int) -> Tensor:
    """The number of a token in bits, -1 and 1, the last first. Raises ValueError where some tokens would be alike."""
    if 2**features < vocab:
        raise ValueError(f"every token has bits of its own: got {features} features for {vocab} tokens; use "
                         f"{(vocab - 1).bit_length()} or more")
    digit_F = torch.arange(features).clamp(max=62)               # beyond that a number has zeros alone
    return 2.0 * (torch.arange(vocab)[:, None] >> digit_F & 1) - 1


feature_tables.register("glyphs", code_point_glyphs)
feature_tables.register("bits", bit_features)
