"""Every mixer at once: one supernet whose layers choose among all causal mixers, another among all two-dimensional ones.

    python -m bodyplan.experiments.all_mixers text --minutes 15 --out runs/all_mixers
    python -m bodyplan.experiments.all_mixers images --minutes 15 --out runs/all_mixers
    python -m bodyplan.experiments.all_mixers --report --out runs/all_mixers

The first two run a sweep each and export every member of its front, whose own test then compares its logits with those
of the trained module, bit for bit. The third writes the tables of `docs/all_mixers.md`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluators.devices import device_fingerprint
from ..space.operator import Operator, operators
from ..space.reach import patterns_of, reference_configs
from ..systems import load_operators
from .fidelity_page import BEGIN, END

if TYPE_CHECKING:
    from ..search.front import Front, Point
    from ..search.sweep import Sweep
    from ..space.space import Space

__all__ = ["FRAMES", "all_mixers", "main", "space_of", "sweep_of"]

PAGE = Path(__file__).parent.parent / "docs" / "all_mixers.md"
FRAMES = {"text": "every causal mixer, on bytes of English text",
          "images": "every two-dimensional mixer, on images of garments"}
LOSS_UNITS = {"text": "bits/byte", "images": "% wrong"}
WIDTH = 64
DEPTH = (2, 4)
SHARES = {"supernet": 0.6, "trials": 0.4}           # of the minutes
STEPS_A_MINUTE = {"text": 600, "images": 600}       # of supernet training, on one core
TRIALS_A_MINUTE = 20


def all_mixers(frame: str, width: int = WIDTH) -> list[Operator]:
    """The registered mixers that can stand in every layer of a frame at this width, each once, with its defaults where
    they fit: causal ones on "text", those with a grid of their own on "images"."""
    load_operators()
    found = (_fitting(operators.get(name), frame, width) for name in operators.names())
    return [config for config in found if config is not None]


def _fitting(kind: type[Operator], frame: str, width: int) -> Operator | None:
    if kind.kind != "mixer" or kind.cross or getattr(kind, "is_zero", False):
        return None
    if frame == "text" and "causal self" not in patterns_of(kind):
        return None
    for config, _ in reference_configs(kind):
        for changed in _variants(config, frame):
            if _fits(changed, frame, width):
                return changed
    return None


def _variants(config: Operator, frame: str) -> list[Operator]:
    """A config as it is, and with what may make it fit: causal, a norm that sees one token, other numbers of heads."""
    names = {f.name for f in fields(config)}                                          # type: ignore[arg-type]
    causal: list[dict[str, Any]] = [{}]
    if frame == "text":
        causal += [{name: value} for name, value in (("causal", True), ("bidirectional", False)) if name in names]
        causal += [{**one, "norm": "layer"} for one in causal[1:] if "norm" in names]
    heads: list[dict[str, Any]] = [{}, *({"heads": n} for n in (3, 2, 1) if "heads" in names)]
    return [replace(config, **one, **other) for other in heads for one in causal]       # type: ignore[type-var]


def _fits(config: Operator, frame: str, width: int) -> bool:
    if getattr(config, "reads_shared", False) is True or (frame == "images") != config.spatial:
        return False
    try:
        config.check(width, "mixer")
    except (ValueError, TypeError):
        return False
    return config.causal or frame == "images"


def space_of(frame: str, width: int = WIDTH) -> Space:
    """Two to four layers, each with any of the mixers."""
    import bodyplan as bp

    mixer = bp.choice(*all_mixers(frame, width))
    ends: dict[str, Any] = (
        {"embed": bp.TokenEmbedding(vocab=256), "head": bp.LanguageHead(tied=True)} if frame == "text" else
        {"embed": bp.PatchEmbedding(patch=4, channels=1), "head": bp.ClassifierHead(classes=10)})
    space: Space = bp.Space(
        width=width, **ends, body=bp.repeat(bp.Block(mixer=mixer, channel=bp.SwiGLU(ratio=2), norm=bp.RMSNorm()),
                                            times=bp.integer(*DEPTH)))
    return space


def sweep_of(frame: str, minutes: float, directory: Path, steps: int | None = None, trials: int | None = None) -> Sweep:
    """The sweep of a frame, scaled so that it takes about `minutes` on two cores."""
    import bodyplan as bp

    task = bp.tasks.text(length=128, batch=8) if frame == "text" else bp.tasks.images(batch=32, held_out_batches=16)
    made: Sweep = bp.Sweep(
        space_of(frame), task=task, objectives=["loss", "parameters", "macs"],
        strategy="evolution", trials=trials or max(4, round(TRIALS_A_MINUTE * SHARES["trials"] * minutes)), supernet=True,
        supernet_strategy="single_path",
        supernet_steps=steps or max(1, round(STEPS_A_MINUTE[frame] * SHARES["supernet"] * minutes)), retrain=0,
        fidelity_sample=0, executor="local", tracking=False, directory=directory, seed=0)
    return made


def run(frame: str, minutes: float, out: Path, command: str = "", **effort: int) -> dict[str, Any]:
    """Sweep, export every member of the front and let each folder test itself; the answer goes to `FRAME.json`."""
    began = time.monotonic()
    sweep = sweep_of(frame, minutes, out / frame, **effort)
    front = sweep.run(resume=(out / frame / "journal.jsonl").exists())
    members = [_exported(point, out / f"{frame}-front") for point in front]
    mixers = all_mixers(frame)
    answer = {"frame": frame, "command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "seed": sweep.seed,
              "machine": device_fingerprint("cpu"), "mixers": [type(mixer).__name__ for mixer in mixers],
              "size": str(sweep.space.size()),
              "supernet_steps": sweep.supernet_steps, "trials": len(front.candidates),
              "failed": sum(point.state == "failed" for point in front.candidates),
              "minutes": round((time.monotonic() - began) / 60, 1), "tried": _tried(front), "members": members}
    (out / f"{frame}.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return answer


def _tried(front: Front) -> dict[str, int]:
    """In how many of the candidates' layers each mixer stood."""
    return dict(Counter(name for point in front.candidates for name in _layers(point)))


