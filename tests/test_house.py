"""The house: arrows between rooms point down, importing is cheap, nothing private leaks, files stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWS = {
    "kernels": set(),
    "space": {"kernels"},
    "evaluators": {"space", "kernels"},
    "search": {"evaluators", "space", "kernels"},
    "experiments": {"search", "evaluators", "space", "kernels", "dashboards"},
    "dashboards": {"search"},
}
ROOMS = sorted(KNOWS)
# The dashboards see results only; a sweep opens its views when it ends, which is the one arrow upwards.
UPWARDS = {("search/tracking.py", "dashboards"), ("search/stages.py", "dashboards"), ("search/summary.py", "dashboards")}
RESULTS_ONLY = {"results", "journal", "front", "pareto"}
HEAVY = ("torch", "ray", "mlflow", "optuna", "networkx", "pandas", "plotly", "numpy")
OPTIONAL_BELOW_SEARCH = {"ray", "mlflow", "optuna", "plotly"}


def files(room):
    return sorted((ROOT / room).rglob("*.py"))


def imports(path):
    """(room or top-level package, rest) of every import in the file, wherever it stands."""
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            parts = (node.module or "").split(".")
            names = [parts] if parts[0] else [[alias.name] for alias in node.names]
            yield from ((p[0], p[1:]) for p in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            parts = (node.module or "").split(".")
            yield (parts[1], parts[2:]) if parts[0] == "bodyplan" and len(parts) > 1 else (parts[0], parts[1:])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], alias.name.split(".")[1:]


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_point_down(room):
    for path in files(room):
        relative = str(path.relative_to(ROOT))
        for target, _ in imports(path):
            if target in KNOWS and target != room and (relative, target) not in UPWARDS:
                assert target in KNOWS[room], f"{relative} imports {target}"


def test_dashboards_know_results_only():
    for path in files("dashboards"):
        for target, rest in imports(path):
            if target == "search":
                assert rest and rest[0] in RESULTS_ONLY | {"tracking", "saved_views"}, f"{path.name} imports {rest}"


@pytest.mark.parametrize("room", ["kernels", "space", "evaluators"])
def test_lower_rooms_do_without_search_libraries(room):
    for path in files(room):
        assert not {target for target, _ in imports(path)} & OPTIONAL_BELOW_SEARCH, path


def test_importing_bodyplan_imports_nothing_heavy():
    code = ("import sys, bodyplan; dir(bodyplan); "
            f"print([name for name in {HEAVY!r} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kernels_space_and_evaluators_import_where_search_libraries_are_missing(tmp_path):
    (tmp_path / "bodyplan").symlink_to(ROOT)
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(OPTIONAL_BELOW_SEARCH | {"thop", "pandas", "moocore", "scipy"})!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import bodyplan as bp, torch
from bodyplan.experiments.first_sweep import space
found = space().sample(0)
bp.train(found.build(), bp.tasks.text(length=16, batch=2), steps=1)
print(found.cost().parameters)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(tmp_path), "PATH": ""}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves():
    import bodyplan

    for name in bodyplan.__all__:
        assert getattr(bodyplan, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Atention'; did you mean 'Attention'"):
        bodyplan.Atention  # noqa: B018 - the access is the test


def test_files_are_short_enough_to_read():
    long = {str(p.relative_to(ROOT)): n for room in ROOMS for p in files(room)
            if (n := len(p.read_text().splitlines())) > 420}
    assert not long


def test_every_module_says_what_it_is():
    for room in ROOMS:
        for path in files(room):
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_folder_with_code_is_packaged():
    import tomllib

    packaged = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(["bodyplan", *p.parent.relative_to(ROOT).parts]) for room in ROOMS for p in files(room)}
    assert found | {"bodyplan", "bodyplan.evaluators.tasks.data", "bodyplan.testing"} == packaged
