"""Scalar-decay linear recurrence: linear attention, RetNet, Mamba-2.

    naive.py     one token at a time, any dtype: the specification
    chunked.py   matrix products by chunks for training and prefill, and one step for decoding
"""

from .chunked import chunked_linear_recurrence, linear_recurrence_step
from .naive import naive_linear_recurrence

__all__ = ["chunked_linear_recurrence", "linear_recurrence_step", "naive_linear_recurrence"]
