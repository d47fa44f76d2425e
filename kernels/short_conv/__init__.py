"""Causal depthwise convolution over the last few tokens.

    naive.py   the specification and the fast form in one, with its state for decoding
"""

from .naive import causal_conv

__all__ = ["causal_conv"]
