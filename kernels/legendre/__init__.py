"""A memory of the last theta tokens as the coefficients of Legendre polynomials: the Legendre memory unit.

    naive.py   the matrices, and one token at a time: the specification
    fft.py     the same by its impulse response for training and prefill, and one step for decoding
"""

from .fft import fft_legendre, legendre_step, legendre_system
from .naive import naive_legendre, naive_legendre_system

__all__ = ["fft_legendre", "legendre_step", "legendre_system", "naive_legendre", "naive_legendre_system"]
