"""The catalogue: every state is earned by something that a user can name, and every claim by a test that exists."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bodyplan.systems import STATES, catalogue, expressed, expressions, to_markdown, to_text

ROOT = Path(__file__).parent.parent
ROWS = catalogue()


@pytest.fixture(scope="module")
def collected():
    """Every test of the files that rows name, by file."""
    files = sorted({row.test.split()[0] for row in ROWS if row.test})
    done = subprocess.run([sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir=tests",
                           "--import-mode=importlib", "--collect-only", "-q", *files],
                          cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return [f"tests/{line}" for line in done.stdout.splitlines() if "::" in line]


def test_every_claim_names_tests_that_exist(collected):
    for row in ROWS:
        if row.state == "missing":
            assert not row.test and not row.where
            continue
        file, _, word = row.test.partition(" -k ")
        found = [test for test in collected if test.startswith(f"{file}::") and word.lower() in test.lower()]
        assert found, f"{row.id} {row.where} is proved by {row.test}: no such test; give {row.where} a `proof`"


@pytest.mark.parametrize("system", sorted(expressions()))
def test_what_is_expressible_builds(system):
    row = next(row for row in ROWS if row.id == system)
    assert row.state != "missing"
    assert len(list(expressed(expressions()[system]).build(device="meta").parameters())) > 0


def test_a_combination_that_is_no_network_is_refused():
    with pytest.raises(ValueError, match="a combination is a space or an architecture: bp.MLP.* is MLP"):
        expressed("bp.MLP()")


def test_presets_and_training_strategies_count():
    named = {row.where for row in ROWS}
    assert {"learngene", "presets.brainformer"} <= named


def test_every_row_printed_has_one_of_the_states_and_the_counts_add_up():
    assert len({row.id for row in ROWS}) == len(ROWS) == 332
    counts = Counter(row.state for row in ROWS)
    assert set(counts) <= set(STATES)
    assert f"332 systems: {counts['works']} works" in to_text(ROWS)
    tables = re.findall(r"^\| \w+, \d \|(.*)\|$", to_markdown(ROWS), flags=re.MULTILINE)
    assert sum(int(number) for line in tables for number in line.split("|")) == 332
