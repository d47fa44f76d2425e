"""The study of supernet fidelity: complete in seconds at a toy size, continued after a stop, its page from its file."""

import json
from pathlib import Path

import bodyplan as bp
import pytest
import torch
from bodyplan.errors import BodyplanError
from bodyplan.experiments import fidelity_page, supernet_fidelity
from bodyplan.experiments.fidelity_page import BEGIN, END, tables, write_page
from bodyplan.experiments.fidelity_work import Record, Work, study_space, training_strategy
from bodyplan.experiments.supernet_fidelity import Settings, Study
from bodyplan.search.executors.base import Job
from bodyplan.search.executors.inline import InlineExecutor
from bodyplan.search.lock import FileLock

TINY = Settings(candidates=3, repeated=3, batch=1, length=8, held_out=1, steps=2, supernet_seconds=0.2, timed_steps=2,
                adapt_steps=2)
PAGE = Path(bp.__file__).parent / "docs" / "fidelity.md"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def invented(path, candidates=24, strategies=("close", "far"), seed=0):
    """A finished study whose numbers are drawn: "close" scores by the truth with some noise, "far" by noise alone."""
    import numpy as np

    rng = np.random.default_rng(seed)
    truth = rng.normal(3.0, 0.1, candidates)
    record = Record(path)
    drawn = [{"genome": {}, "hash": "", "parameters": int(rng.integers(100_000, 240_000)), "macs": float(rng.integers(9e6))}
             for _ in truth]
    settings = {"workers": 2, "seed": 0, "batch": 4, "length": 128, "lr": 0.01, "supernet_lr": 0.01, "repeated": 12}
    record.append("design", settings=settings, space="", size="16767000", data="bytes", candidates=drawn)
    record.append("run", command="python -m it", machine={"name": "a machine", "torch": "2"}, date="2026-01-01", pid=1)
    record.append("plan", steps=400, supernet_seconds=300.0)
    for index, value in enumerate(truth):
        for replicate in range(1 + (index < 12)):
            noisy = value + 0.02 * rng.normal()
            record.append("alone", candidate=index, replicate=replicate, steps=400, test=noisy, scoring=noisy + 0.01)
    for name in strategies:
        record.append("supernet", strategy=name, steps=1000, train_seconds=299.0)
        for index, value in enumerate(truth):
            off = 0.03 * rng.normal() if name == "close" else rng.normal()
            record.append("score", strategy=name, candidate=index, scoring=value + off)
    return record


class Stopping(InlineExecutor):
    """Runs a number of jobs and is then interrupted, as by a second Ctrl-C."""

    def __init__(self, jobs):
        super().__init__()
        self.left = jobs

    def next(self, timeout=None):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().next(timeout)


def test_a_study_that_is_stopped_goes_on_where_it_was_and_does_nothing_twice(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Study(tmp_path, TINY, ["single_path"]).run(Stopping(7))
    before = Record(tmp_path / "study.jsonl").lines
    assert [line["kind"] for line in before].count("time_alone") == 3 and before[-1]["kind"] in ("supernet", "alone")
    Study(tmp_path, TINY, ["single_path"]).run(InlineExecutor())
    record = Record(tmp_path / "study.jsonl")
    assert record.lines[:len(before)] == before
    kinds = [line["kind"] for line in record.lines]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "design": 1, "run": 2, "time_alone": 3, "time_supernet": 1, "plan": 1, "supernet": 1, "alone": 6, "score": 3}
    assert not [line for line in record.lines if "failure" in line]
    assert {line["steps"] for line in record.of("alone")} == {2}
    said = tables(record)
    assert all(line["adapted"] != line["scoring"] for line in record.of("score"))
    assert all(f"| {name} |" in said for name in ("single_path", "single_path, adapted", "parameters"))
    assert "another seed" in said


