"""Gather the source of classes with the functions and constants they use, from whichever modules these live in."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import GenericAlias, ModuleType
from typing import Any

from .facts import is_plain
from .program import Chunk
from .text import Edit, apply, nodes, parsed

__all__ = ["Collector", "import_block"]

_HOUSE = __name__.split(".")[0]
_LEGEND = re.compile(r"^(Legend|Shape suffixes):", re.MULTILINE)
Import = tuple[str, str | None, str]  # module, name inside it, name in the file


@dataclass
class Collector:
    """Definitions by their name in the exported file; imports by the name they bind.

    aliases: definitions that others take the place of, wherever source names them.
    """

    aliases: Mapping[Any, Any] = field(default_factory=dict)
    chunks: dict[str, Chunk] = field(default_factory=dict)
    imports: dict[str, Import] = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, definition: Any) -> str:
        """Take in a class or function and everything it uses; returns its name in the exported file.

        Raises:
            ValueError: its source cannot be found, or it uses something beyond torch and the standard library.
        """
        plain = inspect.unwrap(self.aliases.get(definition, definition))
        module = sys.modules.get(plain.__module__)
        if module is None or plain.__qualname__ != plain.__name__:
            raise _cannot(plain, "it is not defined at the top level of a module", "move it there")
        if (known := self._names.get((plain.__module__, plain.__name__))) is not None:
            return known
        try:
            text = _source(plain)
        except (OSError, TypeError) as error:
            raise _cannot(plain, "its source cannot be found", "define it in a .py file") from error
        return self._take(module, plain.__name__, text, "class" if inspect.isclass(plain) else "function")

    def name_of(self, definition: Any) -> str | None:
        """What a class or function is called in the exported file; None when it is not in it."""
        return self._names.get((definition.__module__, definition.__name__))

    def _take(self, module: ModuleType, name: str, text: str, kind: Any) -> str:
        key = (module.__name__, name)
        if key in self._names:
            return self._names[key]
        text, local = _without_local_imports(module, text)
        twin = self._twin(module, name, text, local)
        final = self._names[key] = twin or self._free_name(module, name)
        if twin is None:
            chunk = self.chunks[final] = Chunk(final, kind, text, module.__name__, _legend(module))
            renames = self._renames(module, name, text, local) | {name: final}
            chunk.text = chunk.original = _renamed(text, renames)
        return final

    def _renames(self, module: ModuleType, name: str, text: str, local: dict[str, Any]) -> dict[str, str]:
        found = {used: self._resolve(module, used, local, name) for used in _used_names(text) if used != name}
        return {used: final for used, final in found.items() if final is not None}

    def _twin(self, module: ModuleType, name: str, text: str, local: dict[str, Any]) -> str | None:
        """A definition of the same name and text that is here already: siblings may each hold a copy."""
        held = self.chunks.get(name)
        if held is None or _renamed(text, self._renames(module, name, text, local)) != held.text:
            return None
        return name

    def _free_name(self, module: ModuleType, name: str) -> str:
        if name not in self.chunks:
            return name
        home = module.__name__.rsplit(".", 1)[-1].strip("_")
        longer = home.title().replace("_", "") + name if name[:1].isupper() else f"{home}_{name.lstrip('_')}"
        assert longer not in self.chunks, f"two definitions called {longer}"
        return longer

    def _resolve(self, module: ModuleType, used: str, local: dict[str, Any], user: str) -> str | None:
        """Make the global name `used` available; returns its name in the file, None for builtins and locals."""
        if used in local:
            return self.add(local[used])
        binding = _binding(module, used)
        if binding is None:
            if used not in vars(module) or hasattr(builtins, used):
                return None
            return self._by_value(module, used, user)
        if isinstance(binding, ast.stmt) and not isinstance(binding, ast.Import | ast.ImportFrom):
            return self._definition(module, used, binding)
        assert isinstance(binding, ast.Import | ast.ImportFrom)
        return self._import(module, used, binding, user)

    def _by_value(self, module: ModuleType, used: str, user: str) -> str:
        """A global of a module without a source file, such as a notebook: what it is tells where it comes from."""
        value = vars(module)[used]
        home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or ""
        inner = None if inspect.ismodule(value) else getattr(value, "__name__", None)
        root = home.split(".")[0]
        if (root == "torch" or root in sys.stdlib_module_names) and root != "__main__" and (
                inner is None or getattr(sys.modules[home], inner, None) is value):
            self.imports.setdefault(used, (home, inner, used))
            return used
        if home == module.__name__ and (inspect.isclass(value) or inspect.isfunction(value)):
            return self.add(value)
        if is_plain(value):
            return self._take(module, used, f"{used} = {value!r}\n", "constant")
        raise ValueError(_cannot_text(user, module, f"{used!r} is made at run time", "write it out"))

    def _definition(self, module: ModuleType, used: str, binding: ast.stmt) -> str:
        if isinstance(binding, ast.FunctionDef | ast.ClassDef):
            return self.add(vars(module)[used])
        text = ast.get_source_segment(inspect.getsource(module), binding)
        assert text is not None
        return self._take(module, used, text + "\n", "constant")

    def _import(self, module: ModuleType, used: str, binding: ast.Import | ast.ImportFrom, user: str) -> str:
        alias = next(a for a in binding.names if (a.asname or a.name.split(".")[0]) == used)
        if isinstance(binding, ast.Import):
            source, inner = alias.name, None
        else:
            source, inner = _absolute(module, binding), alias.name
        root = source.split(".")[0]
        if root == "torch" or root in sys.stdlib_module_names:
            self.imports.setdefault(used, (source, inner, used))
            return used
        if inner is None or _is_installed(root):
            raise ValueError(_cannot_text(user, module, f"it uses {source}",
                                          "write that part with torch, or keep it out of the module"))
        home = importlib.import_module(source)
        found = getattr(home, inner, None)
        if inspect.ismodule(found):
            raise ValueError(_cannot_text(user, module, f"it uses the module {source}.{inner} as a whole",
                                          f"import the names it needs: from {source}.{inner} import ..."))
        if inspect.isclass(found) or (callable(found) and not isinstance(found, GenericAlias)):
            return self.add(found)
        target = _binding(home, inner)
        if target is None:
            raise ValueError(_cannot_text(user, module, f"{inner!r} of {source} is made at run time", "write it out"))
        return self._resolve(home, inner, {}, user) or inner


def _cannot_text(user: str, module: ModuleType, why: str, instead: str) -> str:
    where = getattr(module, "__file__", module.__name__)
    return f"an exported module is plain torch source: {user} in {where} cannot be written out because {why}; {instead}"


def _cannot(definition: Any, why: str, instead: str) -> ValueError:
    module = sys.modules.get(definition.__module__) or ModuleType(definition.__module__)
    return ValueError(_cannot_text(definition.__qualname__, module, why, instead))


def _is_installed(root: str) -> bool:
    """Whether a package is a third party's: installed, and not this one."""
    if root == _HOUSE:
        return False
    file = getattr(importlib.import_module(root), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _absolute(module: ModuleType, binding: ast.ImportFrom) -> str:
    if not binding.level:
        assert binding.module is not None
        return binding.module
    package = getattr(module, "__package__", None) or module.__name__.rpartition(".")[0]
    base = package.split(".")[:len(package.split(".")) - binding.level + 1]
    return ".".join([*base, *([binding.module] if binding.module else [])])


def _legend(module: ModuleType) -> str:
    """The paragraph of a module's docstring that explains the letters of its tensor names."""
    paragraphs = (inspect.cleandoc(module.__doc__ or "")).split("\n\n")
    return next((p for p in paragraphs if _LEGEND.match(p)), "")


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    for statement in tree.body:
        yield statement
        if isinstance(statement, ast.If):  # if TYPE_CHECKING:
            yield from statement.body


def _binding(module: ModuleType, name: str) -> ast.stmt | None:
    """The top-level statement of a module that gives `name` its meaning; the last one counts."""
    return _bindings(module).get(name)


@lru_cache(maxsize=2048)
def _source(definition: Any) -> str:
    """The source of a class or function, its first line not indented; one defined anew is another object."""
    return textwrap.dedent(inspect.getsource(definition))


@lru_cache(maxsize=256)
def _bindings(module: ModuleType) -> dict[str, ast.stmt]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # a notebook
        return {}
    found: dict[str, ast.stmt] = {}
    for statement in _top_level(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            bound = [a.asname or a.name.split(".")[0] for a in statement.names]
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            bound = [statement.name]
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            bound = [t.id for t in targets if isinstance(t, ast.Name)]
        else:
            continue
        found |= dict.fromkeys(bound, statement)
    return found


@lru_cache(maxsize=1024)
def _used_names(text: str) -> list[str]:
    """Global names a definition may read, in order; names it only binds itself are not among them."""
    tree = parsed(text).tree
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    stored |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    top = tree.body[0]
    if isinstance(top, ast.Assign | ast.AnnAssign):
        stored = set()
    loaded = (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
    return [name for name in dict.fromkeys(loaded) if name not in stored]


def _without_local_imports(module: ModuleType, text: str) -> tuple[str, dict[str, Any]]:
    """Take `from .x import f` out of function bodies; returns the text and what those names mean."""
    if "import" not in text:
        return text, {}
    source, edits = parsed(text), []
    found: dict[str, Any] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            home, here = _absolute(module, node), module.__name__.split(".")[0]
            if home.split(".")[0] == here and here not in sys.stdlib_module_names:
                edits.append(source.removal(node))
                found |= {a.asname or a.name: getattr(importlib.import_module(home), a.name) for a in node.names}
    return apply(text, edits), found


def _renamed(text: str, renames: dict[str, str]) -> str:
    if all(name == final for name, final in renames.items()):
        return text
    source, edits = parsed(text), []
    for node in nodes(source.tree):
        if isinstance(node, ast.Name) and node.id in renames:
            edits.append(Edit(*source.span(node), renames[node.id]))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node in source.tree.body and node.name in renames:
            keyword = "class " if isinstance(node, ast.ClassDef) else "def "
            start = source.text.index(keyword, source.span(node)[0]) + len(keyword)
            edits.append(Edit(start, start + len(node.name), renames[node.name]))
    return apply(text, edits)


def import_block(imports: dict[str, Import], used: set[str]) -> str:
    """The imports of the names in use: standard library, then torch, plain imports before `from`."""
    wanted = sorted((i for name, i in imports.items() if name in used), key=lambda i: (i[0], i[1] or "", i[2]))
    groups = []
    for is_torch in (False, True):
        part = [i for i in wanted if (i[0].split(".")[0] == "torch") is is_torch]
        lines = [f"import {module}" + (f" as {name}" if name != module.split(".")[0] or "." in module else "")
                 for module, inner, name in part if inner is None]
        by_module: dict[str, list[str]] = {}
        for module, inner, name in part:
            if inner is not None:
                by_module.setdefault(module, []).append(inner if inner == name else f"{inner} as {name}")
        lines += [f"from {module} import {', '.join(names)}" for module, names in sorted(by_module.items())]
        if lines:
            groups.append("\n".join(lines))
    return "\n\n".join(groups)
