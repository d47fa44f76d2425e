"""How to look: one readable file per strategy, behind `ask` and `tell`.

base          the protocol, the registry, what a strategy is told
random        uniform sampling without repetition: the twin every search is measured against
evolution     NSGA-II on the genome, steady state
local_search  Pareto local search over the neighbours of the front
optuna        Optuna's TPE and NSGA-II on the flat, always complete encoding
novelty       drawing candidates nobody proposed yet, shared by the above
"""

from .base import Strategy, Told, resolve, strategies

__all__ = ["Strategy", "Told", "resolve", "strategies"]
