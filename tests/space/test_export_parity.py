"""What the exported folder computes, for every operator of the demo space, with and without recursion."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bodyplan as bp
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

MIXERS = {"attention": bp.Attention(heads=2, kv_heads=1), "window": bp.Attention(heads=2, window=16),
          "delta": bp.GatedDeltaNet(heads=2), "mamba": bp.Mamba2(state=16), "hyena": bp.Hyena(),
          "conv": bp.ShortConv(kernel=4)}
CHANNELS = {"swiglu": bp.SwiGLU(ratio=2), "gelu": bp.MLP(activation="gelu"),
            "squared_relu": bp.MLP(activation="squared_relu"), "none": bp.Identity()}
# Every mixer and every channel, and a hybrid whose layers lack one sublayer or the other.
BODIES = {**{name: [(op, channel)] for (name, op), channel in zip(MIXERS.items(), [*CHANNELS, "swiglu", "gelu"],
                                                                strict=True)},
          "hybrid": [(MIXERS["mamba"], "gelu"), (bp.Identity(), "squared_relu"), (MIXERS["window"], "none"),
                     (MIXERS["attention"], "swiglu"), (MIXERS["delta"], "gelu")]}
LOOPS = {"once": bp.Once(), "loop": bp.Loop(times=2), "lora": bp.Loop(times=3, lora_rank=4)}
# The default suite exports a sample; `make test-long` the rest.
SAMPLE = ("attention-once", "window-once", "hybrid-once", "hybrid-loop", "hybrid-lora", "delta-lora", "hyena-loop")
CASES = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long)
         for name in (f"{body}-{loop}" for body in BODIES for loop in LOOPS)]

# Runs in one process that cannot import this package; prints a JSON report per folder.
JUDGE = '''
import importlib.abc, importlib.util, json, sys, traceback
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bodyplan":
            raise ImportError("bodyplan cannot be imported here")

sys.meta_path.insert(0, Blocker())
try:
    import bodyplan
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")

import torch
from safetensors.torch import load_file

torch.set_num_threads(1)

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

def judge(folder):
    model = load(folder / "model.py", "model_" + folder.name.replace("-", "_")).Model.from_pretrained(folder)
    told = load_file(folder.parent / (folder.name + ".told"))
    with torch.no_grad():
        exact = torch.equal(model(told["ids"]), told["logits"])
    text = model.generate(told["prompt"], told["text"].shape[1] - told["prompt"].shape[1], 0.8, 40, seed=3)
    check = load(folder / "test_export.py", "check_" + folder.name.replace("-", "_"))
    tests = [name for name in vars(check) if name.startswith("test_")]
    for name in tests:
        getattr(check, name)()
    return {"exact": exact, "text": torch.equal(text, told["text"]), "length": text.shape[1], "tests": len(tests),
            "keys": list(model.state_dict())}

report = {}
for path in sys.argv[1:]:
    try:
        report[Path(path).name] = judge(Path(path))
    except Exception:
        report[Path(path).name] = {"error": traceback.format_exc()}
print("REPORT" + json.dumps(report))
'''


def space_of(body: str) -> bp.Space:
    """Two widths, so that the extracted weights are slices, and every recursion."""
    blocks = tuple(bp.Block(mixer=mixer, channel=CHANNELS[channel]) for mixer, channel in BODIES[body])
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64), body=blocks,
                    recursion=bp.choice(*LOOPS.values()), head=bp.LanguageHead(tied=True))


def perturb(net: nn.Module) -> None:
    """Move every weight off its start, LoRA's zeros above all."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def cases(request):
    """Those that this session runs."""
    here = (item for item in request.session.items if item.path == request.path)
    return sorted({*SAMPLE, *(item.callspec.params["case"] for item in here if hasattr(item, "callspec"))})


