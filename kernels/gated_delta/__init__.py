"""Gated delta rule: Gated DeltaNet, and DeltaNet where nothing decays.

    naive.py     one token at a time, any dtype: the specification
    chunked.py   one triangular solve per chunk for training and prefill, and one step for decoding
"""

from .chunked import chunked_gated_delta, gated_delta_step
from .naive import naive_gated_delta

__all__ = ["chunked_gated_delta", "gated_delta_step", "naive_gated_delta"]
