"""The model card: what the model is, what it was judged by, how to use it, where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..macros.prompted import Prompted
from .describe import layer_rows, shape_of

if TYPE_CHECKING:
    from ..architecture import Architecture

__all__ = ["CARD_FIELDS", "card_of", "write_card"]

CARD_FIELDS = ("title", "objectives", "decisions", "training", "seed", "found", "limits")


def card_of(what: Any, card: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known of a point of a front, completed and overruled by the caller's `card`.

    Raises:
        ValueError: `card` has a field the model card does not.
    """
    unknown = sorted(set(card or {}) - set(CARD_FIELDS))
    if unknown:
        raise ValueError(f"a card has the fields {', '.join(CARD_FIELDS)}: got {unknown[0]!r}; put free text in "
                         "'limits' or 'training'")
    given = {k: v for k, v in (card or {}).items() if v is not None}
    values = getattr(what, "values", None)
    if not isinstance(values, Mapping):
        return given
    found: dict[str, Any] = {"objectives": [{"name": name} for name in values],
                             "decisions": getattr(what, "labels", {}), "seed": getattr(what, "seed", None)}
    if getattr(what, "number", None) is not None:
        found["found"] = f"trial {what.number}"
    merged = found | given
    merged["objectives"] = [_objective(o, what, merged.get("seed")) for o in merged["objectives"]]
    return merged


def _objective(item: Any, what: Any, seed: Any) -> dict[str, Any]:
    """An objective's row, from a mapping or an object with these attributes, values filled in from the point."""
    names = ("name", "value", "unit", "goal", "device", "seed", "interval", "test", "standalone")
    row = {n: item.get(n) if isinstance(item, Mapping) else getattr(item, n, None) for n in names}
    name = row["name"]
    for field, source in (("value", "values"), ("interval", "intervals"), ("test", "test"),
                          ("standalone", "standalone")):
        if row[field] is None:
            row[field] = (getattr(what, source, None) or {}).get(name)
    if row["seed"] is None:
        row["seed"] = seed
    return row


def write_card(architecture: Architecture, card: Mapping[str, Any], *, generates: bool, streams: bool,
               has_source: bool, dtype: str) -> str:
    """The Markdown of `README.md`. The same arguments give the same bytes."""
    title = card.get("title") or f"Model {architecture.short}"
    parts = [f"# {title}", shape_of(architecture), _sizes(architecture, dtype), _layers(architecture)]
    parts += [section for section in (_objectives(card), _decisions(card), _training(card)) if section]
    parts += [_use(architecture, generates, streams, has_source), _limits(card, generates, streams)]
    parts += [_origin(architecture, card)]
    return "\n\n".join(parts) + "\n"


def _sizes(architecture: Architecture, dtype: str) -> str:
    cost = architecture.cost()
    rows = [("parameters", f"{cost.parameters:,}"), ("weights", dtype),
            (f"multiply-adds, prefill of {cost.length} tokens", f"{cost.macs:,.0f}"),
            (f"multiply-adds, one token after {cost.length}", f"{cost.decode_macs:,.0f}"),
            (f"decode state after {cost.length} tokens (fp32, one sequence)", f"{cost.state_bytes:,} bytes")]
    return _table(("size", "value"), rows)


def _layers(architecture: Architecture) -> str:
    rows = [(numbers, _code(mixer), _code(channel)) for numbers, mixer, channel in layer_rows(architecture)]
    return "## Layers\n\n" + _table(("layer", "mixer", "channel"), rows)


def _code(text: str) -> str:
    return text if text in ("", "-") else f"`{text}`"


def _objectives(card: Mapping[str, Any]) -> str:
    rows = list(card.get("objectives") or ())
    if not rows:
        return ""
    columns = [c for c in ("value", "interval", "unit", "goal", "device", "seed", "test", "standalone")
               if any(row.get(c) not in (None, "") for row in rows)]
    return "## Measured\n\n" + _table(("objective", *columns),
                                      [(row["name"], *(str(row[c]) if c == "seed" else _show(row.get(c)) for c in columns))
                                       for row in rows])