def _layers(point: Point) -> list[str]:
    """The names of the mixers from the bottom up."""
    return [type(op).__name__ for _, op in point.architecture.modules if op.kind == "mixer"]


def _exported(point: Point, folder: Path) -> dict[str, Any]:
    from ..space.export import export

    path = export(point, folder / str(point.number))
    ran = subprocess.run([sys.executable, "test_export.py"], cwd=path, capture_output=True, text=True, check=False)
    said = (ran.stdout + ran.stderr).strip().splitlines()[-1:]
    return {"number": point.number, "mixers": _layers(point), "values": dict(point.values), "exported": not ran.returncode,
            "said": said}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(prog="python -m bodyplan.experiments.all_mixers", description=__doc__.splitlines()[0])
    parser.add_argument("frame", nargs="?", choices=tuple(FRAMES), help="which sweep to run")
    parser.add_argument("--minutes", type=float, default=15.0, help="about how long it may take on two cores")
    parser.add_argument("--out", type=Path, default=Path("runs/all_mixers"), help="the folder of the study")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page of --report")
    asked = parser.parse_args(arguments)
    if asked.report == bool(asked.frame):
        parser.error("name a sweep (text or images), or give --report")
    if asked.report:
        print(f"wrote {write_page(asked.page, asked.out)}")
        return
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bodyplan.experiments.all_mixers", *given])
    answer = run(asked.frame, asked.minutes, asked.out, command)
    print("\n".join(report(answer)))


def write_page(page: Path, out: Path) -> Path:
    """Write the answers of both sweeps between the two marks of `page`. Raises ValueError where neither has run, or no marks
    are there."""
    paths = [out / f"{frame}.json" for frame in FRAMES]
    answers = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not answers or not begun or not ended:
        what = f"{page} lacks {BEGIN if not begun else END}" if answers else f"{out} holds no answer of a sweep"
        raise ValueError(f"a report goes from a sweep into a page with two marks: {what}")
    lines = [line for answer in answers for line in (*report(answer), "")]
    page.write_text("\n".join([f"{before}{BEGIN}", "", *lines, f"{END}{after}"]), encoding="utf-8")
    return page


def report(answer: dict[str, Any]) -> list[str]:
    """One sweep in Markdown: what it held, how long it took, its front."""
    names = list(answer["members"][0]["values"]) if answer["members"] else []
    heads = [f"loss, {LOSS_UNITS[answer['frame']]}" if name == "loss" else name for name in names]
    tried, machine = answer["tried"], answer["machine"]
    never = [name for name in answer["mixers"] if name not in tried]
    good = sum(member["exported"] for member in answer["members"])
    return [
        f"### {FRAMES[answer['frame']][0].upper()}{FRAMES[answer['frame']][1:]}", "",
        f"{len(answer['mixers'])} mixers to choose from in each of {DEPTH[0]} to {DEPTH[1]} layers at width {WIDTH}: "
        f"{int(answer['size']):,} genomes in one supernet. {answer['supernet_steps']:,} steps of single-path training, "
        f"{answer['trials']} candidates ({answer['failed']} failed), {answer['minutes']} minutes in all. "
        f"{machine['name']}, two processes of one thread, torch {machine['torch']}, seed {answer['seed']}, "
        f"{answer['date']}: `{answer['command']}`.", "",
        f"Exported members of the front whose own test finds the trained module's logits again, bit for bit: {good} of "
        f"{len(answer['members'])}.", "",
        f"The mixers: {', '.join(f'`{name}` ({tried.get(name, 0)})' for name in answer['mixers'])}; in brackets, in how "
        f"many layers of candidates it stood{'' if never else ', all of them at least once'}.", "",
        f"| trial | {' | '.join(heads)} | mixers | exported |", f"|---:|{'---:|' * len(names)}---|---|",
        *(_row(member, names) for member in answer["members"])]


def _row(member: dict[str, Any], names: Sequence[str]) -> str:
    values = " | ".join(f"{member['values'][name]:,.4g}" for name in names)
    said = "equal" if member["exported"] else "differs: " + " ".join(member["said"])
    return f"| {member['number']} | {values} | {', '.join(member['mixers'])} | {said} |"


if __name__ == "__main__":
    main()
