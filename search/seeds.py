"""Seeds of evaluations: a hash of what is evaluated, never of when or where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..space.genome import Genome

__all__ = ["evaluation_seed"]


def evaluation_seed(sweep_seed: int, genome: Genome, fidelity: Mapping[str, Any], replicate: int = 0) -> int:
    """The first 63 bits of SHA-256 over sweep seed, canonical genome, fidelity and replicate.

    The order of candidates, the executor and the number of workers do not enter, so a deterministic objective
    answers the same wherever and whenever it is asked.
    """
    text = json.dumps([sweep_seed, genome.key, dict(fidelity), replicate], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
