"""What `bodyplan ops` prints: every operator, and the page of one."""

import json

import bodyplan as bp
import pytest
from bodyplan import cli
from bodyplan.ops import meanings, operator_page, picture, rows
from bodyplan.space.operator import operators
from bodyplan.space.reach import complexity_of, growth, growth_in, patterns_of, reference_configs, state_growth_of
from typer.testing import CliRunner


def test_every_operator_has_a_row_with_what_one_chooses_by():
    found = {row.name: row for row in rows()}
    assert set(operators.names()) <= set(found)
    assert found["Mamba2"].patterns == ("causal self",) and found["Mamba2"].state == "constant"
    assert (found["Attention"].complexity, found["Attention"].state) == ("T^2", "T")
    assert found["CrossAttention"].patterns == ("noncausal cross",)
    assert found["Stage"].kind == "macro" and found["RMSNorm"].patterns == ()
    for row in found.values():
        assert row.kind != "mixer" or row.patterns, f"{row.name} says which attention patterns it supports"


@pytest.mark.parametrize("name", [row.name for row in rows() if row.kind != "macro" and row.name in operators.names()
                                  and row.name != "Custom"])
def test_every_operator_has_a_size_to_show_it_at(name):
    assert next(reference_configs(operators.get(name)), None) is not None, (
        f"give the fields of {name} defaults that check() accepts at a width of 64, 96, 128 or 256")


def test_the_table_prints_and_reads_as_json():
    table = CliRunner().invoke(cli.app, ["ops"]).output
    assert "Hyena" in table and "T log T" in table
    assert {"name", "kind", "patterns", "complexity", "state", "paper", "year", "systems"} == set(
        json.loads(CliRunner().invoke(cli.app, ["ops", "--json"]).output)[0])


def test_the_page_of_an_operator_names_fields_costs_and_reach():
    page = CliRunner().invoke(cli.app, ["ops", "Mamba2"]).output
    assert "state = 64" in page and "size N of each head's state" in page
    assert "multiply-adds, growing like T" in page and "numbers of state (constant)" in page
    config, width = next(reference_configs(bp.Mamba2))
    assert f"{sum(p.numel for p in config.axes(width).values()):,} parameters" in page
    assert f"{config.macs(width, 256):,.0f} multiply-adds" in page


@pytest.mark.parametrize("name", [row.name for row in rows()])
def test_every_page_prints(name):
    assert operator_page(name).startswith(name)


def test_an_unknown_operator_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'Attention'"):
        operator_page("Atention")


def test_meanings_come_from_the_docstring():
    assert meanings(bp.Mamba2)["conv"] == "taps of the causal convolution; None for none."
    assert meanings(bp.Hyena)["bands"] == meanings(bp.Hyena)["filter_dim"]
    assert meanings(bp.Attention)["window"].startswith("`window=w` sees the token itself")


def test_the_picture_shows_who_reaches_whom():
    full = picture(bp.Attention(heads=2), 16, 8).splitlines()
    assert [row.strip().index("·") for row in full[:-1]] == [1, 2, 3, 4, 5, 6, 7]
    windowed = picture(bp.Attention(heads=2, window=2), 16, 8).splitlines()
    assert [len(row.replace("·", "").strip()) for row in windowed] == [1, 2, 2, 2, 2, 2, 2, 2]
    assert "·" not in picture(bp.Attention(heads=2, bidirectional=True), 16, 8)


@pytest.mark.parametrize(("cost", "wanted"), [
    (lambda t: 5e4 * t, "T"), (lambda t: 5e4 * t + 300 * t * 17, "T"), (lambda t: 5e4 * t + t * t, "T^2"),
    (lambda t: 5e4 * t + 64 * t * t.bit_length(), "T log T"), (lambda t: 5e4 * t + 64 * t ** 1.5, "T sqrt T"),
    (lambda t: 5e4 * t + 8 * t ** (4 / 3), "T^1.3"), (lambda t: t ** 3, "T^3"), (lambda t: 0.0, "T")])
def test_growth_is_read_off_a_formula(cost, wanted):
    assert growth(cost) == wanted


def test_declared_growth_counts_in_t_alone():
    assert growth_in("T (w + g)") == growth_in("T k") == "T"
    assert growth_in("T^2 / r") == "T^2" and growth_in("T log T d") == "T log T"
    with pytest.raises(ValueError, match="a complexity begins with T.*got 'linear'"):
        growth_in("linear")


def test_what_is_not_declared_follows_from_the_formulas():
    assert complexity_of(bp.Attention(heads=2, window=8), 16) == "T w"
    assert state_growth_of(bp.Attention(heads=2, window=8), 16) == "window"
    assert state_growth_of(bp.Attention(heads=2, bidirectional=True), 16) == "no decode"
    assert state_growth_of(bp.SwiGLU(), 16) == "none"
    assert patterns_of(bp.Attention) == ("causal self", "noncausal self")
