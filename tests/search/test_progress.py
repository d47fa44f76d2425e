"""What a person reads: durations, the front as a table, a summary that says how far to trust it."""

import io

import pytest
from bodyplan.search.front import Front
from bodyplan.search.journal import Trial
from bodyplan.search.progress import Reporter, duration, front_table
from bodyplan.search.summary import fidelity_lines
from bodyplan.space.genome import Genome
from rich.console import Console

OBJECTIVES = [{"name": "loss", "goal": "min", "unit": "bits/byte"}, {"name": "parameters", "goal": "min"}]


def front(count):
    return Front([Trial(i, Genome({"width": i}), "complete", {"loss": 2.5 + i, "parameters": 50_000 - i},
                        {"loss": (2.4, 2.6)}, hash="ab" * 32, initial=i == 0) for i in range(count)], OBJECTIVES)


def text(renderable):
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (45, "45 s"), (200, "3 min 20 s"),
                                                (7500, "2 h 5 min")])
def test_durations_read_like_words(seconds, words):
    assert duration(seconds) == words


def test_the_table_has_units_directions_intervals_the_knee_and_ones_own_model():
    shown = text(front_table(front(2), marks=[1]))
    assert "loss (bits/byte) ↓" in shown and "2.5 [2.4, 2.6]" in shown and "50,000" in shown
    assert "0 yours" in shown and "1 knee" in shown


def test_a_long_front_is_shown_in_part_with_its_ends_and_its_knee():
    shown = text(front_table(front(100), marks=[41], limit=5))
    assert "100 candidates (6 shown" in shown and "41 knee" in shown and " 99 " in shown and "0 yours" in shown


def test_plain_lines_are_few_and_the_last_is_always_written():
    stream = io.StringIO()
    reporter = Reporter(stream=stream)
    reporter.begin("search", 500)
    for done in range(1, 501):
        reporter.advance(done, "front 3")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].startswith("search: 1/500, front 3") and lines[1] == "search: 500/500, front 3"


def test_the_correlation_is_told_with_its_interval_count_and_the_trivial_proxies():
    body = {"objective": "loss", "tau": 0.5, "low": 0.1, "high": 0.8, "count": 12, "steps": 144, "spearman": 0.6,
            "proxies": {"parameters": {"tau": 0.4, "low": 0.0, "high": 0.7}}}
    first, second = fidelity_lines(body)
    assert "Kendall tau 0.50 [0.10, 0.80] (95 %, 12 candidates, 144 steps each, one seed)" in first
    assert "parameters 0.40 [0.00, 0.70]" in second
