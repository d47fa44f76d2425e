"""The page of the study of latency tables: what is there is shown with how many it is of, what is missing as a dash."""

import json

import pytest
from bodyplan.experiments import latency_page, latency_tables, measured_tables

LINES = [
    {"key": "machine", "processor": "a quiet processor", "torch": "9.9"},
    {"key": "hat/Titan Xp/100/gaussian/unknown/0", "mape": 0.05, "coverage": 0.88},
    {"key": "hat/Titan Xp/100/gaussian/unknown/1", "mape": 0.07, "coverage": 0.92},
    {"key": "hat/Titan Xp/20/ridge/unknown/0", "mape": 0.2, "coverage": 0.9},
    {"key": "drift/Raspberry Pi 4", "largest": 0.36,
     "sessions": [{"first": 0.0, "last": 121.0, "shift": 0.354, "spread": 0.093}]},
    {"key": "fbnet/gold_6240/200/gaussian/unknown/0", "spearman": 0.94, "coverage": 0.9},
    {"key": "few/gold_6240/chosen/0", "spearman": 0.92, "coverage": 0.8},
    {"key": "few/gold_6240/random/0", "spearman": 0.88, "coverage": 0.8},
    {"key": "few/samsung_s7/chosen/0", "spearman": 0.5, "coverage": 0.9},
    {"key": "ceiling/samsung_s7", "spearman": 0.764, "distinct": 108},
    {"key": "held/products/30/gaussian/0", "coverage": 0.89, "splits": 20},
    {"key": "held/products/30/gaussian/1", "coverage": 0.91, "splits": 20},
    {"key": "held/products/100/ridge/0", "coverage": 0.9, "splits": 20},
]


@pytest.fixture
def text(tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return latency_page.write_page(results, tmp_path / "docs" / "latency.md").read_text()


def row(text, *starts):
    """The cells of the row that starts with these."""
    head = "| " + " | ".join(starts) + " |"
    return next(line[len(head):].strip(" |").split(" | ") for line in text.splitlines() if line.startswith(head))


def test_a_cell_says_mean_range_and_count(text):
    assert row(text, "Gaussian process") == ["-", "-", "6.00 [5.00, 7.00] n=2", "-", "-"]
    assert row(text, "held by intervals") == ["-", "-", "90.00 [88.00, 92.00] n=2", "-", "-"]
    assert row(text, "ridge regression")[0] == "20.00 [20.00, 20.00] n=1"


def test_methods_without_any_result_are_left_out_and_devices_stay(text):
    assert "gradient boosting" not in text and "### Raspberry Pi 4" in text


def test_correlations_are_no_percentages_and_what_is_missing_is_a_dash(text):
    assert row(text, "gold_6240", "200") == ["0.940 [0.940, 0.940] n=1", "90.00 [90.00, 90.00] n=1", "-"]
    assert row(text, "samsung_s7")[1:] == ["-", "90.00 [90.00, 90.00] n=1", "0.764 (108 distinct values)"]


def test_phones_are_left_out_of_the_mean_over_devices(text):
    assert "Mean over the 1 devices that are not phones: 0.920 chosen, 0.880 at random." in text


def test_sessions_are_shown_with_their_shift(text):
    assert row(text, "0 to 121") == ["+35.4 %", "9.3 %"] and "up to 36 % apart" in text


def test_splits_are_counted_and_the_mean_has_its_error(text):
    assert row(text, "products", "Gaussian process") == ["90.00 [1.00] n=40", "-"]
    assert row(text, "products", "ridge regression") == ["-", "90.00 n=20"]


def test_the_machine_is_named_and_results_are_asked_for(text, tmp_path):
    assert "a quiet processor, one thread, torch 9.9" in text
    with pytest.raises(ValueError, match="run the study without --report first"):
        latency_page.write_page(tmp_path / "none.jsonl", tmp_path / "page.md")


def test_what_intervals_held_is_a_mean_over_splits():
    table, latency = measured_tables.products(120)
    found = latency_tables._held(table, latency, 30, "ridge", 0)
    one = [latency_tables._curve(table, latency, 30, seed, "ridge", "unknown")["coverage"] for seed in range(20)]
    assert found == {"coverage": pytest.approx(sum(one) / 20), "splits": 20}
