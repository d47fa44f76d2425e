"""Exported folders that tests share: written beside what the trained module says, judged where the package is not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import bodyplan as bp
import torch
from example_macros import inputs, shaken
from safetensors.torch import save_file

MODULES = {"__future__", "math", "pathlib", "typing", "collections", "torch", "safetensors"}

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
    told = {name: tensor.clone() for name, tensor in load_file(folder.parent / (folder.name + ".told")).items()}
    given = [told[name] for name in ("given", "source") if name in told]
    exact = torch.equal(model(*given), told["logits"])
    if "alone" in told:
        exact = exact and torch.equal(model(given[0]), told["alone"])
    apart = 0.0
    if hasattr(model, "step"):
        source = {"source": told["source"]} if "source" in told else {}
        first, state = model.step(given[0][:, :4], model.init_state(len(given[0]), **source))
        steps = [first]
        for token in given[0][:, 4:].split(1, dim=1):
            logits, state = model.step(token, state)
            steps.append(logits)
        apart = ((torch.cat(steps, 1) - told["logits"]).abs().max() / told["logits"].abs().max()).item()
    check = load(folder / "test_export.py", f"check_{number}")
    tests = [name for name in vars(check) if name.startswith("test_")]
    for name in tests:
        getattr(check, name)()
    return {"exact": exact, "apart": apart, "steps": hasattr(model, "step"), "generates": hasattr(model, "generate"),
            "tests": len(tests), "keys": list(model.state_dict())}

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


def model_text(root, case):
    return (root / folder_name(case) / "model.py").read_text()


def export_all(root, architectures):
    """A folder per architecture, by its name, beside outputs for inputs that the folder does not hold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case, architecture in architectures.items():
        model = perturbed(shaken(architecture.build(seed=1))).eval()
        bp.export(model, root / folder_name(case))
        told = {"given": inputs(architecture)}
        with torch.no_grad():
            if any(type(op).__name__ == "EncoderDecoder" for _, op in architecture.modules):
                told |= {"source": told["given"].flip(1)[:, :9].contiguous(), "alone": model(told["given"])}
            told["logits"] = model(*(told[name] for name in ("given", "source") if name in told))
        save_file(told, root / f"{folder_name(case)}.told")
        (root / f"{folder_name(case)}.keys").write_text(json.dumps(list(model.state_dict())))
    torch.set_num_threads(threads)
    return root


def perturbed(model):
    """Statistics that are not 0 and 1, so that a test sees them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("running_mean", "running_var", "trained")):
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    return model


def judged(root, cases):
    """What the judge says of each folder."""
    folders = [str(root / folder_name(case)) for case in cases]
    done = subprocess.run([sys.executable, "-c", JUDGE, *folders], capture_output=True, text=True, cwd=root,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("REPORT")[1])
    return {case: found[folder_name(case)] for case in cases}


def assert_equal_to_the_module(verdict, root, case):
    """Bit for bit, under the same names, step by step too, and the folder's own test passes."""
    assert "error" not in verdict, verdict.get("error")
    assert verdict["exact"], "logits differ"
    assert verdict["keys"] == json.loads((root / f"{folder_name(case)}.keys").read_text())
    assert verdict["apart"] <= 1e-5
    assert verdict["tests"] == 2 + verdict["steps"] + verdict["generates"]


def assert_tidy(text):
    """Torch and the standard library alone, and nothing defined that is not used."""
    assert "bodyplan" not in text.lower() and "type: ignore" not in text
    tree = ast.parse(text)
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} <= MODULES
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)} - {"Model"}
    assert defined <= named, f"unused: {defined - named}"
