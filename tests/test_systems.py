"""The catalogue: every state is earned by something that a user can name, and every claim by a test that exists."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from bodyplan.systems import STATES, catalogue, expressed, expressions, inexpressible, left_out, to_markdown, to_text

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


@pytest.mark.long
def test_every_claim_names_tests_that_exist(collected):
    for row in ROWS:
        if row.state == "missing":
            assert not row.test and not row.where
            continue
        file, _, word = row.test.partition(" -k ")
        found = [test for test in collected if test.startswith(f"{file}::") and word.lower() in test.lower()]
        assert found, f"{row.id} {row.where} is proved by {row.test}: no such test; give {row.where} a `proof`"


def example(plan, length=16):
    """A random input of the kind that a network's embedding takes."""
    generator = torch.Generator().manual_seed(0)
    if hasattr(plan.embed, "vocab"):
        return torch.randint(plan.embed.vocab, (1, length), generator=generator)
    if hasattr(plan.embed, "image"):
        return torch.randn(1, plan.embed.channels, *plan.embed.sides, generator=generator)
    return torch.randn(1, length, plan.embed.features, generator=generator)


@pytest.mark.parametrize("system", sorted(expressions()))
def test_what_is_expressible_builds_and_runs(system):
    architecture = expressed(expressions()[system])
    model, inputs = architecture.build().eval(), example(architecture.plan)
    with torch.no_grad():
        outputs = model(inputs, inputs) if model.reads_source else model(inputs)
    assert outputs.isfinite().all() and outputs.std() > 0


def test_every_combination_is_of_one_row_that_the_catalogue_has_and_says_what_it_leaves_out():
    known = {row.id for row in ROWS}
    files = [[line.split("\t") for line in (ROOT / name).read_text().splitlines()]
             for name in ("expressible.tsv", "inexpressible.tsv")]
    for (heading, *lines) in files:
        assert all(len(cells) == len(heading) and all(cells) for cells in lines)
    ids = [cells[0] for _, *lines in files for cells in lines]
    assert ids and not [n for n, count in Counter(ids).items() if count > 1] and set(ids) <= known
    assert all(row.state != "missing" for row in ROWS if row.id in expressions())
    assert left_out().keys() == expressions().keys()


def test_every_application_is_a_combination_or_says_what_it_would_need():
    for row in ROWS:
        if row.tier == 3:
            assert row.state != "missing" or row.id in inexpressible(), row.id


@pytest.mark.parametrize("kind", ["channel", "depth", "mixer", "norm_residual", "token"])
def test_every_operator_and_macro_that_is_not_here_says_what_it_would_need(kind):
    page, text = to_markdown(ROWS), to_text(ROWS)
    rows = [row for row in ROWS if row.kind == kind]
    assert rows
    for row in rows:
        if row.state == "missing":
            need = inexpressible()[row.id]
            assert f"| {row.id} | {row.system} | {need} |" in page and f"\n{row.id}  would need {need}\n" in text


def test_the_page_shows_every_combination_as_code_with_what_it_leaves_out():
    page = to_markdown(ROWS)
    for row in ROWS:
        section = page.partition(f"### {row.id}\n")[2].partition("\n##")[0]
        assert bool(section) == (row.state == "expressible") == (f"[combination](#{row.id.lower()})" in page)
        if section:
            code = section.partition("```python\n")[2].partition("\n```")[0]
            assert "".join(code.split()) == "".join(row.where.split()) and compile(code, row.id, "eval")
            assert f"Left out: {left_out()[row.id]}." in section and max(map(len, code.splitlines())) <= 118
    for system, missing in inexpressible().items():
        assert re.search(rf"^\| {system} \|.*\| {re.escape(missing)} \|$", page, flags=re.MULTILINE)


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
