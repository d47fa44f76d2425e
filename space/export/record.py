"""How every module of a plan was constructed: which class, with which numbers."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..operator import lending
from .facts import PRESENT, is_plain

__all__ = ["Record", "construct", "is_own_class", "mro"]

_BARE = frozenset(vars(nn.Module())) | {"training"}
_PATCHING = threading.RLock()


@dataclass
class Record:
    """One built module. `arguments[cls]` holds what `cls.__init__` got, by parameter name, defaults included.

    standin: the class that takes its place in the exported file, which keeps every argument under its name.
    """

    module: nn.Module
    arguments: dict[type, dict[str, Any]] = field(default_factory=dict)
    standin: type | None = None

    def classes(self) -> list[type]:
        """The classes of the exported module that are not torch's, nearest first; a bare torch module's own class."""
        if self.standin is not None:
            return [c for c in self.standin.__mro__ if is_own_class(c)]
        return mro(self.module)

    def attributes(self) -> dict[str, Any]:
        """Plain values as they are; children and parameters as `PRESENT`, or None where they are None."""
        if self.standin is not None:
            given = next(self.arguments[c] for c in self.standin.__mro__ if c in self.arguments)
            return {k: v if is_plain(v) else PRESENT for k, v in given.items()}
        own = {k: v for k, v in vars(self.module).items() if k not in _BARE}
        for held in (self.module._modules, self.module._parameters, self.module._buffers):
            own |= {k: None if v is None else PRESENT for k, v in held.items()}
        return own


def is_own_class(cls: type) -> bool:
    """Whether the class must be written into the exported file: it is neither torch's nor Python's."""
    return cls.__module__.split(".")[0] not in ("torch", "builtins", "typing", "abc", "collections")


def mro(module: nn.Module) -> list[type]:
    """The classes of a module that are not torch's, nearest first; a bare torch module counts as its own class."""
    return [c for c in type(module).__mro__ if is_own_class(c)] or [type(module)]


def construct(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[int, Record]]:
    """Build on the meta device, twice, and record the second; returns the module and records by `id(module)`.

    The first build only tells which classes to watch. Random state outside is left as it was.
    """
    with _PATCHING, lending(None), torch.random.fork_rng(devices=[]), torch.device("meta"):
        watched = {c for m in build().modules() for c in mro(m)}
        calls: list[tuple[Any, type, dict[str, Any]]] = []
        with _watch(watched, calls):
            module = build()
    records = {id(m): Record(m) for m in module.modules()}
    for instance, cls, arguments in calls:
        if id(instance) in records and records[id(instance)].module is instance:
            records[id(instance)].arguments[cls] = arguments
    return module, records


@contextmanager
def _watch(classes: set[type], calls: list[tuple[Any, type, dict[str, Any]]]) -> Iterator[None]:
    """Record the arguments of these classes' constructors on this thread."""
    thread, originals = threading.get_ident(), {c: c.__dict__["__init__"] for c in classes if "__init__" in c.__dict__}
    for cls, original in originals.items():
        setattr(cls, "__init__", _recorder(cls, original, calls, thread))  # noqa: B010 - mypy forbids the assignment
    try:
        yield
    finally:
        for cls, original in originals.items():
            setattr(cls, "__init__", original)  # noqa: B010 - as above


def _recorder(cls: type, original: Any, calls: list[tuple[Any, type, dict[str, Any]]], thread: int) -> Any:
    signature = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == thread:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            calls.append((self, cls, _flat(signature, dict(list(bound.arguments.items())[1:]))))
        original(self, *args, **kwargs)

    return __init__


def _flat(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat |= value
        else:
            flat[name] = value
    return flat
