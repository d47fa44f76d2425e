"""Constraints of a space, declared.

`words` is what a user writes; `expressions`, `leaves` and `rules` are what that makes; `paths` finds the places of the space
that are meant, `binding` writes the rules onto them as `actions` of a walk; `costs` judges whole architectures; `stored` is
the JSON form; `ruling` holds the constraints of one space together.
"""

from .words import cost, count, measure, monotone, total, value, within

__all__ = ["cost", "count", "measure", "monotone", "total", "value", "within"]
