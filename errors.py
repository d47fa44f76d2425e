"""The one error class of run-time states; mistakes of the caller stay `ValueError` and `TypeError`."""

from __future__ import annotations

__all__ = ["BodyplanError"]


class BodyplanError(RuntimeError):
    """A state of the world that stops the work: a directory in use, a journal that is missing, a worker that died."""
