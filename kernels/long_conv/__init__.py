"""Causal convolution with a filter as long as the sequence.

    naive.py   the sum, term by term: the specification
    fft.py     by FFT for training and prefill, and the newest output alone for decoding
    grid.py    over a grid, looking up and left, by FFT
"""

from .fft import fft_long_conv, long_conv_step
from .grid import fft_grid_conv
from .naive import naive_long_conv

__all__ = ["fft_grid_conv", "fft_long_conv", "long_conv_step", "naive_long_conv"]
