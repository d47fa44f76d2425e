"""Exported folders of bodies made of macros: every macro, every residual topology, every operator, sequences and grids."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import bodyplan as bp
import pytest
import torch
from bodyplan.space.export.module_file import streams
from example_macros import ALL, inputs, shaken
from operator_examples import EXAMPLES
from safetensors.torch import save_file

TEXT = {"embed": bp.TokenEmbedding(vocab=32), "head": bp.LanguageHead(tied=False)}
IMAGE = {"embed": bp.PatchEmbedding(patch=4, image=28, grid=True), "head": bp.ClassifierHead(classes=5)}
TOPOLOGIES = ("Residual", "DenseAverage", "ValueResidual", "CrossLayerKV", "HyperConnections", "Ladder")
CONV = bp.Block(mixer=bp.ShortConv(kernel=3), channel=bp.SwiGLU(ratio=1))
CROSS = bp.Block(mixer=bp.CrossAttention(heads=2), channel=bp.SwiGLU(ratio=1))
LORA = bp.Loop(times=2, lora_rank=2)


def layer(heads=2, **options):
    return bp.Block(mixer=bp.Attention(heads=heads, **options), channel=bp.MLP(ratio=2))


# What the shared spaces leave out: macros in macros, and weights of one iteration around them.
NESTED = {
    "corrections around macros": (TEXT, (layer(), bp.Stack((layer(), CONV), bp.Ladder()), bp.Block(
        mixer=bp.Parallel(branches=(bp.Attention(heads=2), bp.MLP()), merge="gated"))), LORA),
    "a loop among shared keys": (TEXT, bp.Stack((layer(), bp.Looped((CONV,), LORA), layer(), layer()), bp.CrossLayerKV(3)),
                                 bp.Loop(times=2)),
    "units that are macros": (TEXT, bp.Stack((layer(), bp.Looped((CONV,), bp.Loop(2)), bp.Stack((layer(),), bp.Ladder())),
                                             bp.HyperConnections(3)), bp.Once()),
    "hand-overs in one another": (TEXT, bp.Stack((layer(), bp.Stack((layer(4),), bp.CrossLayerKV()), layer()),
                                                 bp.CrossLayerKV()), bp.Once()),
    "an encoder and a decoder of stacks": (TEXT, bp.EncoderDecoder(
        encoder=bp.Stack((layer(bidirectional=True), CONV), bp.DenseAverage()),
        decoder=bp.Stack((layer(qk_norm=True), CROSS, layer(qk_norm=True)), bp.ValueResidual())), bp.Once()),
    "a decoder with corrections": (TEXT, bp.EncoderDecoder(encoder=layer(), decoder=(layer(), CROSS)), LORA),
    "branches in branches": (TEXT, bp.Block(
        mixer=bp.Parallel(branches=(bp.Parallel(branches=(bp.ShortConv(), bp.Zero())), bp.Attention(heads=2)), merge="concat"),
        channel=bp.Parallel(branches=(bp.MLP(), bp.SwiGLU()))), bp.Once()),
    "shared keys on a grid": (IMAGE, bp.Stack((layer(), bp.Block(mixer=bp.DepthwiseConv2d(kernel=3)), layer()),
                                              bp.CrossLayerKV()), bp.Once()),
    "a cell on a grid": (IMAGE, bp.Cell(edges=(bp.Conv2d(kernel=3), bp.Identity(), bp.MLP(ratio=1))), bp.Once()),
    "branches on a grid": (IMAGE, bp.Block(
        mixer=bp.Parallel(branches=(bp.Pooling(), bp.Attention(heads=2)), merge="gated"),
        channel=bp.Parallel(branches=(bp.Pooling(), bp.Conv2d(kernel=3)))), bp.Once()),
}


def operators_at(width, *, streaming):
    """One block for every registered operator, so that what is added later is exported here too."""
    blocks = []
    for examples in EXAMPLES.values():
        for operator, _ in examples[:1]:
            norm = operator if operator.kind == "norm" else bp.RMSNorm()
            mixer = CONV.mixer if operator.kind == "norm" else operator
            is_part = operator.kind in ("mixer", "channel", "norm") and not getattr(operator, "reads_shared", False)
            if is_part and streaming == (operator.causal and operator.streaming):
                operator.check(width, "here")
                blocks.append(bp.Block(mixer=mixer, norm=norm))
    return tuple(blocks)


def architectures():
    """One network of every case, by its name."""
    found = {name: space.sample(random.Random(1)) for name, space in ALL.items() if name != "topology as a choice"}
    for seed in range(60):
        candidate = ALL["topology as a choice"].sample(random.Random(seed))
        found.setdefault(f"stack {type(candidate.plan.layers[0].residual).__name__}", candidate)
    cases = {**NESTED, "operators that stream": (TEXT, operators_at(32, streaming=True), bp.Once()),
             "operators that look ahead": (TEXT, operators_at(32, streaming=False), bp.Once()),
             "operators on a grid": (IMAGE, operators_at(32, streaming=False), bp.Once())}
    for name, (ends, body, recursion) in cases.items():
        width = 32 if name.startswith("operators") else 16
        found[name] = bp.Space(width=width, body=body, recursion=recursion, **ends).sample(0)
    return found


CASES = [*(name for name in ALL if name != "topology as a choice"), *(f"stack {name}" for name in TOPOLOGIES), *NESTED,
         "operators that stream", "operators that look ahead", "operators on a grid"]

# Runs in one process that cannot import this package; prints a JSON report per folder.
JUDGE = '''
import importlib.abc, importlib.util, json, sys, traceback
from pathlib import Path

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bodyplan":
            raise ImportError("bodyplan cannot be imported here")

sys.meta_path.insert(0, Blocker())
import torch
from safetensors.torch import load_file

torch.set_num_threads(1)

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

@torch.no_grad()
def judge(folder, number):
    model = load(folder / "model.py", f"model_{number}").Model.from_pretrained(folder)
    told = load_file(folder.parent / (folder.name + ".told"))
    given = [told[name] for name in ("given", "source") if name in told]
    exact = torch.equal(model(*given), told["logits"])
    if "alone" in told:
        exact = exact and torch.equal(model(given[0]), told["alone"])
    apart = 0.0
    if hasattr(model, "step"):
        first, state = model.step(given[0][:, :4], model.init_state(len(given[0])))
        steps = [first]
        for token in given[0][:, 4:].split(1, dim=1):
            logits, state = model.step(token, state)
            steps.append(logits)
        apart = ((torch.cat(steps, 1) - told["logits"]).abs().max() / told["logits"].abs().max()).item()
    check = load(folder / "test_export.py", f"check_{number}")
    tests = [name for name in vars(check) if name.startswith("test_")]
    for name in tests:
        getattr(check, name)()
    return {"exact": exact, "apart": apart, "steps": hasattr(model, "step"), "tests": len(tests),
            "keys": list(model.state_dict())}

report = {}
for number, path in enumerate(sys.argv[1:]):
    try:
        report[Path(path).name] = judge(Path(path), number)
    except Exception:
        report[Path(path).name] = {"error": traceback.format_exc()}
print("REPORT" + json.dumps(report))
'''


def folder_name(case):
    return case.replace(" ", "_")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Every case exported, beside what the module it was made from says."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("macros")
    found = architectures()
    for case, architecture in found.items():
        model = perturbed(shaken(architecture.build(seed=1))).eval()
        bp.export(model, root / folder_name(case))
        told = {"given": inputs(architecture)}
        with torch.no_grad():
            if any(op.kind == "macro" and type(op).__name__ == "EncoderDecoder" for _, op in architecture.modules):
                told |= {"source": told["given"].flip(1)[:, :9].contiguous(), "alone": model(told["given"])}
            told["logits"] = model(*(told[name] for name in ("given", "source") if name in told))
        save_file(told, root / f"{folder_name(case)}.told")
        (root / f"{folder_name(case)}.keys").write_text(json.dumps(list(model.state_dict())))
    torch.set_num_threads(threads)
    assert list(found) == CASES or set(found) == set(CASES)
    return root


def perturbed(model):
    """Statistics that are not 0 and 1, so that a test sees them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("running_mean", "running_var")):
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    return model


