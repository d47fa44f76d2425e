"""The table the contract runs over: for every registered operator a few (config, width) pairs.

The largest comes first; the others' weights are parts of its weights. Together they must vary every axis the operator
declares (`test_contract.py` says which one is missing) and every option that changes what the module does.

Each module of this folder is a family of operators. It gives EXAMPLES, and where there is something to say UNVARIED
(operator -> axes that have one size in every network, and why), UNVARIED_OPTIONS (operator -> options that no example
varies, and why) and REFERENCES (operator -> `reference(weights, config, x) -> y` in float64, from the paper's formula).
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from typing import Any

import pytest
from bodyplan.space.operator import Operator
from bodyplan.testing import Reference

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED", "UNVARIED_OPTIONS", "is_sampled", "sampled_names"]

ONE_IN = 5


def is_sampled(name: str) -> bool:
    """Whether the default suite runs an operator's whole contract: one in five, by a hash of its name."""
    return hashlib.sha256(name.encode()).digest()[0] % ONE_IN == 0


def sampled_names() -> list[Any]:
    """Every operator of the table, as parameters of a test; those that are not sampled are marked `contract`."""
    return [name if is_sampled(name) else pytest.param(name, marks=pytest.mark.contract) for name in sorted(EXAMPLES)]


def _merged(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(__path__):
        part = getattr(importlib.import_module(f"{__name__}.{module.name}"), name, {})
        assert not found.keys() & part.keys(), f"one family per operator: {sorted(found.keys() & part.keys())} in two"
        found |= part
    return found


EXAMPLES: dict[str, list[tuple[Operator, int]]] = _merged("EXAMPLES")
UNVARIED: dict[str, dict[str, str]] = _merged("UNVARIED")
UNVARIED_OPTIONS: dict[str, dict[str, str]] = _merged("UNVARIED_OPTIONS")
REFERENCES: dict[str, Reference] = _merged("REFERENCES")
