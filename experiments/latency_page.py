"""docs/latency.md, from the results of the study of latency tables alone."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["page", "write_page"]


def write_page(results: Path, target: Path) -> Path:
    """Write the page of a study, also of one that is not finished: every number says of how many seeds it is."""
    raise ValueError("not yet")
