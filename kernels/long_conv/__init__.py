"""Causal convolution with a filter as long as the sequence.

    naive.py   the sum, term by term: the specification
    fft.py     by FFT for training and prefill, and the newest output alone for decoding
"""

from .fft import fft_long_conv, long_conv_step
from .naive import naive_long_conv

__all__ = ["fft_long_conv", "long_conv_step", "naive_long_conv"]