def _show(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, Sequence):
        return " to ".join(_show(v) for v in value)
    return str(value)


def _decisions(card: Mapping[str, Any]) -> str:
    decisions = card.get("decisions") or {}
    if not decisions:
        return ""
    return "## Decisions\n\n" + _table(("decision", "taken"), [(f"`{k}`", str(v)) for k, v in decisions.items()])


def _training(card: Mapping[str, Any]) -> str:
    training = card.get("training")
    if not training:
        return ""
    if isinstance(training, Mapping):
        training = _table(("training", "value"), [(str(k), _show(v)) for k, v in training.items()])
    return f"## Training\n\n{training}"


def _use(architecture: Architecture, generates: bool, streams: bool, has_source: bool) -> str:
    lines = ["## Use", "", "Needs Python 3.11, torch and safetensors. In this folder:", "", "```python", "import torch",
             "from model import Model", "", 'model = Model.from_pretrained(".")']
    prompts = [op for _, op in architecture.modules if isinstance(op, Prompted)]
    if prompts:
        embed: Any = architecture.plan.embed
        lines += [f"latents = torch.randn(1, {embed.channels}, {', '.join(map(str, embed.sides))})",
                  f"source = torch.randn(1, 20, {prompts[0].features})         # the time, and 19 tokens of a text",
                  "predicted = model(latents, source)          # (batch, rows, columns, channels)"]
    elif has_source:
        vocab = getattr(architecture.plan.embed, "vocab", 2)
        lines += [f"ids, source = torch.randint({vocab}, (1, 12)), torch.randint({vocab}, (1, 20))",
                  "logits = model(ids, source)                 # the encoder reads the source"]
        lines += ["out = model.generate(ids, 20, temperature=0.8, top_k=40, seed=0, source=source)"] if generates else []
    elif generates:
        lines += ['ids = torch.tensor([list(b"The ")])        # one token per byte, for a vocabulary of bytes',
                  "logits = model(ids)                         # (batch, tokens, vocabulary)",
                  "out = model.generate(ids, 200, temperature=0.8, top_k=40, seed=0)",
                  'print(bytes(out[0].tolist()).decode("utf-8", "replace"))']
    if streams:
        given = "batch=1, source=source" if has_source else "batch=1"
        lines += ["", f"{f'state = model.init_state({given})':<44} # token by token",
                  "logits, state = model.step(ids, state)"]
    lines += ["```", "", "`python test_export.py` checks the folder against the outputs stored in "
              "`expected.safetensors`."]
    return "\n".join(lines)


def _limits(card: Mapping[str, Any], generates: bool, streams: bool) -> str:
    given = card.get("limits") or ()
    items: list[str] = [given] if isinstance(given, str) else list(given)
    if not card.get("training"):
        items.append("Nothing was recorded about how the weights were trained; they may be random.")
    if generates and not streams:
        items.append("One operator keeps no decode state: `generate` reads the whole text again for every token.")
    items.append("Outputs equal the trained model's bit for bit on the recorded machine, torch version and one thread; "
                 "elsewhere to 1e-5 relative to the largest output.")
    items.append("It has seen only its training data; judge its outputs before you rely on them.")
    return "## Limits\n\n" + "\n".join(f"- {item}" for item in items)


def _origin(architecture: Architecture, card: Mapping[str, Any]) -> str:
    found = f" ({card['found']})" if card.get("found") else ""
    return (f"## Origin\n\nArchitecture `{architecture.hash}`{found} of the space `{architecture.space.hash}`. "
            "`architecture.json` holds its genome, to build it again or to search on from here.")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [" | ".join(header)]
    lines.append(" | ".join("---" for _ in lines[0].split(" | ")))
    lines += [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
