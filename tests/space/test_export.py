"""The exported folder: alone, complete, reproducible, and never in the way of anything else."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import bodyplan as bp
import pytest
import torch
from bodyplan.space.export.folder import FILES
from torch import nn


def tiny(seed: int = 0, **more: object) -> nn.Module:
    given = {"embed": bp.TokenEmbedding(vocab=64), "width": 16, "head": bp.LanguageHead(),
             "body": bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=2))}
    return bp.Space(**(given | more)).sample(0).build(seed=seed)


def test_two_exports_of_one_model_are_byte_identical(tmp_path):
    first, second = bp.export(tiny(), tmp_path / "a"), bp.export(tiny(), tmp_path / "deep" / "b")
    assert sorted(p.name for p in first.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_folder_test_fails_when_the_weights_are_others(tmp_path):
    folder, other = bp.export(tiny(), tmp_path / "a"), bp.export(tiny(seed=1), tmp_path / "b")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    done = subprocess.run([sys.executable, "-I", str(folder / "test_export.py")], capture_output=True, text=True)
    assert done.returncode != 0 and "AssertionError" in done.stderr


def test_tied_weights_are_stored_once_and_untied_ones_twice(tmp_path):
    from safetensors import safe_open

    for tied, count in ((True, 0), (False, 1)):
        folder = bp.export(tiny(head=bp.LanguageHead(tied=tied, vocab=64)), tmp_path / str(tied))
        with safe_open(folder / "model.safetensors", "pt") as stored:
            assert stored.metadata() == {"format": "pt"}
            assert sum(key.startswith("head.") for key in stored.keys()) == count  # noqa: SIM118 - no mapping


def test_json_files_say_what_it_is(tmp_path):
    model = tiny()
    folder = bp.export(model, tmp_path / "a")
    stored = json.loads((folder / "architecture.json").read_text())
    assert stored["schema_version"] == 1 and stored["torch"] == torch.__version__
    again = bp.Architecture.from_json(stored, model.architecture.space)
    assert again.hash == model.architecture.hash
    config = json.loads((folder / "config.json").read_text())
    assert config["width"] == 16 and config["layers"][0]["mixer"]["heads"] == 2
    assert not any(word in (folder / "config.json").read_text() for word in ("time\"", "date"))


def test_exporting_leaves_the_module_and_the_random_state_alone(tmp_path):
    model = tiny()
    model.train()
    before = torch.random.get_rng_state()
    bp.export(model, tmp_path / "a")
    assert model.training and model.architecture is not None
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_subnet_exports_what_it_would_extract(tmp_path):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=64), width=bp.choice(16, 32), head=bp.LanguageHead(),
                     body=bp.Block(mixer=bp.ShortConv(), channel=bp.MLP(ratio=2)))
    net, architecture = bp.Supernet(space), space.architecture(space.smallest())
    a = bp.export(net.subnet(architecture), tmp_path / "a")
    b = bp.export(net.extract(architecture), tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_an_image_classifier_exports_without_decoding(tmp_path):
    model = tiny(embed=bp.PatchEmbedding(patch=4, image=8), head=bp.ClassifierHead(classes=3))
    folder = bp.export(model, tmp_path / "a")
    text = (folder / "model.py").read_text()
    assert "pixels_BCHW" in text and "def generate" not in text and "def step" not in text.split("class Sublayer")[1]
    assert "generate" not in (folder / "README.md").read_text()
    done = subprocess.run([sys.executable, "-I", str(folder / "test_export.py")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("passed") == 2, done.stderr


# -- the model card ----------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Point:
    """What a point of a front has."""

    model: nn.Module
    number: int = 17
    seed: int = 5

    @property
    def architecture(self):
        return self.model.architecture

    def module(self):
        return self.model

    values = {"loss": 2.125, "latency": 0.75}
    intervals = {"latency": (0.7, 0.8)}
    labels = {"width": "16"}


def test_the_card_of_a_point_shows_its_measurements_with_unit_device_seed_and_interval(tmp_path):
    card = {"objectives": [bp.Objective("loss", unit="bits/byte", evaluate=len, needs="model"),
                           {"name": "latency", "unit": "ms", "goal": "min", "device": "cpu"}],
            "training": "State of the Union addresses, 500 steps", "title": "The knee", "limits": ["Bytes only."]}
    text = (bp.export(Point(tiny()), tmp_path / "a", card=card) / "README.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "2.125" in rows["loss"] and "bits/byte" in rows["loss"]
    assert "0.7 to 0.8" in rows["latency"] and "ms" in rows["latency"] and "| cpu |" in rows["latency"]
    assert "| 5 |" in rows["latency"] and "trial 17" in text and "# The knee" in text
    assert "State of the Union" in text and "Bytes only." in text and "may be random" not in text


def test_the_card_counts_what_the_model_has(tmp_path):
    model = tiny()
    text = (bp.export(model, tmp_path / "a") / "README.md").read_text()
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in text
    assert "may be random" in text


def test_the_commands_of_the_card_run(tmp_path):
    folder = bp.export(tiny(embed=bp.TokenEmbedding(vocab=256)), tmp_path / "a")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_an_unknown_card_field_is_named(tmp_path):
    with pytest.raises(ValueError, match="licence"):
        bp.export(tiny(), tmp_path / "a", card={"licence": "MIT"})
    assert not (tmp_path / "a").exists()


# -- what is in the way ------------------------------------------------------------------------------------------------

def test_an_earlier_export_is_replaced_and_nothing_else_is(tmp_path):
    folder = bp.export(tiny(), tmp_path / "a")
    before = (folder / "model.safetensors").read_bytes()
    bp.export(tiny(seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() != before
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        bp.export(tiny(), folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_or_a_file_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("a project of mine")
    with pytest.raises(ValueError, match=r"README\.md"):
        bp.export(tiny(), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        bp.export(tiny(), tmp_path / "README.md")
    (tmp_path / "empty").mkdir()
    bp.export(tiny(), tmp_path / "empty")


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    from bodyplan.space.export import folder

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(folder, "_check_written", fail)
    with pytest.raises(OSError, match="disk full"):
        bp.export(tiny(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_with_what_to_give_instead(tmp_path):
    architecture = tiny().architecture
    for wrong, text in ((architecture, "extract"), (nn.Linear(2, 2), "architecture"), (3, "point of a front"),
                        (architecture.build(device="meta"), "meta")):
        with pytest.raises(TypeError, match=text):
            bp.export(wrong, tmp_path / "a")
    assert not (tmp_path / "a").exists()
