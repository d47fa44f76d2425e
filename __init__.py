"""bodyplan: search the space of body plans of neural networks.

You write a search space down in Python, launch a sweep, read the Pareto front, and walk away with a standalone
model that does not need bodyplan any more. Importing this module imports neither torch nor ray nor mlflow: every
public name is loaded on first use.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "choice integer real repeat subset tied": ".space.choices",
    "Genome": ".space.genome",
    "Space": ".space.space",
    "Architecture": ".space.architecture",
    "Block Once Loop Plan": ".space.plan",
    "Operator Source": ".space.operator",
    "Custom": ".space.operators.custom",
    "TokenEmbedding PatchEmbedding": ".space.operators.embedding",
    "LanguageHead ClassifierHead": ".space.operators.head",
    "RMSNorm": ".space.operators.rmsnorm",
    "Attention": ".space.operators.attention",
    "GatedDeltaNet": ".space.operators.gated_delta",
    "Mamba2": ".space.operators.mamba2",
    "ShortConv": ".space.operators.short_conv",
    "Hyena": ".space.operators.hyena",
    "SwiGLU": ".space.operators.swiglu",
    "MLP": ".space.operators.mlp",
    "Identity": ".space.operators.identity",
    "Supernet": ".space.supernet",
    "export": ".space.export",
    "Objective Estimate": ".evaluators.objectives",
    "latency": ".evaluators.latency",
    "train": ".evaluators.training",
    "Sweep": ".search.sweep",
    "Front": ".search.front",
    "Journal": ".search.journal",
    "BodyplanError": ".errors",
}
_MODULES = {"tasks": ".evaluators.tasks"}
_NAMES = {name: home for names, home in _HOMES.items() for name in names.split()}

__all__ = sorted([*_NAMES, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    if name not in _NAMES:
        near = difflib.get_close_matches(name, __all__, n=1)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
    target = getattr(importlib.import_module(_NAMES[name], __name__), name)
    globals()[name] = target
    return target


def __dir__() -> list[str]:
    return __all__
