"""Training state on disk: one safetensors file, its JSON in the header, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BodyplanError

__all__ = ["SCHEMA_VERSION", "read_checkpoint", "write_checkpoint"]

SCHEMA_VERSION = 1


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`. A reader sees the old one or the new one, also after a power cut."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    header = {"format": "pt", "state": json.dumps({"schema_version": SCHEMA_VERSION, **state})}
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(partial),
                  metadata=header)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a checkpoint.

    Raises:
        BodyplanError: the file is not a checkpoint of this version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as stored:
            state = json.loads((stored.metadata() or {}).get("state", "{}"))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}      # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as broken:
        raise BodyplanError(f"a checkpoint must be readable: {path} is not ({broken}); remove it to "
                            "start again") from broken
    if state.get("schema_version") != SCHEMA_VERSION:
        raise BodyplanError(f"a checkpoint of schema_version {SCHEMA_VERSION} is needed: {path} has "
                            f"{state.get('schema_version')!r}; remove it to start again")
    return tensors, state
