"""Latency: measured on the user's device, kept in profiles, or looked up in a table.

    probe      latency(), the objective, and the probe behind it
    work       phases and modes: what exactly is timed, on which inputs
    clock      warm-up and repeats; the clock of a CPU, the events of a GPU
    spread     what the times say: median, interval, outliers, noise
    operators  every operator measured alone
"""

from __future__ import annotations

from .clock import Work, measure, measured
from .operators import profile_lines, profile_operator
from .probe import LatencyProbe, Mode, Phase, example_inputs, latency
from .spread import Measurement, bootstrap_median, outliers, summary
from .work import DTYPES, MODES, PHASES

__all__ = ["DTYPES", "LatencyProbe", "MODES", "Measurement", "Mode", "PHASES", "Phase", "Work", "bootstrap_median",
           "example_inputs", "latency", "measure", "measured", "outliers", "profile_lines", "profile_operator", "summary"]
