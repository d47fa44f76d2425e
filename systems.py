"""The catalogue of published systems, and which of them this package realises.

`systems.tsv` lists the systems (id, tier, class, system, paper). Whether one works here is not written down anywhere: it
follows from the `source` of whatever a user can name: operators (norms, embeddings and heads among them), macros, residual
topologies, presets, tasks, search and training strategies. Rows that are applications are expressible when `expressible.tsv`
names the preset or combination that their backbone is (id, a Python expression in `bp`, what it leaves out); every one of
these expressions is built and run by a test. `inexpressible.tsv` says of others what would be
needed, and of what operators and macros should realise and do not.
"""

from __future__ import annotations

import csv
import importlib
import json
import pkgutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .space.operator import Source, operators

if TYPE_CHECKING:
    from .space.architecture import Architecture

__all__ = ["System", "catalogue", "expressed", "expressions", "inexpressible", "left_out", "load_operators", "to_json",
           "to_markdown", "to_text"]

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
    for row in _table("systems.tsv"):
        state, where, test = realised.get(row["id"], ("missing", "", ""))
        rows.append(System(row["id"], int(row["tier"]), row["class"], row["system"], row["paper"], state, where, test))
    return rows


def _table(name: str) -> list[dict[str, str]]:
    """The rows of a file of tab-separated columns beside this one."""
    with (Path(__file__).parent / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _realised() -> dict[str, tuple[str, str, str]]:
    """State, place and test of every row that something realises: "works" before "option" before "expressible"."""
    proof = "tests/test_systems.py -k expressible"
    found = {system: ("expressible", expression, proof) for system, expression in expressions().items()}
    for name, component, test in _components():
        source = getattr(component, "source", None)
        if not isinstance(source, Source):
            continue
        for state, ids in (("option", source.options), ("works", source.systems)):
            for system in ids:
                if system not in found or STATES.index(state) < STATES.index(found[system][0]):
                    found[system] = (state, name, test)
    return found


def _components() -> Iterator[tuple[str, Any, str]]:
    """(name, what has a source, the test that proves it) of everything that can realise a row."""
    import bodyplan

    from .evaluators import tasks
    from .evaluators.strategies import sampling_strategies
    from .search.strategies.base import strategies
    from .space import presets
    from .space.macros.base import macros

    load_operators()
    seen: set[int] = set()
    for registry, test in ((operators, "tests/space/test_contract.py -k {}"), (macros, "tests/space/test_macros.py -k {}"),
                           (strategies, "tests/search/test_strategies.py -k {}"),
                           (sampling_strategies, "tests/evaluators/test_strategies.py -k {}")):
        for name in registry.names():
            component = registry.get(name)
            seen.add(id(component))
            yield name, component, getattr(component, "proof", test.format(name))
    for name in presets.__all__:
        yield f"presets.{name}", getattr(presets, name), f"tests/space/test_presets.py -k {name}"
    for name in tasks.__all__:
        task = getattr(tasks, name)
        yield f"tasks.{name}", task, getattr(task, "proof", f"tests/evaluators/tasks -k {name}")
    for name in bodyplan.__all__:
        component = getattr(bodyplan, name)
        if id(component) not in seen:
            yield name, component, getattr(component, "proof", f"tests/space/test_macros.py -k {name}")


def load_operators() -> None:
    """Import every file of operators and of macros, so that the registries are complete."""
    from .space import macros, operators

    for folder in (operators, macros):
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{folder.__name__}.{module.name}")


def expressions() -> dict[str, str]:
    """The combination that expresses a row's backbone, by the row's id."""
    return {row["id"]: row["expression"] for row in _table("expressible.tsv")}


def left_out() -> dict[str, str]:
    """What the combination of a row leaves out of the paper, by the row's id."""
    return {row["id"]: row["left out"] for row in _table("expressible.tsv")}


def inexpressible() -> dict[str, str]:
    """What a row's backbone needs and nothing here is, by the row's id."""
    return {row["id"]: row["missing"] for row in _table("inexpressible.tsv")}


def expressed(expression: str) -> Architecture:
    """The architecture that a combination names: a space's first sample, or the architecture itself.

    Raises ValueError where it is neither.
    """
    import bodyplan

    made = eval(expression, {"bp": bodyplan})       # the file ships with the package
    if hasattr(made, "sample"):
        made = made.sample(0)
    if not hasattr(made, "genome"):
        raise ValueError(f"a combination is a space or an architecture: {expression} is {type(made).__name__}")
    return made                                                                       # type: ignore[no-any-return]


def to_json(rows: list[System]) -> str:
    """A JSON list with id, state, where and test of each row."""
    kept = ("id", "state", "where", "test")
    return json.dumps([{k: v for k, v in asdict(row).items() if k in kept} for row in rows], indent=1)


def to_text(rows: list[System]) -> str:
    """Fixed-width lines, the test that proves each, what some that are missing would need, the counts by class and state."""
    lines = [f"{r.id}  {r.tier}  {r.kind:<13}  {r.state:<11}  {r.system[:48]:<48}  {r.where[:40]:<40}  {r.test}".rstrip()
             for r in rows]
    counts = [f"{kind:<15}" + "".join(f"{n:>5} {state}" for n, state in zip(numbers, STATES, strict=True))
              for kind, numbers in _by_class(rows)]
    needed = [f"{row.id}  would need {need}" for row, need in _needed(rows)]
    return "\n".join([*lines, "", *needed, "", *counts, "", _counts(rows)])


def to_markdown(rows: list[System]) -> str:
    """The page docs/systems.md: the counts, a table of all rows, and every combination with what it leaves out."""
    head = ["# Systems", "", "Printed by `bodyplan systems` from the registry; regenerate with `make systems`.", "",
            _counts(rows), "",
            "*works*: a user can build what the paper describes. *option*: a part of it is an option of what is named. "
            "*expressible*: its backbone is a combination, [below](#expressible) with what that leaves out. Of some that are "
            "missing it is known [what they would need](#not-expressible).", ""]
    counts = _markdown(("class, tier", *STATES), _by_class(rows))
    table = _markdown(("id", "tier", "class", "system", "state", "where"),
                      ((r.id, (r.tier, r.kind, r.system, r.state, _place(r))) for r in rows))
    needed = _markdown(("id", "system", "what it would need"), ((r.id, (r.system, need)) for r, need in _needed(rows)))
    return "\n".join([*head, *counts, "", *table, "", "## Expressible", "", *_combinations(rows),
                      "## Not expressible", "", *needed, ""])


def _needed(rows: list[System]) -> Iterator[tuple[System, str]]:
    """The rows that are missing of which it is known what they would need, with that."""
    needs = inexpressible()
    yield from ((row, needs[row.id]) for row in rows if row.state == "missing" and row.id in needs)


def _place(row: System) -> str:
    """What realises a row, in code; a link to a combination, which no cell has room for."""
    if row.state == "expressible":
        return f"[combination](#{row.id.lower()})"
    return f"`{row.where}`" if row.where else ""


def _combinations(rows: list[System]) -> Iterator[str]:
    """A section per combination: the system, what is left out, the expression over several lines."""
    without = left_out()
    for row in rows:
        if row.state == "expressible":
            code = textwrap.wrap(row.where, 118, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
            yield from (f"### {row.id}", "", f"{row.system} (*{row.paper}*). Left out: {without[row.id]}.", "",
                        "```python", *code, "```", "")


def _markdown(heading: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]]) -> list[str]:
    cells = [(first, *(str(cell).replace("|", "\\|") for cell in rest)) for first, rest in rows]
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *cells)]


def _by_class(rows: list[System]) -> list[tuple[str, list[int]]]:
    """("mixer, tier 1", how many rows are in each state) in the catalogue's order."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(f"{row.kind}, {row.tier}", Counter())[row.state] += 1
    return [(name, [counts[state] for state in STATES]) for name, counts in sorted(found.items())]


def _counts(rows: list[System]) -> str:
    counts = Counter(row.state for row in rows)
    return f"{len(rows)} systems: " + ", ".join(f"{counts[state]} {state}" for state in STATES)