@pytest.fixture(scope="module")
def verdicts(exported):
    folders = [str(exported / folder_name(case)) for case in CASES]
    done = subprocess.run([sys.executable, "-c", JUDGE, *folders], capture_output=True, text=True, cwd=exported,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("REPORT")[1])


@pytest.mark.parametrize("case", CASES)
def test_without_the_package_it_computes_what_the_trained_module_does_bit_for_bit(case, verdicts, exported):
    verdict = verdicts[folder_name(case)]
    assert "error" not in verdict, verdict.get("error")
    assert verdict["exact"], "logits differ"
    assert verdict["keys"] == json.loads((exported / f"{folder_name(case)}.keys").read_text())
    assert verdict["apart"] <= 1e-5
    assert verdict["tests"] == (4 if verdict["steps"] else 2)


def test_whatever_decodes_here_decodes_there(verdicts):
    for case, architecture in architectures().items():
        assert verdicts[folder_name(case)]["steps"] == streams(architecture), case


@pytest.mark.parametrize("case", CASES)
def test_the_model_file_is_plain_torch_and_tidy(case, exported):
    text = (exported / folder_name(case) / "model.py").read_text()
    assert "bodyplan" not in text.lower() and "type: ignore" not in text
    tree = ast.parse(text)
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} <= {"__future__", "math", "pathlib", "typing", "collections", "torch",
                                                 "safetensors"}
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)} - {"Model"}
    assert defined <= named, f"unused: {defined - named}"