def test_longer_horizons_are_added_to_a_finished_study(tmp_path):
    Study(tmp_path, TINY, ["single_path"]).run(InlineExecutor())
    before = len(Record(tmp_path / "study.jsonl").lines)
    Study(tmp_path, TINY, ["single_path"], "again", horizons=[1, 3], of=["single_path"]).run(InlineExecutor())
    record = Record(tmp_path / "study.jsonl")
    assert [line["kind"] for line in record.lines[before:]] == ["run"] + ["adapted"] * 6
    rows = [line.split(" | ")[:3] for line in tables(record).splitlines() if line.startswith("| single_path | ")]
    assert [row[1:] for row in rows if row[2].endswith("%")] == [["0", "0%"], ["1", "50%"], ["2", "100%"], ["3", "150%"]]
    assert "    again" in tables(record)


def test_one_process_writes_a_study_at_a_time(tmp_path):
    held = FileLock(tmp_path / "study.lock")
    assert held.acquire()
    with pytest.raises(BodyplanError, match="being written by process"):
        Study(tmp_path, TINY, ["single_path"]).run(InlineExecutor())
    held.release()


def test_other_settings_are_refused_and_named(tmp_path):
    Study(tmp_path, TINY, ["single_path"])
    with pytest.raises(ValueError, match="seed 0, now 1"):
        Study(tmp_path, Settings(**{**vars(TINY), "seed": 1}), ["single_path"])
    with pytest.raises(ValueError, match="did you mean 'sandwich'"):
        Study(tmp_path / "other", TINY, ["sandwhich"])
    with pytest.raises(ValueError, match="at least 3 candidates"):
        Settings(candidates=2)


def test_the_minutes_are_divided_between_candidates_and_strategies(tmp_path):
    study = Study(tmp_path, Settings(candidates=4, repeated=2, minutes=1.0, workers=2), ["single_path", "fair"])
    for index in range(4):
        study.record.append("time_alone", candidate=index, step_seconds=0.05, score_seconds=0.5)
    study._plan()
    plan = study.record.last("plan")
    usable = 60 * 2 * supernet_fidelity.USABLE
    adapting = 2 * 4 * (60 * 0.05 + 0.5)
    alone, scores = plan["steps"] * 0.05 * 6, 0.5 * (2 * 6 + 2 * 4) + adapting
    assert plan["steps"] % 10 == 0 and alone <= (usable - scores) * 0.3 < alone + 10 * 0.05 * 6
    assert 2 * plan["supernet_seconds"] + alone + scores == pytest.approx(usable, abs=0.1)


def test_timings_are_of_the_processor_and_leave_out_what_is_paid_once(tmp_path, monkeypatch):
    work, now, seen = Work(tmp_path, 1, 8, 5, 0.01, 0.01), [0.0], set()
    work.setup()
    batch = type(work.task).batch

    def slow(self, split, step, seed):
        is_first = split not in seen or (split, step) == ("train", 1)
        seen.add(split)
        now[0] += 100.0 if is_first else 2.0 if split == "train" else 0.5
        return batch(self, split, step, seed)

    monkeypatch.setattr(type(work.task), "batch", slow)
    monkeypatch.setattr("time.process_time", lambda: now[0])
    genome = work.space.smallest()
    alone = work.run(Job(0, "time_alone", genome, 0))
    assert alone.pop("cpu_seconds") > 100 and alone == {"step_seconds": 2.0, "score_seconds": 0.5 * 5}
    seen.clear()
    assert work.run(Job(0, "time_supernet", genome, 0, {"strategy": "sandwich", "steps": 3}))["step_seconds"] == 2.0


def test_minutes_that_are_too_few_are_refused_before_any_training(tmp_path):
    study = Study(tmp_path, Settings(candidates=4, repeated=2, minutes=0.01), ["single_path"])
    for index in range(4):
        study.record.append("time_alone", candidate=index, step_seconds=0.05, score_seconds=0.5)
    with pytest.raises(ValueError, match="too few"):
        study._plan()


def test_candidates_are_spread_over_parameters_and_the_repeated_ones_over_the_candidates(tmp_path):
    study = Study(tmp_path, Settings(candidates=8, repeated=3), ["single_path"])
    sizes = [candidate["parameters"] for candidate in study.candidates]
    assert sizes == sorted(sizes) and len({candidate["hash"] for candidate in study.candidates}) == 8
    assert sum(study.settings.seeds) == 11 and set(study.settings.seeds) == {1, 2}
    assert Settings(candidates=50, repeated=50).seeds == [2] * 50
    from bodyplan.space.genome import Genome

    first = study_space().architecture(Genome.from_json(study.candidates[0]["genome"]))
    assert first.hash == study.candidates[0]["hash"] and first.cost().parameters == sizes[0]


