"""The report is one file that opens from disk and says where its numbers come from."""

from __future__ import annotations

import html
import re

import pytest
from bodyplan.dashboards.report import write_pareto, write_report
from bodyplan.errors import BodyplanError
from bodyplan.search.journal import Journal
from bodyplan.search.results import Results
from example_sweeps import OBJECTIVES, REASONS, write_sweep
from plotly.offline import get_plotlyjs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "demo")


@pytest.fixture(scope="module")
def report(sweep):
    return write_report(sweep, sweep / "report.html").read_text()


def test_plotly_is_inlined_exactly_once(report):
    assert report.count(get_plotlyjs()) == 1


def test_nothing_is_fetched_from_anywhere(report):
    own = report.replace(get_plotlyjs(), "")
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)", own)
    assert not re.findall(r"@import|url\(", own)


def test_every_front_member_stands_with_its_export_command(report, sweep):
    results = Results.read(sweep)
    for point in results.front:
        assert html.escape(results.export_command(point)) in report


def test_failures_are_counted_by_reason(report, sweep):
    failed = Results.read(sweep).failed
    for reason in REASONS:
        count = sum(trial.failure["reason"] == reason for trial in failed)
        assert f"<td>{reason}</td><td>{count}</td>" in report


def test_it_says_how_the_numbers_were_measured(report):
    for told in ("ms on cpu", "<dt>seed</dt><dd>0</dd>", "torch 2.13.0", "bytes of &lt;speeches&gt;",
                 "123,456,789,012,345,678,901", "loss 5 bits/byte", "100 steps, 12 s"):
        assert told in report


def test_what_a_user_wrote_cannot_break_the_page(report):
    assert "<speeches>" not in report and "Traceback: <here>" not in report


def test_the_front_page_of_one_journal_is_the_same_file_twice(sweep, tmp_path):
    first, second = (write_pareto(sweep, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_objectives_make_a_report_too(tmp_path, count):
    sweep = write_sweep(tmp_path / "few", objectives=OBJECTIVES[:count], twin=False)
    assert "The front" in write_report(sweep, tmp_path / "report.html").read_text()


def test_a_sweep_that_has_only_begun_makes_a_report(tmp_path):
    Journal.create(tmp_path / "young", {"objectives": list(OBJECTIVES)}).close()
    text = write_report(tmp_path / "young", tmp_path / "report.html").read_text()
    assert "No candidate is complete" in text and "No candidate failed" in text


def test_writing_leaves_no_draft_behind(sweep, tmp_path):
    write_pareto(sweep, tmp_path / "deep" / "pareto.html")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pareto.html"]


def test_a_directory_without_a_journal_is_refused(tmp_path):
    with pytest.raises(BodyplanError, match="journal.sqlite"):
        write_report(tmp_path, tmp_path / "report.html")