@pytest.fixture(scope="module")
def exported(tmp_path_factory, cases):
    """Every case exported from a perturbed supernet, beside what the extracted module says."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("exports")
    generator = torch.Generator().manual_seed(0)
    for body in BODIES:
        if not any(name.startswith(f"{body}-") for name in cases):
            continue
        space = space_of(body)
        net = bp.Supernet(space, seed=0)
        perturb(net)
        found = {type_of(a): a for a in map(space.architecture, space.enumerate()) if a.plan.width == 32}
        for loop, recursion in LOOPS.items():
            name = f"{body}-{loop}"
            if name not in cases:
                continue
            model = net.extract(found[repr(recursion)]).eval()
            bp.export(model, root / name)
            ids = torch.randint(256, (2, 77), generator=generator)
            prompt = ids[:1, :9]
            with torch.no_grad():
                logits = model(ids)
            text = model.generate(prompt, 200, 0.8, 40, torch.Generator().manual_seed(3))
            told = {"ids": ids, "logits": logits, "prompt": prompt.clone(), "text": text}
            save_file(told, root / f"{name}.told")
            (root / f"{name}.keys").write_text(json.dumps(list(model.state_dict())))
    torch.set_num_threads(threads)
    return root


def type_of(architecture: bp.Architecture) -> str:
    return repr(architecture.plan.recursion)


@pytest.fixture(scope="module")
def verdicts(exported, cases):
    folders = [str(exported / name) for name in cases]
    done = subprocess.run([sys.executable, "-c", JUDGE, *folders], capture_output=True, text=True, cwd=exported,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("REPORT")[1])


@pytest.mark.parametrize("case", CASES)
def test_without_the_package_it_computes_what_the_extracted_subnet_does_bit_for_bit(case, verdicts, exported):
    verdict = verdicts[case]
    assert "error" not in verdict, verdict.get("error")
    assert verdict["exact"], "logits differ"
    assert verdict["text"] and verdict["length"] == 209, "200 sampled bytes differ"
    assert verdict["keys"] == json.loads((exported / f"{case}.keys").read_text())
    assert verdict["tests"] == 4


@pytest.mark.parametrize("case", CASES)
def test_the_model_file_is_plain_torch_and_tidy(case, exported):
    text = (exported / case / "model.py").read_text()
    assert "bodyplan" not in text.lower()
    tree = ast.parse(text)
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} <= {"__future__", "math", "pathlib", "typing", "torch", "safetensors"}
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    assert tree.body[-1] is classes[-1] and classes[-1].name == "Model"
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)} - {"Model"}
    assert defined <= named, f"unused: {defined - named}"


def test_ruff_finds_nothing_in_the_exported_python(exported, cases):
    ruff = shutil.which("ruff") or Path(sys.executable).with_name("ruff")
    if not Path(ruff).exists():
        pytest.skip("ruff is not installed")
    files = [str(exported / case / name) for case in cases for name in ("model.py", "test_export.py")]
    done = subprocess.run([ruff, "check", "--isolated", "--select", "E,F", "--line-length", "120", *files],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_loops_and_corrections_are_there_only_when_the_architecture_has_them(exported):
    once, loop, lora = ((exported / f"hybrid-{name}" / "model.py").read_text() for name in LOOPS)
    assert "times" not in once.split("class Layer")[1] and "LowRank" not in once and "functional_call" not in once
    assert "self.times = 2" in loop and "LowRank" not in loop
    assert "self.times = 3" in lora and "LowRank(times=3, rank=4, rows=32, columns=32)" in lora


def test_options_that_one_architecture_does_not_use_are_gone(exported):
    full = (exported / "attention-once" / "model.py").read_text()
    window = (exported / "window-once" / "model.py").read_text()
    assert "window" not in full.split("class CausalAttention")[1].split('"""', 2)[2].split("class ")[0]
    assert "window is None" not in window and "window=16" in window
    assert "activation" not in window.split("class FeedForward")[1].split('"""', 2)[2]
    assert "F.silu" not in (exported / "hybrid-once" / "model.py").read_text().split("class FeedForward")[1].split(
        "class ")[0]
