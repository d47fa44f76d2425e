"""Latency: measured on the user's device, kept in profiles, or looked up in a table.

    probe      latency(), the objective, and the probe behind it
    work       phases and modes: what exactly is timed, on which inputs
    clock      warm-up and repeats; the clock of a CPU, the events of a GPU
    reference  a fixed piece of work timed beside, since a machine's speed moves
    spread     what the times say: median, interval, outliers, noise
    memory     peak bytes of a call; energy: millijoules, where there is a counter
    operators  every operator measured alone; runner: cases under conditions, on torch alone
    profile    Profile: many measurements of one device as JSON; stored: reading it; measuring: making one
    tables     Device: numbers looked up in a table or a profile; runs: how often each operator runs
    emit       a script that measures where this package is not installed; emitted: its command line
    session    what `bodyplan profile` does
"""

from __future__ import annotations

from .clock import Work, measure, measured
from .measuring import conditions_of, profile_models, profile_operators
from .operators import profile_lines, profile_operator
from .probe import LatencyProbe, Mode, Phase, example_inputs, latency
from .profile import Answer, Profile, shipped_profiles
from .runner import Conditions
from .spread import Measurement, bootstrap_median, outliers, summary
from .tables import Device
from .work import DTYPES, MODES, PHASES

__all__ = [
    "Answer", "Conditions", "DTYPES", "Device", "LatencyProbe", "MODES", "Measurement", "Mode", "PHASES", "Phase", "Profile",
    "Work", "bootstrap_median", "conditions_of", "example_inputs", "latency", "measure", "measured", "outliers",
    "profile_lines", "profile_models", "profile_operator", "profile_operators", "shipped_profiles", "summary"]
