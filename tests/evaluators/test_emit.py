"""The emitted script: measures without this package, and what it writes is a profile here."""

import json
import subprocess
import sys

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.latency.emit import emit, script
from bodyplan.evaluators.latency.measuring import conditions_of
from bodyplan.evaluators.latency.operators import EXAMPLES, cases_of
from bodyplan.evaluators.latency.runner import Conditions, fill
from bodyplan.space.graph import operator_label

ALONE = """
import runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "bodyplan":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("bodyplan")]
"""


def run_alone(folder, *arguments, code=0):
    """A script in a process of its own that cannot import bodyplan, without site-packages of this checkout's."""
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """A folder with the script of the examples and the profile it wrote, and what it said."""
    folder = tmp_path_factory.mktemp("away")
    under = conditions_of((4,), phases=("prefill", "decode", "train"), budget_ms=1)
    emit(folder / "measure.py", [(config, 32) for config in EXAMPLES], under, "cpu")
    return folder, run_alone(folder, "measure.py", "--out", "theirs.json")


def test_a_process_without_the_package_writes_a_profile_that_loads_here(away):
    folder, said = away
    found = bp.Profile.load(folder / "theirs.json")
    assert found.labels() == [operator_label(config) for config in EXAMPLES] and not found.failures
    assert len(found.operators) == 8 * 3 and "wrote 24 measurements" in said
    assert found.sessions[0]["fingerprint"]["torch"] == torch.__version__ and found.sessions[0]["budget_ms"] == 1
    found.check_here("cpu")
    assert found.latency(EXAMPLES[0], 32, length=4, phase="train").value > 0
    assert [p.name for p in sorted(folder.iterdir())] == ["measure.py", "theirs.json"]


def test_the_script_overwrites_nothing_and_says_which_devices_there_are(away):
    folder, _ = away
    before = (folder / "theirs.json").read_bytes()
    assert "there is a file at theirs.json" in run_alone(folder, "measure.py", "--out", "theirs.json", code=2)
    assert (folder / "theirs.json").read_bytes() == before
    assert "it has: cpu" in run_alone(folder, "measure.py", "--device", "cuda:77", "--out", "no.json", code=2)
    assert not (folder / "no.json").exists()


def test_the_script_names_only_torch_and_the_standard_library(away):
    import ast

    tree = ast.parse((away[0] / "measure.py").read_text())
    roots = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots - {"pynvml"} <= {*sys.stdlib_module_names, "torch"}


def modules_of(text):
    """The script as a module."""
    module = sys.modules["somewhere_else"] = type(sys)("somewhere_else")
    try:
        exec(compile(text, "somewhere_else.py", "exec"), vars(module))
    finally:
        del sys.modules["somewhere_else"]
    return module


@pytest.mark.parametrize("config", [bp.Attention(heads=2, window=4), bp.GatedDeltaNet(heads=2),
                                    bp.Mamba2(state=8, head_dim=8), bp.MoE(experts=4),
                                    bp.WindowAttention(heads=2, window=2)], ids=operator_label)
def test_the_modules_of_the_script_are_those_of_the_package(config):
    width, ours = 16, config.build(16)
    fill(ours)
    made = modules_of(script([(config, width)], [Conditions()], "cpu"))
    case = made.CASES[0]
    theirs = case.build()
    assert type(theirs).__module__ == "somewhere_else" and case.grid == config.spatial and case.width == width
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, *((4, 4) if config.spatial else (16,)), width)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(x), ours.eval()(x))


def test_operators_of_a_space_are_each_there_once_with_the_widths_that_reach_them(space):
    found = cases_of(space)
    assert len(set(found)) == len(found) and {width for _, width in found} == {8, 16}
    assert (bp.Attention(heads=2, window=4), 16) in found and (bp.SwiGLU(ratio=1), 8) in found
    assert all(config.kind in ("mixer", "channel", "norm") for config, _ in found)


@pytest.mark.parametrize(("arguments", "word"), [
    (([], [Conditions()], "cpu"), "measures something: got 0 operators"),
    (([(bp.MLP(), 8)], [], "cpu"), "and 0 conditions"),
    (([(bp.CrossAttention(), 8)], [Conditions()], "cpu"), "which reads a second sequence"),
    (([(bp.AdaNorm(), 8)], [Conditions()], "cpu"), "which reads a condition"),
    (([(bp.MLP(), 8)], [Conditions(mode="graph", phase="train")], "cuda:0"), "a graph replays prefill or decode")])
def test_what_a_script_cannot_measure_is_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        script(*arguments)


def test_a_device_that_is_not_here_may_be_named_and_a_script_overwrites_nothing(tmp_path):
    path = emit(tmp_path / "gpu.py", [(bp.MLP(), 8)], [Conditions(mode="graph")], "cuda:0")
    assert "run_script(CASES, CONDITIONS, 'cuda:0')" in path.read_text()
    with pytest.raises(ValueError, match="a script overwrites nothing"):
        emit(path, [(bp.MLP(), 8)], [Conditions()], "cpu")


STUDY = """
import bodyplan as bp
space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(8, 16),
                 body=bp.repeat(bp.Block(mixer=bp.ShortConv(kernel=bp.choice(2, 4))), times=2), head=bp.LanguageHead())
sweep = bp.Sweep(space, objectives=["parameters"], trials=1, tracking=False)
"""


def test_the_command_saves_and_emits(tmp_path):
    from bodyplan.cli import app
    from typer.testing import CliRunner

    def command(*arguments):
        return CliRunner().invoke(app, ["profile", "cpu", *map(str, arguments)])

    (tmp_path / "study.py").write_text(STUDY)
    given = "--of", tmp_path / "study.py", "--width", 16, "--length", 4, "--length", 6, "--phase", "prefill"
    done = command(*given, "--save", tmp_path / "p.json")
    assert done.exit_code == 0 and "ShortConv(kernel=2)" in done.stdout and "p.json" in done.stdout
    found = json.loads((tmp_path / "p.json").read_text())["operators"]
    assert {(row["operator"], row["width"], row["length"]) for row in found if row["operator"].startswith("Short")} == {
        ("ShortConv(kernel=2)", 16, 4), ("ShortConv(kernel=2)", 16, 6), ("ShortConv()", 16, 4), ("ShortConv()", 16, 6)}
    assert "a profile overwrites nothing" in str(command(*given, "--save", tmp_path / "p.json").exception)
    assert "have widths 8, 16: got 24" in str(command("--of", tmp_path / "study.py", "--width", 24).exception)
    done = command(*given, "--emit", tmp_path / "s.py")
    assert done.exit_code == 0 and "python s.py --device cpu" in done.stdout and (tmp_path / "s.py").exists()
    assert "both --emit and --save" in str(command("--emit", tmp_path / "t.py", "--save", tmp_path / "q.json").exception)
