"""The field guide: every operator that stands alone, answers that are kept, a page from its file."""

import json
from pathlib import Path

import bodyplan as bp
import pytest
import torch
from bodyplan.experiments import field_guide, field_guide_page
from bodyplan.experiments.fidelity_page import BEGIN, END
from bodyplan.experiments.fidelity_work import Record
from bodyplan.experiments.field_guide import FRAME, TRIALS, Guide, subject, subjects
from bodyplan.space.operator import operators
from bodyplan.testing.training import check_trains, small_model

PAGE = Path(bp.__file__).parent / "docs" / "operators.md"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch):
    """Two steps, one repeat, short sequences."""
    monkeypatch.setattr(field_guide, "REPEATS", 1)
    monkeypatch.setattr(field_guide, "SPEEDS", ((1, 16), (1, 32)))
    monkeypatch.setattr(field_guide_page, "SPEEDS", ((1, 16), (1, 32)))


def test_every_mixer_and_channel_mixer_that_stands_alone_is_in_the_guide():
    found = subjects()
    assert {"Attention", "Mamba2", "Pooling", "MoE"} <= set(found) and found[FRAME] is None
    assert not {"CrossAttention", "Zero", "RMSNorm", "Custom"} & set(found)
    assert found["Attention"].heads == 1 and subject(bp.CrossAttention) is None


@pytest.mark.parametrize("name", [name for name in subjects() if name != FRAME])
def test_every_operator_stands_in_a_model_of_its_tasks(name):
    config = subjects()[name]
    for trial in TRIALS.values():
        if trial.grid == config.spatial:
            layers = small_model(config, trial.make()).plan.layers
            assert [type(part).__name__ for layer in layers[-2:] for part in (layer.mixer, layer.channel)].count(name) >= 2


def test_a_guide_that_is_stopped_goes_on_and_does_nothing_twice(tmp_path, quick):
    said = []
    Guide(tmp_path, ["ShortConv"], steps=2).run(minutes=0.0, say=said.append)
    assert said == ["5 answers are missing; the same command goes on"]
    Guide(tmp_path, ["ShortConv"], steps=2).run(say=said.append)
    lines = Record(tmp_path / "guide.jsonl").lines
    assert [line["what"] for line in lines if line["kind"] == "answer"] == ["speed", "recall", "copying", "order", "rows"]
    Guide(tmp_path, ["ShortConv"], steps=2).run(say=said.append)
    assert Record(tmp_path / "guide.jsonl").lines == lines
    assert len(list(Guide(tmp_path, ["ShortConv", "Pooling"], steps=2).missing())) == 2
    assert len(list(Guide(tmp_path, ["ShortConv"], steps=3).missing())) == 4


def test_what_fails_is_an_answer_with_its_reason(tmp_path, quick, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(field_guide, "trained_error", broken)
    Guide(tmp_path, ["Pooling"], steps=2).run(say=lambda _: None)
    failed = [line for line in Record(tmp_path / "guide.jsonl").of("answer") if "failure" in line]
    assert [line["failure"] for line in failed] == ["RuntimeError: no"]


def test_what_would_take_too_long_is_not_trained_and_the_page_says_so(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(field_guide, "LONGEST", 0.0)
    Guide(tmp_path, ["Pooling"], steps=2).run(say=lambda _: None)
    record = Record(tmp_path / "guide.jsonl")
    (slow,) = [line for line in record.of("answer") if line["what"] == "patches"]
    assert slow["slow"] > 0 and "error" not in slow
    text = field_guide_page.tables(record)
    assert "| slow |" in text and f"`Pooling` at patches ({slow['slow']:.2f} s a step)" in text


def test_an_operator_that_cannot_stand_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stand alone: CrossAttention does not"):
        Guide(tmp_path, ["CrossAttention"])
    with pytest.raises(ValueError, match="did you mean 'Attention'"):
        Guide(tmp_path, ["Atention"])


def test_the_page_marks_what_stays_below_the_threshold(tmp_path):
    record = Record(tmp_path / "guide.jsonl")
    record.append("run", command="python -m it", machine={"name": "a machine", "torch": "2"}, date="2026-01-01")
    record.append("answer", operator="Hyena", what="recall", key="", error=12.0)
    record.append("answer", operator="Hyena", what="copying", key="", error=80.0)
    record.append("answer", operator="Hyena", what="speed", key="", parameters=30720, ratios={"256": 0.5, "2048": 2.25})
    record.append("answer", operator="Pooling", what="patches", key="", failure="RuntimeError: no")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    field_guide_page.write_page(page, tmp_path / "guide.jsonl")
    text = page.read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `Hyena`")]
    assert "| **12.0** | 80.0 |" in row and "| 30,720 | 0.50 | 2.25 |" in row and "T log T" in row and "causal self" in row
    assert "failed" in text and "`Pooling` failed at patches: RuntimeError: no" in text
    assert text.startswith("before") and text.rstrip().endswith("after")
    assert len(json.loads((tmp_path / "page.jsonl").read_text().splitlines()[0])) == 5


def test_a_report_without_a_guide_says_so(tmp_path):
    with pytest.raises(ValueError, match="guide.jsonl is missing"):
        field_guide_page.write_page(PAGE, tmp_path / "guide.jsonl")


def test_the_shipped_page_is_what_its_lines_say(tmp_path):
    kept = PAGE.with_suffix(".jsonl")
    page = tmp_path / "operators.md"
    page.write_text(PAGE.read_text())
    field_guide_page.write_page(page, kept)
    named = {line["operator"] for line in Record(kept, write=False).of("answer")} - {FRAME}
    assert named <= set(operators.names())
    body = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert body == [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]


def kept_answers():
    kept = PAGE.with_suffix(".jsonl")
    lines = Record(kept, write=False).of("answer") if kept.exists() else ()
    return [(line["operator"], line["what"]) for line in lines
            if line["what"] in TRIALS and line.get("error", 100.0) < TRIALS[line["what"]].beats]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), kept_answers())
def test_what_the_page_says_an_operator_learns_it_learns(name, what):
    check_trains(subjects()[name], TRIALS[what].make(), TRIALS[what].beats, TRIALS[what].steps)
