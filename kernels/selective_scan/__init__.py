"""Selective scan: a diagonal state space whose step, input and output change with the token; Mamba.

    naive.py     one token at a time, any dtype: the specification
    chunked.py   all chunks side by side for training and prefill, and one step for decoding
"""

from .chunked import chunked_selective_scan, selective_scan_step
from .naive import naive_selective_scan

__all__ = ["chunked_selective_scan", "naive_selective_scan", "selective_scan_step"]
