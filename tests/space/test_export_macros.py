"""Exported folders of bodies made of macros: every macro, every residual topology, sequences and grids."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bodyplan.space.export.module_file import streams
from example_macros import ALL, BY_INPUT
from exported_folders import assert_equal_to_the_module, assert_tidy, export_all, folder_name, judged, model_text

# One process writes all folders, another judges them, which is most of the time of every run.
pytestmark = [pytest.mark.contract, pytest.mark.timeout(900)]

CHOSEN = "topology as a choice"
TOPOLOGIES = ("Residual", "DenseAverage", "ValueResidual", "CrossLayerKV", "HyperConnections", "Ladder")
LOOPED = {"a recursion as a choice": ("Loop", "IterationEncoding", "HyperLoop", "VisitOrder", "OwnNorms"),
          "fewer tokens in every pass": ("RoutedLoop", "InnerThinking")}
EXITS = ("None", "0", "1", "token")
CASES = [*(name for name in [*ALL, *BY_INPUT] if name not in (CHOSEN, "exits", *LOOPED)),
         *(f"stack {name}" for name in TOPOLOGIES), *(f"looped {name}" for names in LOOPED.values() for name in names),
         *(f"exits {leave}" for leave in EXITS)]


@pytest.fixture(scope="module")
def architectures():
    """One network of every space, and one of every topology, of a few the one with most in it."""
    found = {}
    for name, space in (ALL | BY_INPUT).items():
        for seed in range(60 if name in (CHOSEN, "exits", *LOOPED) else 6):
            candidate = space.sample(random.Random(seed))
            case = case_of(name, candidate.plan.layers)
            found[case] = max(found.get(case, candidate), candidate, key=variety)
    assert set(found) == set(CASES)
    return found


def case_of(name, layers):
    """The case that a network of a space stands for: a space with a choice stands for several."""
    if name == CHOSEN:
        return f"stack {type(layers[0].residual).__name__}"
    if name in LOOPED:
        return f"looped {type(layers[0].recursion).__name__}"
    return f"exits {layers[1].leave}" if name == "exits" else name


def variety(architecture):
    """How much is handed on, and how many operators differ."""
    operators = [op for _, op in architecture.modules]
    return sum(getattr(op, "reads_shared", False) for op in operators), len({repr(op) for op in operators})


@pytest.fixture(scope="module")
def exported(tmp_path_factory, architectures):
    return export_all(tmp_path_factory.mktemp("macros"), architectures)


@pytest.fixture(scope="module")
def verdicts(exported):
    return judged(exported, CASES)


@pytest.mark.parametrize("case", CASES)
def test_without_the_package_it_computes_what_the_trained_module_does_bit_for_bit(case, verdicts, exported):
    assert_equal_to_the_module(verdicts[case], exported, case)


def test_whatever_decodes_here_decodes_there(verdicts, architectures):
    for case, architecture in architectures.items():
        assert verdicts[case]["steps"] == streams(architecture), case


@pytest.mark.parametrize("case", CASES)
def test_the_model_file_is_plain_torch_and_tidy(case, exported):
    assert_tidy(model_text(exported, case))


def test_ruff_finds_nothing_in_the_exported_python(exported):
    ruff = shutil.which("ruff") or Path(sys.executable).with_name("ruff")
    if not Path(ruff).exists():
        pytest.skip("ruff is not installed")
    files = [str(exported / folder_name(case) / name) for case in CASES for name in ("model.py", "test_export.py")]
    done = subprocess.run([ruff, "check", "--isolated", "--select", "E,F", "--line-length", "126", *files],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_handed_on_and_what_is_flattened_shows_only_where_it_is(exported):
    for case in ("sum", "cell", "looped middle", "dense", "ladder", "stack Residual", "stages of one resolution"):
        text = model_text(exported, case)
        assert "shared" not in text and "shares" not in text and "flatten(1, 2)" not in text, case
    keys, values, grid = (model_text(exported, case) for case in ("cross-layer", "value residual", "grid"))
    assert '"kv"' in keys and "first_value" not in keys and "on_grid" not in keys
    assert "first_value" in values and '"kv"' not in values
    assert "on_grid" in grid and "shared" not in grid and "as_grid" not in grid
    for case in CASES:
        assert "ndim ==" not in model_text(exported, case) and "reuse_kv needs" not in model_text(exported, case), case


def test_a_class_knows_only_the_ways_that_are_taken(exported):
    summed = model_text(exported, "sum").split("class ParallelBranches")[1].split('"""', 2)[2].split("\nclass ")[0]
    assert "gate" not in summed and "project" not in summed and "spatial" not in summed
    assert "spatial" not in model_text(exported, "cell").split("class CellGraph")[1].split('"""', 2)[2]
    hyper, static = model_text(exported, "hyper"), model_text(exported, "static hyper")
    assert "mix_by_token" not in static and "mix_by_token" in hyper
    assert "def forward" not in hyper.split("class Layer(")[1].split("\nclass ")[0], "its sublayers are units of their own"
    assert "F.conv2d" not in model_text(exported, "u-shape").split("class Resample")[1].split("\nclass ")[0]


def test_card_and_configuration_show_what_is_inside(exported):
    folder = exported / "looped_middle"
    looped = json.loads((folder / "config.json").read_text())["layers"][1]
    assert looped["type"] == "Looped" and looped["recursion"]["type"] in ("Once", "Loop")
    assert "norm" in looped["layers"][0]
    card = (folder / "README.md").read_text()
    assert "| 1 | `Looped(" in card and "| 1.0" in card
    assert "`Stack(residual=CrossLayerKV())`" in (exported / "stack_CrossLayerKV" / "README.md").read_text()
    both = (exported / "encoder-decoder" / "README.md").read_text()
    assert "| 0.encoder.0" in both and "| 0.decoder.1 | `CrossAttention(" in both and "model(ids, source)" in both
    assert "init_state(batch=1, source=source)" in both and "top_k=40, seed=0, source=source)" in both
    assert " to 40, " in model_text(exported, "pyramid") or " to 40." in model_text(exported, "pyramid")


def test_the_commands_of_an_encoder_decoders_card_run(exported):
    folder = exported / "encoder-decoder"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code += "assert out.shape == (1, 32) and logits.shape == (1, 12, 32)\nmodel.init_state(batch=1)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    last = done.stderr.strip().rpartition("\n")[2]
    assert last.startswith("ValueError: decoding needs the source that the encoder reads"), done.stderr