def test_the_space_is_hybrid_and_its_largest_has_about_a_quarter_of_a_million_parameters():
    space = study_space()
    sizes = [space.sample(seed).cost().parameters for seed in range(200)]
    assert 200_000 < max(sizes) < 260_000 and 50_000 < min(sizes) < 80_000
    assert "recursion" in {gene.path for gene in space.genes}


def test_the_plain_sandwich_is_the_sandwich_without_distillation():
    assert training_strategy("sandwich").distill and not training_strategy("sandwich_plain").distill


def test_the_tables_rank_strategies_and_hold_them_against_ceiling_and_proxies(tmp_path):
    said = tables(invented(tmp_path / "study.jsonl"))
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:8]] == [
        "| close", "| far", "| another seed (the ceiling)", "| another seed, scored on the scoring split", "| parameters",
        "| MACs"]
    assert rows[-5].startswith("| close |") and rows[-6].startswith("| ---") and rows[-3].startswith("| another seed")
    assert "Best overall: close" in said and "above parameters and MACs" in said
    assert "python -m it" in said and "a machine" in said and "from 12 pairs of seeds" in said


def test_adapted_scores_are_rows_of_their_own_with_the_steps_of_their_supernet(tmp_path):
    record = invented(tmp_path / "study.jsonl", strategies=("far",))
    for line in list(record.of("score")):
        truth = next(one["test"] for one in record.of("alone") if one["candidate"] == line["candidate"])
        line["adapted"] = truth
    said = tables(record)
    assert "| far, adapted | 1,000 | 299 | 1.00" in said and "| far | 1,000 | 299 |" in said
    assert "Best overall: far, adapted" in said


def test_a_strategy_that_failed_is_named_and_the_others_are_ranked(tmp_path):
    record = invented(tmp_path / "study.jsonl", strategies=("close",))
    record.append("supernet", strategy="fair", failure="BodyplanError: training diverged")
    assert "Failed: supernet fair: BodyplanError: training diverged" in tables(record)


def test_a_report_is_written_between_the_marks_and_keeps_the_rest(tmp_path):
    record = invented(tmp_path / "study.jsonl")
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        supernet_fidelity.main(["--report", "--out", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert text.startswith(f"# Mine\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert tables(record) in text and (tmp_path / "page.jsonl").read_bytes() == record.path.read_bytes()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="page.md lacks"):
        write_page(page, record.path)


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(json.dumps({"kind": "run", "time": 1.0}) + "\n" + '{"kind": "al')
    record = Record(path)
    record.append("alone", candidate=1)
    assert [line["kind"] for line in Record(path).lines] == ["run", "alone"]
    path.write_text("{")
    assert Record(path).lines == [] and path.read_bytes() == b""


def test_time_between_runs_does_not_count(tmp_path):
    path = tmp_path / "study.jsonl"
    lines = [("design", 0), ("run", 10), ("alone", 70), ("run", 500), ("score", 530)]
    path.write_text("".join(json.dumps({"kind": kind, "time": time}) + "\n" for kind, time in lines))
    assert Record(path).seconds_spent() == 90


@pytest.mark.slow
def test_the_page_says_what_its_own_file_says():
    """Once the study is part of the repository, nobody edits a number by hand."""
    text = PAGE.read_text()
    assert BEGIN in text and END in text
    lines = PAGE.with_suffix(".jsonl")
    if lines.is_file():
        assert tables(Record(lines, write=False)) in text
    else:
        assert "| ranked by |" not in text


@pytest.mark.slow
def test_the_quick_study_runs_end_to_end_in_two_workers(tmp_path, capsys):
    supernet_fidelity.main(["--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    record = Record(tmp_path / "study.jsonl")
    assert "Best overall" in said and "| single_path |" in said and "| sandwich |" in said
    assert len(list(record.of("score"))) == 12 and record.seconds_spent() < 120
    assert fidelity_page.Numbers(record).strategies
