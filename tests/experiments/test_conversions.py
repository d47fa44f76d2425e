"""The table of conversions: exact rows are exact, and the page says what was measured."""

import pytest
import torch
from bodyplan.experiments import conversions
from bodyplan.experiments.conversions import QUICK, Settings, main, measured

EXACT = ("the network itself", "recentred(model)", "compressed(model)", "routed_heads(model, 1, 3)",
         "appended_layers(model, 2)", "injected_layers(model, every=2)", "inherited(model, wider)",
         "the network of images itself", "folded(model)")


@pytest.fixture(scope="module")
def rows():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {row.call: row for row in measured(Settings(**QUICK))}
    torch.set_num_threads(before)
    return found


def test_rows_that_keep_the_function_keep_the_score(rows):
    for call in EXACT:
        whole = rows["the network of images itself" if "images" in call or "folded" in call else "the network itself"]
        assert rows[call].difference < 1e-5 and rows[call].before == pytest.approx(whole.before, abs=1e-4), call
    moving = [row for call, row in rows.items() if call not in EXACT]
    assert len(moving) >= 11 and all(row.difference > 1e-4 for row in moving)


def test_what_is_smaller_is_smaller(rows):
    whole = rows["the network itself"]
    for call in ("grouped_heads(model, 2)", "grouped_heads(model, 1)", "dropped_layers(model, *span)",
                 "linear_span(model, *span, inputs)", "recursive(model, two layers)", "inherited(model, narrower)"):
        assert rows[call].parameters < whole.parameters, call
    assert rows["grouped_heads(model, 1)"].state_bytes * 4 == whole.state_bytes
    assert rows["folded(model)"].parameters < rows["the network of images itself"].parameters


def test_the_command_writes_the_page(tmp_path, rows, capsys, monkeypatch):
    monkeypatch.setattr(conversions, "measured", lambda settings: iter(rows.values()))
    main(["--quick", "--page", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    assert all(f"`{call}`" in page for call in rows) and "--quick --page" in page
    assert capsys.readouterr().out.count("\n") == len(rows) + 1
