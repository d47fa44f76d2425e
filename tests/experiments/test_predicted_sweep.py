"""Two arms of one sweep, in seconds: what the study keeps, and what it says of them."""

import pytest
from bodyplan.experiments import predicted_sweep


@pytest.mark.long
def test_both_arms_run_once_and_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(predicted_sweep, "STEPS", 1)
    monkeypatch.setattr(predicted_sweep, "PROBES", 3)
    for arm in predicted_sweep.ARMS:
        predicted_sweep.run(tmp_path, "alone", arm, 0, minutes=0.05, predictor="additive")
    given = (tmp_path / "setting.json").read_text()
    one, two = predicted_sweep.report(tmp_path)
    assert (one["sweep"], two["sweep"]) == ("alone-with-0", "alone-without-0")
    assert two["tried"] >= two["measured"] >= two["within bounds"] and two["predicted"] == two["not tried"] == 0
    assert one["notes"] and not two["notes"]
    before = (tmp_path / "alone-with-0" / "journal.sqlite").stat().st_mtime_ns
    predicted_sweep.run(tmp_path, "alone", "with", 0, minutes=0.05, predictor="additive")
    assert (tmp_path / "alone-with-0" / "journal.sqlite").stat().st_mtime_ns == before
    assert (tmp_path / "setting.json").read_text() == given
