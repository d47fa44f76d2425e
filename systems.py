"""The catalogue of published systems, and which of them this package realises.

`systems.tsv` lists the systems (id, tier, class, system, paper). Whether one works here is not written down anywhere: it
follows from the `source` of the registered operators, macros and strategies, which name the rows they realise.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .space.operator import Source, operators

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["System", "catalogue", "operator_table", "to_json", "to_markdown", "to_text"]

STATES = ("works", "option", "expressible", "missing")


@dataclass(frozen=True)
class System:
    """One row: `state` is works, option, expressible or missing; `where` names what realises it, `test` what proves it."""

    id: str
    tier: int
    kind: str
    system: str
    paper: str
    state: str
    where: str
    test: str


def catalogue() -> list[System]:
    """Every row of the catalogue with its state, in the catalogue's order."""
    realised = _realised()
    rows = []
    with (Path(__file__).parent / "systems.tsv").open(newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            state, where, test = realised.get(row["id"], ("missing", "", ""))
            rows.append(System(row["id"], int(row["tier"]), row["class"], row["system"], row["paper"], state, where, test))
    return rows


def _realised() -> dict[str, tuple[str, str, str]]:
    """State, place and test of every row that some component's source names; "works" wins over "option"."""
    found: dict[str, tuple[str, str, str]] = {}
    for name, component, test in _components():
        source = getattr(component, "source", None)
        if not isinstance(source, Source):
            continue
        for state, ids in (("option", source.options), ("works", source.systems)):
            for system in ids:
                if found.get(system, ("",))[0] != "works":
                    found[system] = (state, name, test)
    return found


def _components() -> list[tuple[str, Any, str]]:
    from .space.plan import Loop

    load_operators()
    found: list[tuple[str, Any, str]] = [
        (name, operators.get(name), f"tests/space/test_contract.py -k {name}") for name in operators.names()]
    found.append(("Loop", Loop, "tests/space/test_supernet.py -k lora"))
    from .space import presets

    found += [(f"presets.{name}", getattr(presets, name), "tests/space/test_presets.py") for name in presets.__all__]
    from .search.strategies.base import strategies

    return found + [(name, strategies.get(name), "tests/search/test_strategies.py") for name in strategies.names()]


def load_operators() -> None:
    """Import every operator file, so that the registry is complete."""
    from .space import operators as folder

    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")


def to_json(rows: list[System]) -> str:
    """A JSON list with id, state, where and test of each row."""
    kept = ("id", "state", "where", "test")
    return json.dumps([{k: v for k, v in asdict(row).items() if k in kept} for row in rows], indent=1)


def to_text(rows: list[System]) -> str:
    """Fixed-width lines, and the counts by state."""
    lines = [f"{r.id}  {r.tier}  {r.kind:<13}  {r.state:<11}  {r.system[:48]:<48}  {r.where}" for r in rows]
    return "\n".join([*lines, "", _counts(rows)])


def to_markdown(rows: list[System]) -> str:
    """The page docs/systems.md."""
    head = ["# Systems", "", "Printed by `bodyplan systems` from the registry; regenerate with `make systems`.", "",
            _counts(rows), "", "| id | tier | class | system | state | where |", "|---|---|---|---|---|---|"]
    escaped = [[str(v).replace("|", "\\|") for v in (r.id, r.tier, r.kind, r.system, r.state, r.where)] for r in rows]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in escaped), ""])


def _counts(rows: list[System]) -> str:
    counts = Counter(row.state for row in rows)
    return f"{len(rows)} systems: " + ", ".join(f"{counts[state]} {state}" for state in STATES)


def operator_table() -> Table:
    """Every registered operator: kind, whether it is causal and streams, and where it comes from."""
    from rich.table import Table

    load_operators()
    table = Table(title="operators", title_justify="left")
    for heading in ("operator", "kind", "causal", "streams", "source"):
        table.add_column(heading)
    for name in operators.names():
        made = operators.get(name)
        table.add_row(name, made.kind, _mark(made.causal), _mark(made.streaming), f"{made.source.paper} ({made.source.year})")
    return table


def _mark(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else "depends"
