"""The command line: small, frozen, and polite about mistakes."""

import json
import subprocess
import sys

import bodyplan as bp
import pytest
from bodyplan import cli
from typer.testing import CliRunner

COMMANDS = {
    "sweep": {"file", "dry_run", "quiet"}, "demo": {"minutes", "directory", "dry_run"},
    "resume": {"directory", "quiet"}, "front": {"directory", "as_json", "as_csv"}, "show": {"directory", "number"},
    "compare": {"directory", "first", "second"}, "export": {"directory", "number", "to"},
    "fidelity": {"directory", "candidates", "steps", "seeds"},
    "report": {"directory"}, "ui": {"directory", "port"},
    "profile": {"device", "width", "length", "batch", "phase", "dtype", "mode", "of", "save", "emit", "roofline"},
    "ops": {"name", "as_json"}, "systems": {"as_json", "as_markdown"},
}
STUDY = """
import bodyplan as bp

space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16),
                 body=bp.repeat(bp.Block(mixer=bp.ShortConv(kernel=bp.choice(2, 4))), times=bp.integer(1, 3)),
                 head=bp.LanguageHead(tied=True))

def distance(architecture):
    return abs(architecture.plan.width - 12)

sweep = bp.Sweep(space, objectives=["parameters", bp.Objective("distance", evaluate=distance)], trials=8, seed=0,
                 tracking=False, directory={directory!r})
"""


def run(*arguments, code=0):
    """The command line in a process of its own, as a user meets it."""
    done = subprocess.run([sys.executable, "-m", "bodyplan.cli", *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, env=None)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "study.py"
    file.write_text(STUDY.format(directory=str(folder / "run")))
    return file, folder / "run", run("sweep", file)


def test_the_command_line_is_small_and_frozen():
    import typer

    found = {name: {p.name for p in command.params if p.name != "help"}
             for name, command in typer.main.get_command(cli.app).commands.items()}
    assert found == COMMANDS


def test_a_sweep_file_runs_and_names_the_next_command(finished):
    assert "Pareto front" in finished[2]
    assert "next: bodyplan" in finished[2]


def test_the_front_prints_as_a_table_json_and_csv(finished):
    _, directory, _ = finished
    rows = json.loads(CliRunner().invoke(cli.app, ["front", str(directory), "--json"]).output)
    assert {"number", "parameters", "distance"} <= rows[0].keys()
    assert len(CliRunner().invoke(cli.app, ["front", str(directory), "--csv"]).output.strip().splitlines()) == len(rows) + 1
    assert "parameters" in CliRunner().invoke(cli.app, ["front", str(directory)]).output


def test_the_front_needs_neither_mlflow_nor_the_users_file(finished, tmp_path):
    code = f"""
import sys
sys.modules["mlflow"] = None
from bodyplan.cli import app
app(["front", {str(finished[1])!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_show_and_compare_read_the_journal_alone(finished):
    _, directory, _ = finished
    shown = CliRunner().invoke(cli.app, ["show", str(directory), "0"]).output
    assert "ShortConv" in shown and "parameters" in shown
    assert "parameters:" in CliRunner().invoke(cli.app, ["compare", str(directory), "0", "1"]).output


def test_resume_of_a_finished_sweep_evaluates_nothing(finished):
    from bodyplan.search.journal import Journal

    with Journal.open(finished[1]) as journal:
        before = len(journal.trials())
    run("resume", finished[1])
    with Journal.open(finished[1]) as journal:
        assert len(journal.trials()) == before


def test_export_of_a_trial_by_number(finished, tmp_path):
    run("export", finished[1], 0, tmp_path / "out")
    assert (tmp_path / "out" / "model.py").exists()


def test_dry_run_writes_nothing(tmp_path):
    (tmp_path / "study.py").write_text(STUDY.format(directory=str(tmp_path / "run")))
    said = run("sweep", tmp_path / "study.py", "--dry-run")
    assert "genomes" in said or "architectures" in said
    assert not (tmp_path / "run").exists()


BAD_FILES = {
    "raises": ("1 / 0", "ZeroDivisionError at line 1"),
    "syntax": ("def broken(:", "SyntaxError at line 1"),
    "defines nothing": ("x = 1", "defines one Sweep"),
    "defines a space only": (STUDY.split("def distance")[0], "add sweep = bp.Sweep(space"),
    "returns something else": ("def sweep():\n    return 3", "must be a Sweep or return one: got int"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_sweep_file_is_answered_with_the_rule(case, tmp_path):
    text, message = BAD_FILES[case]
    (tmp_path / "study.py").write_text(text)
    assert message in run("sweep", tmp_path / "study.py", code=2)


def test_a_missing_name_suggests_the_nearest(finished):
    assert "did you mean 'sweep'" in run("sweep", f"{finished[0]}:sweap", code=2)


def test_a_directory_with_another_sweep_is_refused(finished):
    assert str(finished[1]) in run("sweep", finished[0], code=1)


def test_resume_without_a_journal_says_so(tmp_path):
    assert "holds no journal.sqlite" in run("resume", tmp_path, code=1)


def test_resume_with_a_changed_space_is_refused(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(STUDY.format(directory=str(tmp_path / "run")))
    run("sweep", file)
    file.write_text(file.read_text().replace("bp.choice(8, 16)", "bp.choice(8, 24)"))
    assert "another space" in run("resume", tmp_path / "run", code=1)


def test_an_unknown_device_lists_what_there_is():
    assert "cpu" in run("profile", "cpuu", code=2)


def test_a_trial_number_out_of_range(finished):
    assert "a trial has a number from 0 to 7" in run("show", finished[1], 99, code=2)


def test_systems_prints_every_row_as_json():
    rows = json.loads(CliRunner().invoke(cli.app, ["systems", "--json"]).output)
    assert {"id", "state", "where", "test"} == rows[0].keys()
    assert {row["state"] for row in rows} <= {"works", "option", "expressible", "missing"}
    assert any(row["state"] != "missing" for row in rows)


def test_the_systems_page_is_the_commands_output():
    from pathlib import Path

    page = (Path(bp.__file__).parent / "docs" / "systems.md").read_text()
    assert CliRunner().invoke(cli.app, ["systems", "--markdown"]).output.strip() == page.strip()
