"""What every conversion of a trained network does to its function, measured on one small decoder of text.

    python -m bodyplan.experiments.conversions [--quick] [--page docs/conversions.md]

The decoder is trained for a minute, converted in every way, and every result trained on for a few steps, all with one
core and one seed; the network itself, trained on for as many steps, is the first row. A second, small network of images
has batch norms to fold. Prints the table, or writes the page around it.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import bodyplan as bp
import torch

from .conversions_page import write_page

__all__ = ["QUICK", "Row", "Settings", "main", "measured"]

QUICK = {"width": 16, "layers": 6, "length": 16, "batch": 4, "steps": 8, "healing_steps": 2, "image_steps": 2,
         "test_batches": 2, "calibration_batches": 2}


@dataclass(frozen=True)
class Settings:
    """What is measured. steps: of the decoder; healing_steps: of what came of it; image_steps: of the image network."""

    width: int = 64
    layers: int = 6
    heads: int = 4
    length: int = 64
    batch: int = 8
    steps: int = 400
    healing_steps: int = 25
    image_steps: int = 30
    test_batches: int = 8
    calibration_batches: int = 8
    lr: float = 3e-3
    seed: int = 0


class Row(NamedTuple):
    """One conversion. difference: of the largest output, in float64; scores in the task's unit, None where not trained on."""

    call: str
    difference: float
    parameters: int
    state_bytes: int
    before: float
    after: float | None


Conversion = tuple[str, Callable[[Any], Any]]


def conversions(settings: Settings, calibration: torch.Tensor) -> list[Conversion]:
    """Each as it is written, and what it does with the trained decoder."""
    n = settings.layers
    exact: list[Conversion] = [
        ("the network itself", copy.deepcopy),
        ("recentred(model)", bp.recentred),
        ("compressed(model)", bp.compressed),
        ("routed_heads(model, 1, 3)", lambda m: bp.routed_heads(m, 1, settings.heads - 1)),
        ("injected_layers(model, every=2)", lambda m: bp.injected_layers(m, 2)),
        ("appended_layers(model, 2)", lambda m: bp.appended_layers(m, 2)),
        ("inherited(model, wider)", lambda m: bp.inherited(m, _changed(m, channel=bp.SwiGLU(ratio=4)))),
    ]
    moving: list[Conversion] = [
        ("grouped_heads(model, 2)", lambda m: bp.grouped_heads(m, 2)),
        ("grouped_heads(model, 1)", lambda m: bp.grouped_heads(m, 1)),
        ("routed_heads(model, 1, 2)", lambda m: bp.routed_heads(m, 1, 2)),
        ("routed_heads(model, 1, 2, inputs)", lambda m: bp.routed_heads(m, 1, 2, calibration)),
        ("linearised(model, window=16)", lambda m: bp.linearised(m, window=16)),
        ("inherited(model, narrower)", lambda m: bp.inherited(m, _changed(m, channel=bp.SwiGLU(ratio=1)))),
        (f"duplicated_layers(model, 2, {n - 2})", lambda m: bp.duplicated_layers(m, 2, n - 2)),
        ("recursive(model, two layers)", lambda m: bp.recursive(m, _looped(m))),
    ]
    return [*exact, *moving, *_shorter(calibration)]


def _shorter(calibration: torch.Tensor) -> list[Conversion]:
    """A span of two layers that is dropped, or replaced by a matrix."""
    def span(model: Any) -> tuple[int, int]:
        return bp.closest_span(model, calibration, 2, first=1)                     # type: ignore[no-any-return]

    return [("dropped_layers(model, *span)", lambda m: bp.dropped_layers(m, *span(m))),
            ("linear_span(model, *span, inputs)", lambda m: bp.linear_span(m, *span(m), calibration)),
            ('linear_span(model, *span, inputs, loss="cosine")',
             lambda m: bp.linear_span(m, *span(m), calibration, loss="cosine"))]


