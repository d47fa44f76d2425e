"""What an architecture does and moves, and the least time that a device can take for it.

    counted    operations of one call by kind, and the bytes they read and write
    known      values on the meta device, of masks and what else is made from sizes
    single     one operator or macro, run once without values
    workloads  the same of every operator of an architecture, remembered
    roofline   the least time on a device of a given speed and bandwidth
"""

from __future__ import annotations

from .counted import Counted, counted
from .roofline import Roof, Roofline, measured_roof, roof_of, roofline
from .workloads import OperatorCost, Workload, workload

__all__ = ["Counted", "OperatorCost", "Roof", "Roofline", "Workload", "counted", "measured_roof", "roof_of", "roofline",
           "workload"]
