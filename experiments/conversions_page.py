"""docs/conversions.md, from the rows that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["page", "write_page"]

HEAD = """# Conversions

A trained network is a start for its neighbours. Every function here takes a model that was built from an architecture, and
gives a model of another architecture with weights of the first; the first stays as it is. What computes the same is proved
in float64 at the conversion itself, or it raises an error; what does not is measured below.

"""
TABLE = (
    ("conversion", "takes", "gives", "function"),
    ("`recentred(model)`", "layer norms everywhere", "RMS norms, writers of mean zero", "the same"),
    ("`compressed(model)`", "layer norms without shift", "a stream one entry narrower, `CRMSNorm`", "the same"),
    ("`folded(model)`", "`PRepBN`, `BatchNorm`, `Spectral`, `Branched`; batch norms inside convolutions",
     "scales and shifts, weights that hold them, one branch", "the same"),
    ("`folded_into(norm, linear)`", "an `Affine` and the matrix after it", "one matrix with a bias", "the same"),
    ("`grouped_heads(model, n)`", "attention with more key/value heads",
     "means of neighbouring heads", "the same where these agree"),
    ("`routed_heads(model, s, k)`", "plain attention",
     "`MixtureOfHeads`, routers at zero", "the same with every head open"),
    ("`linearised(model, window)`", "causal rotary attention",
     "`Liger`, the same parameters", "moves; with `mix=0` the same within the window"),
    ("`injected_layers(model, every)`", "layers that add to the stream",
     "a silent copy behind every so many", "the same, bit for bit"),
    ("`appended_layers(model, n)`", "the same", "silent layers at the end", "the same, bit for bit"),
    ("`duplicated_layers(model, a, b)`", "any layers of one width", "layers a to b - 1 twice", "moves"),
    ("`dropped_layers(model, a, b)`", "the same", "the others", "moves"),
    ("`rearranged(model, order, silent)`", "the same", "layers in any order, copies, silent ones", "as its parts"),
    ("`linear_span(model, a, b, inputs)`", "a channel mixer before the span",
     "a linear map inside its last matrix", "moves, least of all matrices"),
    ("`recursive(model, looped)`", "as many layers as the loop has",
     "shared layers and low-rank corrections", "the same at full rank"),
    ("`grafted(model, architecture, inputs)`", "other operators in some places",
     "these, regressed on what the old ones gave", "moves, by the errors it reports"),
    ("`inherited(model, architecture)`", "any architecture",
     "the other one's weights as far as they reach", "the same where it only grows"),
)
TAIL = """`block_importance(model, inputs)` and `closest_span(model, inputs, n)` say which layers change the stream least, and
`difference(model, made, inputs)` how far two networks are apart.

## In a search

`Sweep(..., inherit=True)` starts every candidate that is trained alone from the nearest one the strategy was told of, by
`inherited`: a mutation that adds a layer, widens a channel mixer, groups key/value heads or swaps attention for a mixture of
heads or a gated recurrence keeps what its parent has learned. Every strategy can, since it is not asked: who is nearest
follows from `space.distance`, and the journal records it. Scores then hold the steps of a whole line; train the front's
members alone for numbers of their own.

## Measured
"""


def write_page(target: Path, rows: Sequence[Any], settings: Any, command: str, made: str) -> Path:
    """Write the page; returns its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(rows, settings, command, made), encoding="utf-8")
    return target


def page(rows: Sequence[Any], settings: Any, command: str, made: str) -> str:
    """The whole page in Markdown."""
    text = (f"Written by `{command}` on {made}, one thread, seed {settings.seed}. A decoder of bytes, {settings.layers} "
            f"layers of width {settings.width}, trained for {settings.steps} steps on shipped text; its rows are bits per "
            f"byte of the test split, as converted and after {settings.healing_steps} steps of training at a third of the "
            "rate. The network of images, whose rows are errors in per cent, is trained for a few steps and shows folding "
            "alone. Differences are the largest of all outputs over the largest output, of weights rounded to float32. One "
            "seed each: what is 0.02 apart is not told apart.")
    table = ["| conversion | difference | parameters | state, 256 tokens | as converted | trained on |",
             "| --- | --- | --- | --- | --- | --- |", *map(_line, rows)]
    first, *others = (f"| {' | '.join(cells)} |" for cells in TABLE)
    return "\n".join([HEAD + first, "| --- | --- | --- | --- |", *others, "", TAIL, text, "", *table, ""])


def _line(row: Any) -> str:
    after = "" if row.after is None else f"{row.after:.3f}"
    state = "" if row.after is None else f"{row.state_bytes / 1024:.0f} KiB"
    return f"| `{row.call}` | {row.difference:.1e} | {row.parameters:,} | {state} | {row.before:.3f} | {after} |"
