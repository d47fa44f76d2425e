"""Modules of one's own in an exported folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import bodyplan as bp
import pytest
from bodyplan.errors import BodyplanError
from torch import nn

OWN = '''
import math

import numpy
import torch.nn.functional as F
from torch import nn

TAPS = 3


def smooth(x, taps=TAPS):
    return F.pad(x, (0, 0, taps - 1, 0)).unfold(1, taps, 1).mean(-1)


class Smooth(nn.Module):
    """Mean of the last tokens, mixed."""

    def __init__(self, width, scale=1.0, inner=None):
        super().__init__()
        self.scale = scale
        self.inner = nn.Linear(width, width) if inner is None else inner

    def forward(self, x):
        return self.inner(smooth(x)) * self.scale * math.sqrt(2.0)


class Numpyish(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return self.inner(x) * float(numpy.sqrt(2.0))


class Secretive(nn.Module):
    """Depends on more than its constructor was told."""

    scale = 1.0

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return self.inner(x) * self.scale
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own_mixers.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_mixers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_mixers"] = module
    spec.loader.exec_module(module)
    return module


def custom(factory):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=64), width=16, head=bp.LanguageHead(),
                     body=bp.Block(mixer=bp.Custom(factory), channel=bp.SwiGLU(ratio=2)))
    return space.sample(0).build()


def test_a_module_of_ones_own_is_written_into_the_file(own, tmp_path):
    folder = bp.export(custom(lambda width: own.Smooth(width, scale=0.5)), tmp_path / "a")
    text = (folder / "model.py").read_text()
    assert "class Smooth" in text and "TAPS = 3" in text and "Smooth(16, scale=0.5)" in text and "numpy" not in text
    done = subprocess.run([sys.executable, "-I", str(folder / "test_export.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_modules_and_modules_given_to_a_constructor_are_written_out(own, tmp_path):
    folder = bp.export(custom(lambda width: own.Smooth(width, inner=nn.Sequential(nn.Linear(width, 8), nn.GELU(),
                                                                                  nn.Linear(8, width, bias=False)))),
                       tmp_path / "a")
    text = (folder / "model.py").read_text()
    assert "nn.GELU()" in text and "bias=False" in text


def test_a_module_that_uses_more_than_torch_is_refused_by_name(own, tmp_path):
    with pytest.raises(ValueError, match=r"Numpyish in .*own_mixers\.py .*numpy"):
        bp.export(custom(own.Numpyish), tmp_path / "a")


def test_a_class_inside_a_function_is_refused(tmp_path):
    class Local(nn.Linear):
        def __init__(self, width):
            super().__init__(width, width)

    with pytest.raises(ValueError, match="top level"):
        bp.export(custom(Local), tmp_path / "a")


def test_a_module_that_computes_something_else_than_its_source_says_never_appears(own, tmp_path):
    model = custom(own.Secretive)
    model.layers[0].mixer.op.scale = 3.0
    with pytest.raises(BodyplanError, match="bit for bit"):
        bp.export(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