def _changed(model: Any, **fields: Any) -> Any:
    """The model's architecture with other fields in every block."""
    from dataclasses import replace

    plan = model.architecture.plan
    return _space(plan, tuple(replace(block, **fields) for block in plan.layers)).sample(0)


def _looped(model: Any) -> Any:
    """The first two layers, as often as it takes."""
    plan = model.architecture.plan
    return _space(plan, plan.layers[:2], recursion=bp.Loop(times=len(plan.layers) // 2, lora_rank=4)).sample(0)


def _space(plan: Any, body: tuple[Any, ...], **more: Any) -> Any:
    return bp.Space(embed=plan.embed, width=plan.width, body=body, head=plan.head, norm=plan.norm, **more)


def measured(settings: Settings) -> Iterator[Row]:
    """The rows in the order of the page, each when it is done."""
    task = bp.tasks.text(length=settings.length, batch=settings.batch, held_out_batches=settings.test_batches)
    layer = bp.Block(mixer=bp.Attention(heads=settings.heads), channel=bp.SwiGLU(ratio=2), norm=bp.LayerNorm(bias=False))
    model = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=settings.width, body=(layer,) * settings.layers,
                     head=bp.LanguageHead(tied=True), norm=bp.LayerNorm(bias=False)).sample(0).build(settings.seed)
    bp.train(model, task, settings.steps, lr=settings.lr, seed=settings.seed)
    calibration = torch.cat([task.batch("train", step, settings.seed + 1).inputs
                             for step in range(settings.calibration_batches)])
    inputs = task.batch("validation", 0, 0).inputs
    for call, convert in conversions(settings, calibration):
        made = convert(model)
        row = _row(call, model, made, inputs, task.score(made.eval(), "test"))
        bp.train(made, task, settings.healing_steps, lr=settings.lr / 3, seed=settings.seed + 2)
        yield row._replace(after=task.score(made.eval(), "test"))
    yield from _folded(settings)


def _folded(settings: Settings) -> Iterator[Row]:
    """The image network with batch norms, before and after they are folded."""
    task = bp.tasks.images(batch=32, held_out_batches=settings.test_batches)
    layer = bp.Block(mixer=bp.MobileConv(expand=2), channel=bp.MLP(ratio=2), norm=bp.BatchNorm())
    model = bp.Space(embed=bp.ConvStem(patch=4, channels=1, image=28), width=16, body=(layer,) * 2,
                     head=bp.ClassifierHead(classes=10)).sample(0).build(settings.seed)
    bp.train(model, task, settings.image_steps, lr=settings.lr, seed=settings.seed)
    inputs = task.batch("validation", 0, 0).inputs
    for call, made in (("the network of images itself", model), ("folded(model)", bp.folded(model.eval()))):
        yield _row(call, model, made, inputs, task.score(made.eval(), "test"))


def _row(call: str, model: Any, made: Any, inputs: torch.Tensor, score: float) -> Row:
    cost = made.architecture.cost()
    return Row(call, bp.difference(model, made, inputs), cost.parameters, cost.state_bytes, score, None)


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a toy size that takes seconds and shows nothing")
    parser.add_argument("--page", type=Path, help="write the page there")
    options = parser.parse_args(arguments)
    settings, threads = Settings(**QUICK) if options.quick else Settings(), torch.get_num_threads()   # type: ignore[arg-type]
    torch.set_num_threads(1)
    rows = []
    for row in measured(settings):
        rows.append(row)
        after = "" if row.after is None else f"{row.after:8.3f}"
        print(f"{row.call:<50}{row.difference:10.1e}{row.parameters:10,}{row.before:8.3f}{after}", flush=True)
    torch.set_num_threads(threads)
    if options.page is not None:
        command = "python -m bodyplan.experiments.conversions" + " --quick" * options.quick + f" --page {options.page}"
        made = f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
        print(f"wrote {write_page(options.page, rows, settings, command, made)}")


if __name__ == "__main__":
    main()
