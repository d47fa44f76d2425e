"""The command line of a script that profiles where this package is not installed; its source goes into the script."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from .runner import Case, Conditions, profile_document

__all__ = ["run_script"]


def run_script(cases: Sequence[Case], conditions: Sequence[Conditions], device: str) -> None:
    """Measure the cases and write the profile's JSON, which `Profile.load` reads. An existing file is left alone."""
    parser = argparse.ArgumentParser(description="Measure operators and write a profile.")
    parser.add_argument("--device", default=device, help=f"cpu, cuda:0, ...; default: {device}")
    parser.add_argument("--out", default="profile.json", help="the file to write; default: profile.json")
    parser.add_argument("--budget-ms", type=float, default=None, help="time of the repeats of one measurement")
    given = parser.parse_args()
    if os.path.exists(given.out):
        parser.error(f"there is a file at {given.out} already; give another --out")
    if given.budget_ms is not None:
        conditions = [replace(one, budget_ms=given.budget_ms) for one in conditions]
    try:
        document = profile_document(cases, conditions, given.device, " ".join(sys.argv), print)
    except ValueError as error:
        parser.error(str(error))
    partial = f"{given.out}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, allow_nan=False)
    os.replace(partial, given.out)
    loud = sum(bool(row.get("noisy")) for row in document["operators"])
    print(f"wrote {len(document['operators'])} measurements to {given.out}"
          + (f"; {loud} of them on a machine that was not quiet" if loud else "")
          + (f"; {len(document['failures'])} failed, with their reasons in it" if document["failures"] else ""))
