"""Trained networks as other networks that compute the same.

    recentring   layer norms as RMS norms, and as RMS norms of a stream one entry narrower
    folding      norms that became a scale and a shift; the same put into the linear map after them
    comparing    what both share: a network of given parts, and the proof that it computes the same
"""

from __future__ import annotations

from .folding import folded, folded_into
from .recentring import compressed, recentred

__all__ = ["compressed", "folded", "folded_into", "recentred"]
