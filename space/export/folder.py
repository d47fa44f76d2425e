"""Write a model folder that runs without this package, and check it against the trained module before it appears."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import __version__
from ...errors import BodyplanError
from ..macros.prompted import Prompted
from . import selftest
from .card import card_of, write_card
from .describe import fields_of, item_config
from .module_file import generates, has_source, module_source, streams
from .text import Text, apply

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["FILES", "export"]

FILES = ("README.md", "architecture.json", "config.json", "expected.safetensors", "model.py", "model.safetensors",
         "test_export.py")
CACHES = ("__pycache__", ".pytest_cache")
SCHEMA_VERSION = 1
BATCH, TOKENS = 2, 100  # longer than usual windows, and no multiple of a chunk
SOURCE = 76             # tokens of an encoder's source


def export(what: Any, directory: str | os.PathLike[str], *, card: Mapping[str, Any] | None = None) -> Path:
    """Write `what` as a folder that needs torch and safetensors alone; returns the folder's path.

    The folder appears at once or not at all, and only after its logits were found equal, bit for bit, to those of the
    module it was made from. The same model gives the same bytes.

    Args:
        what: a point of a front, or a module that came from an architecture (`architecture.build()`,
            `supernet.extract(architecture)`, `supernet.subnet(architecture)`).
        directory: a new or empty folder, or an earlier export, which is replaced.
        card: more for the model card: `title`, `objectives` (mappings or objects with name, unit, goal, device, seed,
            value, interval; a point fills in its values), `decisions`, `training` (what on, how long), `seed`, `found`,
            `limits`.

    Raises:
        TypeError: `what` has no weights or no architecture.
        ValueError: the directory holds something else, or an operator's module cannot be written as plain torch source.
        BodyplanError: the written model does not compute what the module computes.
    """
    target = Path(directory)
    _check_target(target)
    architecture, module = _resolve(what)
    known = card_of(what, card)
    source = module_source(architecture)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(partial, architecture, module, source, known)
        _replace(target, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"an export goes into a folder of its own: {target} is a file; name another path")
    if not target.is_dir():
        return
    held = sorted(p.name for p in target.iterdir())
    foreign = [name for name in held if name not in FILES + CACHES]
    if held and (foreign or "architecture.json" not in held):
        raise ValueError(f"an export replaces nothing but an earlier export: {target} holds {(foreign or held)[0]!r}; "
                         "name a new folder, or move that away")


def _resolve(what: Any) -> tuple[Architecture, nn.Module]:
    """The architecture of `what` and a copy of its module on the CPU, in evaluation mode."""
    from ..architecture import Architecture
    from ..elastic.supernet import Subnet

    if isinstance(what, Subnet):
        module: Any = what.net.extract(what.architecture)
    elif isinstance(what, nn.Module):
        module = what
    elif callable(getattr(what, "module", None)):
        module = what.module()
    elif isinstance(what, Architecture):
        raise TypeError("an export needs weights: got an architecture; give supernet.extract(architecture), or "
                        "architecture.build() after training it")
    else:
        raise TypeError(f"an export is made of a point of a front or of a module built from an architecture: got "
                        f"{type(what).__name__}")
    architecture = getattr(module, "architecture", None)
    if architecture is None:
        raise TypeError(f"an export needs a module that knows its architecture: got a {type(module).__name__} without; "
                        "build it with architecture.build() or supernet.extract(architecture)")
    if any(p.is_meta for p in module.parameters()):
        raise TypeError("an export needs weights: got a module on the meta device, which has none; build it elsewhere")
    module.architecture = None  # not copied: it holds the whole space
    try:
        copied = copy.deepcopy(module)
    finally:
        module.architecture = architecture
    return architecture, copied.cpu().eval()


def _write(folder: Path, architecture: Architecture, module: nn.Module, source: str, card: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    weights = {name: tensor.detach().contiguous().clone() for name, tensor in module.state_dict().items()}
    dtype = next(iter(weights.values())).dtype
    inputs = {name: given.to(dtype) if given.is_floating_point() else given for name, given in _example(architecture).items()}
    dtype_name = str(dtype).removeprefix("torch.")
    with _one_thread():
        outputs = module(*inputs.values())
    says = {"generates": generates(architecture), "streams": streams(architecture), "has_source": has_source(architecture)}
    (folder / "model.py").write_text(source, encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # One metadata key: the order of several is not fixed in the file.
    save_file({**inputs, "outputs": outputs}, folder / "expected.safetensors",
              metadata={"machine": json.dumps(selftest.machine(), sort_keys=True)})
    _write_json(folder / "config.json", _config(architecture, dtype_name))
    _write_json(folder / "architecture.json", {**architecture.to_json(), "schema_version": SCHEMA_VERSION,
                                               "bodyplan": __version__, "torch": str(torch.__version__)})
    (folder / "README.md").write_text(write_card(architecture, card, dtype=dtype_name, **says), encoding="utf-8")
    (folder / "test_export.py").write_text(_folder_test(**says), encoding="utf-8")
    _check_written(folder, source, list(inputs.values()), outputs)
    for path in (folder, *folder.iterdir()):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def _example(architecture: Architecture) -> dict[str, Tensor]:
    """Fixed inputs: tokens spread over the vocabulary, a smooth image, smooth frames or series; a source of another length,
    or smooth features of a prompt.

    Raises:
        ValueError: an embedding of somebody's own does not say what it takes.
    """
    embed: Any = architecture.plan.embed
    if hasattr(embed, "vocab"):
        found = {"inputs": (torch.arange(BATCH * TOKENS) * 7919 % int(embed.vocab)).view(BATCH, TOKENS)}
        return {**found, "source": found["inputs"].flip(1)[:, :SOURCE].contiguous()} if has_source(architecture) else found
    if hasattr(embed, "steps"):
        return {"inputs": _smooth(BATCH, int(embed.steps), TOKENS)}
    if hasattr(embed, "features"):
        return {"inputs": _smooth(BATCH, TOKENS * int(embed.stack), int(embed.features))}
    if not hasattr(embed, "sides"):
        raise ValueError("an export stores outputs for an example, whose shape the embedding's fields tell: `vocab` of "
                         f"tokens, `sides` and `channels` of images, or `features` and `stack` of frames; got "
                         f"{type(embed).__name__} without; give it one of these")
    images = {"inputs": _smooth(BATCH, int(embed.channels), *map(int, embed.sides))}
    prompts = [op for _, op in architecture.modules if isinstance(op, Prompted)]
    if prompts:
        return {**images, "source": _smooth(BATCH, SOURCE, int(prompts[0].features))}
    return {**images, "source": images["inputs"].flip(2)} if has_source(architecture) else images


def _smooth(*shape: int) -> Tensor:
    return torch.linspace(-37.0, 37.0, math.prod(shape)).sin().view(shape)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Without gradients and on one thread, which the stored outputs and their test agree on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _check_written(folder: Path, source: str, inputs: list[Tensor], outputs: Tensor) -> None:
    """Load the folder as a user would and compare with the trained module, bit for bit."""
    scope: dict[str, Any] = {"__name__": "exported_model", "__file__": str(folder / "model.py")}
    with torch.random.fork_rng(devices=[]):
        exec(compile(source, str(folder / "model.py"), "exec"), scope)  # the text written above
        model = scope["Model"].from_pretrained(folder)
    with _one_thread():
        found = model(*inputs)
    if not torch.isclose(found, outputs, rtol=0.0, atol=0.0, equal_nan=True).all():
        raise BodyplanError("the exported model must give the trained model's outputs bit for bit: the largest "
                            f"difference is {(found - outputs).abs().max().item():.3g}; an operator's forward depends "
                            "on something that its constructor arguments and parameters do not hold")


def _config(architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The sizes, for people and other programs; `model.py` does not read it."""
    plan = architecture.plan

    def shown(op: Any) -> dict[str, Any]:
        return {"type": type(op).__name__, **fields_of(op)}

    layers, width = [], plan.width
    for item in plan.layers:
        layers.append(item_config(item, width))
        width = item.out(width, 1)[0]
    return {"schema_version": SCHEMA_VERSION, "dtype": dtype, "width": plan.width, "embed": shown(plan.embed),
            "layers": layers, "recursion": shown(plan.recursion), "norm": shown(plan.norm), "head": shown(plan.head)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _folder_test(*, generates: bool, streams: bool, has_source: bool) -> str:
    """The folder's own test, without what this model does not do."""
    gone = set() if streams else {"test_step_by_step_decoding_gives_the_same_logits"}
    gone |= set() if generates else {"test_generation_repeats_with_a_seed"}
    source = Text(inspect.getsource(selftest))
    removed = [n for n in source.tree.body if isinstance(n, ast.FunctionDef) and n.name in gone]
    text = apply(source.text, [source.removal(n) for n in removed])
    for one, two in _WITH_SOURCE if has_source else ():
        text = text.replace(one, two)
    return text


# Copies of what is loaded lie in memory as inputs do, which the last bits of a source of features depend on.
_WITH_SOURCE = (
    ('inputs, wanted = stored.get_tensor("inputs"), stored.get_tensor("outputs")',
     'inputs, source, wanted = (stored.get_tensor(n).clone() for n in ("inputs", "source", "outputs"))'),
    ("load()(inputs)", "load()(inputs, source)"),
    ('model, ids_BT = load(), load_file(HERE / "expected.safetensors")["inputs"]\n',
     'model, stored = load(), load_file(HERE / "expected.safetensors")\n'
     '    ids_BT, source = stored["inputs"], stored["source"]\n'),
    ('model, ids_BT = load(), load_file(HERE / "expected.safetensors")["inputs"][:, :4]',
     'model, stored = load(), load_file(HERE / "expected.safetensors")\n'
     '    ids_BT, source = stored["inputs"][:, :4], stored["source"]'),
    ("dtype=next(model.parameters()).dtype)", "dtype=next(model.parameters()).dtype, source=source)"),
    ("model(ids_BT)", "model(ids_BT, source)"),
    ("seed=0)", "seed=0, source=source)"),
)
assert all(one in inspect.getsource(selftest) for one, _ in _WITH_SOURCE)


def _replace(target: Path, partial: Path) -> None:
    """Rename into place; an earlier export is set aside first and deleted last."""
    if not target.exists():
        os.rename(partial, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    os.rename(target, aside / "old")
    try:
        os.rename(partial, target)
    except OSError:
        os.rename(aside / "old", target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
