"""Tasks: data, loss and metric.

    base.py       Task, Batch: what every task answers
    language.py   text(): byte-level language modelling, bits per byte
    vision.py     images(): image classification, error in per cent
    data/         the two data sets that ship with the package, with origin and licence
"""

from __future__ import annotations

from ...registry import Registry
from .base import Batch, Task
from .language import TextTask, text
from .vision import ImageTask, images

__all__ = ["Batch", "ImageTask", "Task", "TextTask", "images", "task_registry", "text"]

task_registry: Registry[object] = Registry("task")
task_registry.register("text", text)
task_registry.register("images", images)
