"""The journal survives, refuses a second writer, and tells trials from events."""

import json
import math
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from bodyplan.errors import BodyplanError
from bodyplan.search.journal import FILE_NAME, Journal
from bodyplan.space.genome import Genome

GENOME = Genome({"width": 1, "body.times": 2})


def ask(number, **more):
    return {"n": 1, "genomes": [GENOME.to_json()], "numbers": [number], "new": [True], "hashes": ["ab" * 32],
            "labels": [{"width": "96"}], **more}


def result(number, **more):
    return {"number": number, "state": "complete", "values": {"loss": 1.5}, "intervals": {"loss": [1.0, 2.0]},
            "seconds": 0.25, "seed": 7, "extra": {"note": "x"}, **more}


def test_a_directory_appears_with_its_journal_in_it(tmp_path):
    with Journal.create(tmp_path / "deep" / "run", {"seed": 3}) as journal:
        assert (tmp_path / "deep" / "run" / FILE_NAME).is_file()
        assert journal.definition == {"seed": 3}
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run"]


def test_a_new_sweep_is_refused_a_directory_that_holds_one(tmp_path):
    Journal.create(tmp_path / "run").close()
    with pytest.raises(BodyplanError, match=r"already holds one; continue it with run\(resume=True\)"):
        Journal.create(tmp_path / "run")


def test_a_new_sweep_is_refused_a_directory_with_other_files_and_leaves_them(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BodyplanError, match="other files"):
        Journal.create(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    Journal.create(tmp_path / "run").close()
    assert (tmp_path / "run" / FILE_NAME).is_file()


def test_opening_without_a_journal_says_what_to_do(tmp_path):
    with pytest.raises(BodyplanError, match="start the sweep without resume"):
        Journal.open(tmp_path)


def test_a_second_writer_is_refused_in_this_process_and_in_another(tmp_path):
    script = f"from bodyplan.search.journal import Journal; Journal.open({str(tmp_path / 'run')!r}, write=True)"
    with Journal.create(tmp_path / "run"):
        with pytest.raises(BodyplanError, match="one process writes a sweep at a time"):
            Journal.open(tmp_path / "run", write=True)
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "one process writes a sweep at a time" in other.stderr
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_readers_follow_while_the_writer_writes(tmp_path):
    with Journal.create(tmp_path / "run") as writer, Journal.open(tmp_path / "run") as reader:
        assert reader.trials() == []
        writer.append("ask", ask(0))
        assert [trial.state for trial in reader.trials()] == ["running"]
        writer.append("result", result(0))
        assert [trial.state for trial in reader.trials()] == ["complete"]
        with pytest.raises(BodyplanError, match="open for reading"):
            reader.append("ask", ask(1))


def test_a_directory_nobody_may_write_to_can_be_read(tmp_path):
    Journal.create(tmp_path / "run", {"seed": 1}).close()
    (tmp_path / "run" / "journal.lock").unlink()
    (tmp_path / "run").chmod(0o555)
    try:
        with Journal.open(tmp_path / "run") as journal:
            assert journal.definition == {"seed": 1}
    finally:
        (tmp_path / "run").chmod(0o755)


def test_trials_hold_what_was_asked_and_what_came_of_it(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        journal.append("ask", ask(0, initial=True))
        journal.append("ask", ask(1))
        journal.append("result", result(0))
        journal.append("result", {"number": 1, "state": "failed", "values": None,
                                  "failure": {"reason": "boom", "traceback": "..."}})
        first, second = journal.trials()
    assert (first.genome, first.values, first.intervals) == (GENOME, {"loss": 1.5}, {"loss": (1.0, 2.0)})
    assert first.initial and first.labels == {"width": "96"} and first.short == "abababab" and first.seed == 7
    assert second.state == "failed" and second.failure["reason"] == "boom" and second.values == {}


def test_streams_are_kept_apart(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        journal.append("ask", ask(0))
        journal.append("ask", ask(1), stream="twin")
        assert [trial.number for trial in journal.trials("twin")] == [1]
        assert [trial.number for trial in journal.trials()] == [0, 1]
        assert [event.stream for event in journal.events("ask")] == ["search", "twin"]


def test_numbers_that_are_not_finite_become_null_and_numpy_becomes_plain(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        journal.append("note", {"a": math.nan, "b": [math.inf, np.float64(2.5)], "c": np.arange(2),
                                "d": np.float32("nan")})
        text = journal._connection.execute("SELECT body FROM events WHERE kind = 'note'").fetchone()[0]
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 2.5], "c": [0, 1], "d": None}


def test_the_newest_event_of_a_kind_is_found(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        journal.append("front", {"at": 1})
        journal.append("front", {"at": 2})
        assert journal.last("front").body == {"at": 2}
        assert journal.last("export") is None


def test_a_journal_of_a_newer_version_is_refused(tmp_path):
    Journal.create(tmp_path / "run").close()
    connection = sqlite3.connect(tmp_path / "run" / FILE_NAME)
    connection.execute("UPDATE meta SET value = '99'")
    connection.commit()
    connection.close()
    with pytest.raises(BodyplanError, match="install a newer bodyplan"):
        Journal.open(tmp_path / "run")


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / FILE_NAME).write_text("not a database, by a long way" * 100)
    with pytest.raises(BodyplanError, match="not a journal"):
        Journal.open(tmp_path)
