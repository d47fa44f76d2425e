"""A package of somebody else adds an operator by an entry point: installed for real, found in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import bodyplan
import pytest

PAGE = Path(bodyplan.__file__).parent / "CONTRIBUTING.md"
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "leaky-mixers"
version = "1.0"

[project.entry-points."bodyplan.operators"]
Leaky = "leaky_mixers:Leaky"

[tool.setuptools]
py-modules = ["leaky_mixers"]
"""
USE = """
import json, sys
import bodyplan as bp
from bodyplan.space.operator import operators
assert "leaky_mixers" not in sys.modules
assert "Leaky" in operators.names()
made = operators.get("Leaky")
space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16), body=bp.Block(mixer=made()),
                 head=bp.LanguageHead())
print(json.dumps(space.to_json()))
"""
READ = """
import json, sys
import bodyplan as bp
print(bp.Space.from_json(json.load(sys.stdin)).sample(0).build().layers[0].mixer.op)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory that holds the package as pip installs it, and bodyplan beside it."""
    folder = tmp_path_factory.mktemp("leaky")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (folder / "leaky_mixers.py").write_text(code.replace("from ..", "from bodyplan.space."))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--disable-pip-version-check", "--target", str(folder / "site"), str(folder)], check=True, timeout=120)
    (folder / "site" / "bodyplan").symlink_to(Path(bodyplan.__file__).parent)
    return folder / "site"


def run(site, *command, given=None):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, input=given, timeout=120, cwd=site,
                          env={**os.environ, "PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_space_holds_the_operator_and_another_process_reads_it_back(site):
    stored = run(site, "-c", USE)
    assert "LeakyMean" in run(site, "-c", READ, given=stored)


def test_the_command_line_lists_and_describes_it(site):
    assert "Exponential smoothing (1957)" in run(site, "-m", "bodyplan.cli", "ops")
    assert run(site, "-m", "bodyplan.cli", "ops", "Leaky").startswith("Leaky: mixer, causal self")


def test_it_keeps_the_contract_where_it_is_installed(site):
    run(site, "-c", "from bodyplan.space.operator import operators; from bodyplan.testing import check_operator; "
                    "made = operators.get('Leaky'); check_operator(made(), 16, smaller=[(made(), 8)])")
