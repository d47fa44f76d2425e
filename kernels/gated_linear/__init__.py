"""Linear recurrence with a decay of its own for every key channel: Gated Linear Attention.

    naive.py     one token at a time, any dtype: the specification
    chunked.py   matrix products by chunks for training and prefill, and one step for decoding
"""

from .chunked import chunked_gated_linear, gated_linear_step
from .naive import naive_gated_linear

__all__ = ["chunked_gated_linear", "gated_linear_step", "naive_gated_linear"]
