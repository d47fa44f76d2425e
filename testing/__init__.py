"""The contract of operators, as functions to call from a test: `check_operator(MyMixer(heads=2), width=32)`.

Each `check_*` raises AssertionError naming the promise that does not hold, with the numbers that show it. They hold
for operators of this package and for anybody's: a new operator's whole test file may be

    def test_my_mixer():
        check_operator(MyMixer(heads=4), width=64, smaller=[(MyMixer(heads=2), 32)], reference=my_loop_in_float64)

Everything runs on the CPU in a second or two. Modules are filled as their declarations say, from fixed seeds. Two take
longer and are called on their own: `check_long(MyMixer(), width=16)` and `check_trains(MyMixer(), task, beats=0.5)`.

    modules     an operator's module with values, and inputs for it
    behaviour   declaration, causality, decoding, the paper's formula
    pieces      batches of different lengths, prefills in pieces
    reach       attention patterns, growth with the number of tokens
    precision   fp16 and bf16 beside fp32
    costs       multiply-adds and state against what torch counts
    sharing     weights taken from a larger operator: forward, gradient, training step
    order       axes that may be permuted
    long        16,384 tokens: finite, and linear in memory where linear in time
    training    a small model of an operator learns a task
"""

from __future__ import annotations

from collections.abc import Sequence

from ..space.operator import Operator
from .behaviour import (
    Reference,
    check_causality,
    check_declaration,
    check_pointwise,
    check_reference,
    check_streaming,
    check_zero,
)
from .costs import check_costs, check_state, count_macs
from .long import check_long, is_linear
from .modules import built, example_inputs, streams
from .order import check_order
from .pieces import check_batch, check_prefill
from .precision import check_precision
from .reach import check_complexity, check_patterns, pattern_of
from .sharing import check_elasticity, check_training
from .training import check_trains

__all__ = ["Reference", "built", "check_batch", "check_causality", "check_complexity", "check_costs", "check_declaration",
           "check_elasticity", "check_long", "check_operator", "check_order", "check_patterns", "check_pointwise",
           "check_precision", "check_prefill", "check_reference", "check_state", "check_streaming", "check_training",
           "check_trains", "check_zero", "count_macs", "example_inputs", "is_linear", "pattern_of"]


def check_operator(config: Operator, width: int, *, smaller: Sequence[tuple[Operator, int]] = (),
                   reference: Reference | None = None) -> None:
    """Every promise an operator makes.

    Args:
        config: the operator at the largest sizes to test.
        width: of the residual stream.
        smaller: (config, width) pairs whose weights must be parts of the largest one's.
        reference: `reference(weights, config, x_BTD) -> y_BTD` in float64, straight from the paper's formula.
    """
    members = [(config, width), *smaller]
    for each, size in members:
        check_declaration(each, size)
        if each.kind in ("mixer", "channel", "norm", "join"):
            check_causality(each, size)
            check_patterns(each, size)
            check_complexity(each, size)
            check_costs(each, size)
            check_zero(each, size)
            check_batch(each, size)
            check_precision(each, size)
        if streams(each, size):
            check_streaming(each, size)
            check_prefill(each, size)
            check_state(each, size)
        elif each.streaming and each.kind in ("mixer", "channel"):
            check_pointwise(each, size)
        if reference is not None:
            check_reference(each, size, reference)
        check_order(each, size)
    check_elasticity(members)
    check_training(members)