def test_ruff_finds_nothing_in_the_exported_python(exported):
    ruff = shutil.which("ruff") or Path(sys.executable).with_name("ruff")
    if not Path(ruff).exists():
        pytest.skip("ruff is not installed")
    files = [str(exported / folder_name(case) / "model.py") for case in CASES]
    done = subprocess.run([ruff, "check", "--isolated", "--select", "E,F", "--line-length", "126", *files],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_handed_on_and_what_is_flattened_shows_only_where_it_is(exported):
    def text(case):
        return (exported / folder_name(case) / "model.py").read_text()

    for case in ("sum", "cell", "looped middle", "dense", "ladder", "stack Residual", "branches in branches"):
        assert "shared" not in text(case) and "flatten" not in text(case), case
    assert "shared" in text("cross-layer") and "on_grid" not in text("cross-layer")
    assert "on_grid" in text("grid") and "shared" not in text("grid")
    assert "first_value" not in text("cross-layer").split("class SharingLayers")[0]
    assert '"kv"' not in text("value residual").split("class SharingLayers")[0]
    assert "getattr" not in text("value residual").split("def sharing")[0]
    for case in CASES:
        assert "ndim" not in text(case) and "reuse_kv needs" not in text(case), case


def test_a_class_knows_only_the_ways_that_are_taken(exported):
    def text(case):
        return (exported / folder_name(case) / "model.py").read_text()

    summed = text("sum").split("class ParallelBranches")[1].split('"""', 2)[2].split("\nclass ")[0]
    assert "gate" not in summed and "project" not in summed and "spatial" not in summed
    assert "mix_by_token" not in text("static hyper") and "mix_by_token" in text("hyper")
    assert "def forward" not in text("hyper").split("class Layer(")[1].split("\nclass ")[0]
    assert "Stepping" not in text("stack Residual") and "Stepping" in text("corrections around macros")
    assert "F.conv2d" not in text("u-shape").split("class Resample")[1].split("\nclass ")[0]


def test_card_and_configuration_show_what_is_inside(exported):
    folder = exported / "looped_middle"
    config = json.loads((folder / "config.json").read_text())
    looped = config["layers"][1]
    assert looped["type"] == "Looped" and looped["recursion"]["type"] in ("Once", "Loop")
    assert {"mixer", "norm"} <= looped["layers"][0].keys()
    card = (folder / "README.md").read_text()
    assert "| 1 | `Looped(" in card and "| 1.0 | `" in card
    shared = (exported / "stack_CrossLayerKV" / "README.md").read_text()
    assert "`Stack(residual=CrossLayerKV())`" in shared
    both = (exported / "encoder-decoder" / "README.md").read_text()
    assert "| 0.encoder.0" in both and "| 0.decoder.1 | `CrossAttention(" in both and "model(ids, source)" in both
    assert "of width 16 to 40" in (exported / "pyramid" / "model.py").read_text() or "of width 24 to 40" in (
        exported / "pyramid" / "model.py").read_text()


def test_the_commands_of_an_encoder_decoders_card_run(exported):
    folder = exported / "encoder-decoder"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
