"""Networks that are trained while they read: Titans and Atlas; with one layer and chunks of one token, the delta rule.

    naive.py     one token at a time, gradients by autograd, any dtype: the specification
    chunked.py   gradients by hand at the state a chunk starts with, and what its tokens read
"""

from .chunked import memory_chunk, newton_schulz
from .naive import naive_neural_memory, naive_newton_schulz

__all__ = ["memory_chunk", "naive_neural_memory", "naive_newton_schulz", "newton_schulz"]
