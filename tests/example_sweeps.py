"""Journals of sweeps that never ran, written through the Journal's own interface: what views are tested on."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from random import Random
from typing import Any

from bodyplan.search.fidelity import measure_fidelity
from bodyplan.search.front import Front
from bodyplan.search.journal import Journal
from bodyplan.space.genome import Genome

OBJECTIVES = ({"name": "loss", "goal": "min", "unit": "bits/byte", "needs": "model"},
              {"name": "decode_latency", "goal": "min", "unit": "ms", "device": "cpu", "needs": "model"},
              {"name": "parameters", "goal": "min", "needs": "architecture"})
MIXERS = ("Attention", "GatedDeltaNet", "Mamba2", "Hyena", "ShortConv")
REASONS = ("loss is NaN", "took longer than 60 s")


def write_sweep(directory: Path, trials: int = 30, objectives: Any = OBJECTIVES, twin: bool = True, seed: int = 0,
                finished: bool = True, failing: int = 10) -> Path:
    """A sweep of `trials` candidates (every `failing`-th fails, number 0 is the user's own) and its random twin."""
    definition = {"name": directory.name, "objectives": list(objectives), "seed": seed, "trials": trials,
                  "strategy": {"name": "evolution", "population": 8}, "space": {"definition": {"width": [64, 96]}},
                  "space_size": "123456789012345678901", "space_hash": "ab" * 32, "num_genes": 9,
                  "task": {"name": "text", "description": "bytes of <speeches>", "fingerprint": "f00d"},
                  "versions": {"python": "3.11", "torch": "2.13.0"}, "platform": "Linux", "executor": "local"}
    rng = Random(seed)
    with Journal.create(directory, definition) as journal:
        journal.append("supernet", {"steps": 100, "seconds": 12.5})
        corner = {"loss": 5.0, "decode_latency": 20.0, "parameters": 5e6}
        journal.append("reference", {"point": [corner.get(o["name"], 1e9) for o in objectives], "source": "probes"})
        write_trials(journal, range(trials), rng, objectives, failing=failing)
        if twin:
            write_trials(journal, range(trials), rng, objectives, stream="twin", failing=failing)
        if finished:
            write_end(journal, rng)
    return directory


def write_trials(journal: Journal, numbers: range, rng: Random, objectives: Any = OBJECTIVES, stream: str = "search",
                 failing: int = 10) -> None:
    """Asks and results of the given numbers."""
    for number in numbers:
        decisions, labels, values = candidate(rng)
        genome = Genome(decisions)
        given = {"initial": True} if number == 0 and stream == "search" else {}
        journal.append("ask", {"n": 1, "genomes": [genome.to_json()], "numbers": [number], "new": [True],
                               "hashes": [hashlib.sha256(f"{genome.key} {number}".encode()).hexdigest()],
                               "labels": [labels], **given}, stream)
        body: dict[str, Any] = {"number": number, "seconds": 0.5, "seed": 7 * number, "worker": "w0", "extra": {}}
        if number % failing == failing - 1:
            reason = REASONS[number % 20 == failing - 1]
            body |= {"state": "failed", "failure": {"reason": reason, "traceback": "Traceback: <here>"}}
        else:
            kept = {o["name"]: values[o["name"]] for o in objectives}
            measured = {name: [0.95 * value, 1.05 * value] for name, value in kept.items() if name != "parameters"}
            body |= {"state": "complete", "values": kept, "intervals": measured}
        journal.append("result", body, stream)


def candidate(rng: Random) -> tuple[dict[str, int], dict[str, str], dict[str, float]]:
    """A genome, its labels, and values in which larger models are better and slower, with noise."""
    width, depth = rng.choice((64, 96, 128)), rng.randint(2, 6)
    decisions = {"width": (64, 96, 128).index(width), "body.times": depth}
    labels = {"width": str(width), "body.times": str(depth)}
    for layer in range(depth):
        mixer = rng.randrange(len(MIXERS))
        decisions[f"body[{layer}].mixer"] = mixer
        labels[f"body[{layer}].mixer"] = MIXERS[mixer]
    size = 12.0 * width * width * depth
    return decisions, labels, {"loss": 2.0 + math.exp(-size / 4e5) + 0.3 * rng.random(), "parameters": size,
                               "decode_latency": depth * (0.2 + 0.3 * rng.random())}


def write_end(journal: Journal, rng: Random) -> None:
    """Standalone trainings, their rank correlation, the front, and the end."""
    done = [trial for trial in journal.trials("search") if trial.state == "complete"][:12]
    inherited = [trial.values[next(iter(trial.values))] for trial in done]
    alone = [value - 0.2 + 0.05 * rng.random() for value in inherited]
    for trial, value in zip(done, alone, strict=True):
        journal.append("standalone", {"number": trial.number, "state": "complete", "values": {"loss": value}})
    journal.append("fidelity", {**measure_fidelity(inherited, alone, "min", {"macs": inherited[::-1]}), "steps": 200,
                                "numbers": [trial.number for trial in done], "inherited": inherited,
                                "standalone": alone, "objective": "loss"})
    front = Front.from_journal(journal)
    journal.append("front", {"numbers": [point.number for point in front], "knee": front.knee().number})
    journal.append("finished", {"seconds": 60.0})
