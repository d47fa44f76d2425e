"""Tasks: data, loss and metric.

    base.py          Task, Batch: what every task answers
    language.py      text(): byte-level language modelling, bits per byte
    vision.py        images(): image classification, error in per cent
    rows.py          fashion_rows(): images as sequences of rows or pixels, error in per cent
    generated.py     what tasks have in common whose examples are drawn
    recall.py        mqar(): multi-query associative recall, wrong values in per cent
    copying.py       selective_copying(): wrong tokens in per cent
    permutations.py  permutations(): composition, which needs depth or a state; wrong products in per cent
    forecasting.py   forecasting(): the next steps of a time series, squared error
    masked.py        masked_inputs(): any of those on tokens, with a share of the training inputs hidden
    data/            the two data sets that ship with the package, with origin and licence
"""

from __future__ import annotations

from ...registry import Registry
from .base import Batch, Task
from .copying import CopyingTask, selective_copying
from .forecasting import ForecastingTask, forecasting
from .generated import GeneratedTask
from .language import TextTask, text
from .masked import MaskedInputs, masked_inputs
from .permutations import PermutationTask, permutations
from .recall import RecallTask, mqar
from .rows import RowsTask, fashion_rows
from .vision import ImageTask, images

__all__ = ["Batch", "CopyingTask", "ForecastingTask", "GeneratedTask", "ImageTask", "MaskedInputs", "PermutationTask",
           "RecallTask", "RowsTask", "Task", "TextTask", "fashion_rows", "forecasting", "images", "masked_inputs",
           "mqar", "permutations", "selective_copying", "task_registry", "text"]

task_registry: Registry[object] = Registry("task")
for _task in (text, images, fashion_rows, mqar, selective_copying, permutations, masked_inputs, forecasting):
    task_registry.register(_task.__name__, _task)
