"""A script that profiles operators on a machine without this package: torch and the standard library alone.

It holds the source of the operators' modules and of the measuring code, gathered as an export gathers a model's.
"""

from __future__ import annotations

import ast
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from ... import __version__
from ...space.export.calls import Calls
from ...space.export.collect import Collector, import_block
from ...space.export.fold import reachable
from ...space.export.record import Record, construct, is_own_class
from ...space.export.render import Call, render
from ...space.operator import Operator
from .emitted import run_script
from .operators import case_of
from .runner import Case, Conditions
from .work import check_names

__all__ = ["emit", "script"]

_CHECKER = re.compile(r"[ \t]*# (type: ignore|noqa)\b[^\n]*")
LINE = 120


def emit(path: str | os.PathLike[str], operators: Sequence[tuple[Operator, int]], conditions: Sequence[Conditions],
         device: str) -> Path:
    """Write the script of these (operator, width) pairs. Raises ValueError where there is a file already, and as `script`."""
    target = Path(path)
    if target.exists():
        raise ValueError(f"a script overwrites nothing: there is a file at {target}; name another")
    text = script(operators, conditions, device)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def script(operators: Sequence[tuple[Operator, int]], conditions: Sequence[Conditions], device: str) -> str:
    """The text of the script; `device` is its default and need not be on this machine.

    Raises:
        ValueError: no operators, one that cannot be measured alone or written as plain torch source, or a condition that
            cannot be.
    """
    if not operators or not conditions:
        raise ValueError(f"a script measures something: got {len(operators)} operators and {len(conditions)} conditions")
    for one in conditions:
        check_names(one.phase, one.mode, one.dtype, batch=one.batch, length=one.length, threads=one.threads,
                    budget_ms=one.budget_ms)
    collector = Collector()
    calls = [(case_of(config, width), _call(config, width, collector)) for config, width in operators]
    names = [collector.add(one) for one in (Case, Conditions, run_script)]
    roots = [name for _, (_, used) in calls for name in used] + names
    chunks = reachable(collector.chunks, list(dict.fromkeys(roots)))
    definitions = [*_sections(chunks.values()), _table(names[0], calls), _conditions(names[1], conditions),
                   f'if __name__ == "__main__":\n    {names[2]}(CASES, CONDITIONS, {device!r})']
    used = {n.id for text in definitions for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    head = [_docstring(len(operators), device), "from __future__ import annotations", import_block(collector.imports, used)]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(definitions) + "\n"


def _call(config: Operator, width: int, collector: Collector) -> tuple[Call, list[str]]:
    """How the module is constructed, and the names of the classes that takes."""
    module, records = construct(lambda: config.build(width))
    used = [collector.add(cls) for record in _written(module, records) for cls in record.classes()[:1] if is_own_class(cls)]
    given: Callable[[Record, type], dict[str, Any]] = lambda record, cls: record.arguments.get(cls, {})  # noqa: E731
    return Calls(collector.chunks, records, collector.name_of, given).of(module, type(config).__name__), used


def _written(module: nn.Module, records: dict[int, Record]) -> Iterator[Record]:
    """The records of a module and of the modules that its constructor was given."""
    record = records[id(module)]
    yield record
    waiting = [value for given in record.arguments.values() for value in given.values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module) and id(value) in records:
            yield from _written(value, records)
        elif isinstance(value, (list, tuple, dict)):
            waiting += value.values() if isinstance(value, dict) else value


def _sections(chunks: Any) -> Iterator[str]:
    explained: set[str] = set()
    for chunk in chunks:
        legend = "" if chunk.legend in explained else chunk.legend
        explained.add(chunk.legend)
        lines = [f"# {line}" for line in textwrap.wrap(legend, LINE - 2)]
        gap = [""] if lines and chunk.kind != "constant" else []
        yield "\n".join([*lines, *gap, _CHECKER.sub("", chunk.text).strip("\n")])


def _table(name: str, calls: Sequence[tuple[Case, tuple[Call, list[str]]]]) -> str:
    lines = ["CASES = ["]
    for case, (call, _) in calls:
        flags = "".join(f", {flag}=True" for flag in ("grid", "tokenwise") if getattr(case, flag))
        lines += [f"    {name}({case.operator!r}, {case.width},",
                  f"         lambda: {render(call, 9, 8)}{flags}),"]
    return "\n".join([*lines, "]"])


def _conditions(name: str, conditions: Sequence[Conditions]) -> str:
    rows = []
    for one in conditions:
        given = ", ".join(f"{f.name}={getattr(one, f.name)!r}" for f in fields(one) if getattr(one, f.name) != f.default)
        rows.append(f"    {name}({given}),")
    return "\n".join(["CONDITIONS = [", *rows, "]"])


def _docstring(count: int, device: str) -> str:
    return (f'"""Measure {count} operators and write a profile: needs Python 3.10 and torch, nothing else.\n\n'
            f"    python THIS_FILE --device {device} --out profile.json\n\n"
            f"Written by bodyplan {__version__}; there, `bp.Profile.load(\"profile.json\")` reads what it writes.\n"
            '"""')
