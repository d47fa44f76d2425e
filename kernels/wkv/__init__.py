"""Weighted key values: a softmax over the past whose weights fade by channel; RWKV.

    naive.py     every pair of tokens, any dtype: the specification
    chunked.py   all chunks side by side for training and prefill, and one step for decoding
"""

from .chunked import chunked_wkv, chunked_wkv_past, wkv_step
from .naive import naive_bidirectional_wkv, naive_wkv

__all__ = ["chunked_wkv", "chunked_wkv_past", "naive_bidirectional_wkv", "naive_wkv", "wkv_step"]
