"""From a file or a directory to a sweep: what the command line needs to start, resume and look at one."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BodyplanError
from ..registry import unknown
from ..space.space import Space
from .front import Point
from .journal import FILE_NAME, Journal
from .origin import SweepOrigin
from .sweep import Sweep

__all__ = ["candidate", "load_sweep", "reload_sweep", "speak"]


def load_sweep(target: str, **arguments: Any) -> Sweep:
    """The sweep that `FILE.py[:name]` defines: a `Sweep`, or a function returning one, called with `arguments`.

    Without a name: `sweep`, or the only Sweep in the file. Raises ValueError for a file that is missing, raises, or
    defines none.
    """
    file, _, name = target.partition(".py:")
    path = Path(file + ".py" if name else target).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"a sweep is defined in a Python file: {path} does not exist; write FILE.py or FILE.py:name")
    module = _import(path)
    name = name or _only_sweep(module, path)
    if not hasattr(module, name):
        raise ValueError(unknown(f"name in {path.name}", name, [k for k in vars(module) if not k.startswith("_")]))
    made = _call(getattr(module, name), path, name, arguments)
    made.source = {"file": str(path), "name": name, "arguments": json.dumps(arguments, sort_keys=True)}
    return made


def _import(path: Path) -> ModuleType:
    """Run the file under a name of its own; its functions and classes travel to workers by value."""
    import cloudpickle

    name = f"bodyplan_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    package = Path(__file__).resolve().parent.parent
    if package in path.parents:
        return importlib.import_module("bodyplan." + ".".join(path.relative_to(package).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (BodyplanError, KeyboardInterrupt):
        raise
    except BaseException as error:
        del sys.modules[name]
        raise ValueError(f"{path} must run without an error: got {type(error).__name__} at line "
                         f"{_line_in(error, path)}: {error}") from error
    cloudpickle.register_pickle_by_value(module)
    return module


def _line_in(error: BaseException, path: Path) -> str:
    """The last line of the user's own file on the way to the error."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return str(lines[-1] if lines else getattr(error, "lineno", "?"))


def _only_sweep(module: ModuleType, path: Path) -> str:
    if hasattr(module, "sweep"):
        return "sweep"
    found = [name for name, value in vars(module).items() if isinstance(value, Sweep)]
    if len(found) == 1:
        return found[0]
    spaces = [name for name, value in vars(module).items() if isinstance(value, Space)]
    hint = f"; it has the space {spaces[0]!r}: add sweep = bp.Sweep({spaces[0]}, ...)" if spaces else ""
    raise ValueError(f"a sweep file defines one Sweep, or a function `sweep` returning one: {path} defines "
                     f"{len(found) or 'none'}{hint or '; or say which as FILE.py:name'}")


def _call(value: Any, path: Path, name: str, arguments: dict[str, Any]) -> Sweep:
    made = value(**arguments) if inspect.isfunction(value) else value
    if not isinstance(made, Sweep):
        raise ValueError(f"{name} in {path} must be a Sweep or return one: got {type(made).__name__}")
    return made


def reload_sweep(directory: str | os.PathLike[str]) -> Sweep:
    """The sweep a directory was started with, from the file its journal names. Raises BodyplanError where that fails."""
    path = Path(directory).expanduser().resolve()
    if not (path / FILE_NAME).is_file():
        raise BodyplanError(f"a resume continues a sweep: {path} holds no {FILE_NAME}; start one with `bodyplan sweep`")
    with Journal.open(path) as journal:
        source = journal.definition.get("source")
    if not source:
        raise BodyplanError(f"{path} was started from Python, which only Python can build again: run its script with "
                            "sweep.run(resume=True) or sweep.measure_fidelity()")
    made = load_sweep(f"{source['file']}:{source['name']}", **json.loads(source.get("arguments") or "{}"))
    made.directory = path
    return made


def candidate(directory: str | os.PathLike[str], number: int) -> Point:
    """A trial of a sweep's search with its architecture and weights. Raises ValueError for a number there is not."""
    with Journal.open(directory) as journal:
        origin = _origin(journal)
        known = {trial.number: Point.of(trial, origin=origin) for trial in journal.trials("search")}
    if number not in known:
        raise ValueError(f"a trial has a number from 0 to {max(known, default=-1)}: got {number}; `bodyplan front "
                         f"{directory}` lists the best")
    return known[number]


def _origin(journal: Journal) -> SweepOrigin:
    """Space and weights: from the journal's JSON, or from the user's file where the space holds code of theirs."""
    stated = journal.definition
    try:
        space = Space.from_json(stated["space"])
    except ValueError:
        if not stated.get("source"):
            raise
        space = load_sweep(f"{stated['source']['file']}:{stated['source']['name']}",
                           **json.loads(stated["source"].get("arguments") or "{}")).space
    return SweepOrigin(space, Path(journal.directory), bool(stated["supernet"]), stated["steps"] is not None)


SPEAK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bodyplan":
            raise ImportError("bodyplan cannot be imported here")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import torch
import model
torch.set_num_threads(1)
net = next(v for v in reversed(list(vars(model).values())) if hasattr(v, "from_pretrained")).from_pretrained(sys.argv[1])
start = torch.tensor([list(b"Fellow-citizens of the ")])
made = net.generate(start, tokens=200, temperature=0.8, seed=0)
sys.stdout.buffer.write(bytes(made[0].tolist()))
"""


def speak(directory: Path, say: Callable[[str], Any]) -> None:
    """Let the exported language model write 200 bytes, in a process in which bodyplan cannot be imported."""
    with Journal.open(directory) as journal:
        exported = journal.last("export")
        embed = next(iter(journal.definition["space"]["definition"]["embed"]), "")
    if exported is None or embed != "TokenEmbedding":
        return
    done = subprocess.run([sys.executable, "-c", SPEAK, exported.body["path"]], capture_output=True, timeout=120,
                          cwd="/", check=False)
    if done.returncode:
        raise BodyplanError(f"the exported model does not run alone: {done.stderr.decode(errors='replace')}")
    text = done.stdout.decode("latin-1").translate({i: 0xB7 for i in range(32)})
    say(f"200 bytes from {exported.body['path']} without bodyplan:\n  {text}")
