"""Constructor calls: how every module was made, as source text."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .facts import is_plain
from .program import Chunk, defaults_of, parameters_of
from .record import Record, is_own_class
from .render import Call

__all__ = ["Calls"]

# Parameters that are plain to see in the first place of a call.
FIRST = ("width", "layers", "norm")
LONG = 80                                  # characters of a list of numbers on one line


@dataclass(frozen=True)
class Calls:
    """Writes constructor calls for a file of `chunks`.

    name_of: what a class is called in the file, None where it is not in it. given: the arguments that are left of a
    record's class. spread: classes whose calls go over several lines in any case.
    """

    chunks: Mapping[str, Chunk]
    records: Mapping[int, Record]
    name_of: Callable[[type], str | None]
    given: Callable[[Record, type], dict[str, Any] | None]
    spread: tuple[str, ...] = ()

    def of(self, module: nn.Module, where: str) -> Call:
        """The call that makes `module`.

        Raises:
            ValueError: an argument has no source text, or the class is neither torch's nor in the file.
        """
        record = self.records[id(module)]
        classes = record.classes()
        if not is_own_class(classes[0]):
            return self._of_torch(record, where)
        name = self.name_of(classes[0])
        assert name is not None, f"{classes[0]} was not collected"
        owner = next((c for c in classes if "__init__" in c.__dict__), classes[0])
        home, given = self.name_of(owner), self.given(record, owner)
        if home is None or given is None:
            return Call(name)
        known, call = _parameters(self.chunks[home]), Call(name, spread=name in self.spread)
        house = record.standin is not None
        for i, (parameter, value) in enumerate(given.items()):
            default = known.get(parameter)
            if default is not None and _same_literal(default, value):
                continue
            positional = i == 0 and (parameter == "width" or (house and parameter in FIRST))
            call.arguments.append((None if positional or (house and parameter == "op") else parameter,
                                   self._value(value, f"{parameter} of {owner.__name__} at {where}")))
        return call

    def _of_torch(self, record: Record, where: str) -> Call:
        cls = type(record.module)
        if getattr(nn, cls.__name__, None) is not cls:
            raise ValueError(f"an exported module is a class of its own or one of torch.nn at {where}: got {cls}; "
                             "wrap it in an nn.Module class of your own")
        defaults = inspect.signature(cls.__init__).parameters
        call = Call(f"nn.{cls.__name__}")
        for parameter, value in record.arguments.get(cls, {}).items():
            known = defaults.get(parameter)
            if known is None or known.kind is inspect.Parameter.VAR_POSITIONAL:
                call.arguments += [(None, self._value(v, where)) for v in value]
            elif known.default is inspect.Parameter.empty or value != known.default:
                call.arguments.append((parameter, self._value(value, f"{parameter} of nn.{cls.__name__} at {where}")))
        return call

    def _value(self, value: Any, what: str) -> Call | str:
        if isinstance(value, nn.Module) and id(value) in self.records:
            return self.of(value, what)
        if is_plain(value) and not (isinstance(value, list) and len(_literal(value)) > LONG):
            return _literal(value)
        if isinstance(value, list):
            return Call("", [(None, self._value(v, what)) for v in value], brackets="[]")
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return Call("", [(key, self._value(v, what)) for key, v in value.items()], brackets="{}")
        raise ValueError(f"a constructor's arguments must be numbers, strings, booleans, None, modules, or tuples, lists "
                         f"and dicts of these to be written into the exported file: got {type(value).__name__} for {what}; "
                         "pass plain values")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _parameters(chunk: Chunk) -> dict[str, ast.expr | None]:
    """The parameters that `__init__` has left, with their defaults."""
    top = ast.parse(chunk.text).body[0]
    assert isinstance(top, ast.ClassDef)
    init = next((n for n in top.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return {}
    defaults = defaults_of(init)
    return {p.arg: defaults.get(p.arg) for p in parameters_of(init, bound=True)}


def _same_literal(default: ast.expr, value: Any) -> bool:
    try:
        literal = ast.literal_eval(default)
    except ValueError:
        return False
    return type(literal) is type(value) and bool(literal == value)
