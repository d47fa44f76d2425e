"""HTML pages that open from disk: figures with plotly inlined once, no network, no other file."""

from __future__ import annotations

import html
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from .style import FONT, FRONT, INK, MUTED

__all__ = ["facts", "figure", "page", "section", "table", "write"]

_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover", "showSendToCloud": False,
           "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendDataToCloud", "sendChartToCloud"]}
_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 {FONT}; color: {INK}; background: #F5F7FA; margin: 0; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }}
h1 {{ font-size: 28px; margin: 0; }} h2 {{ font-size: 20px; margin: 0 0 12px; }}
.muted {{ color: {MUTED}; }} .small {{ font-size: 13px; }}
section {{ background: white; border: 1px solid #E4E7EB; border-radius: 10px; padding: 20px 24px; margin-top: 24px; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 16px; margin-top: 24px; }}
.tile {{ background: white; border: 1px solid #E4E7EB; border-radius: 10px; padding: 14px 20px; flex: 1 1 170px; }}
.tile b {{ display: block; font-size: 26px; line-height: 1.3; font-variant-numeric: tabular-nums; }}
.scroll {{ overflow: auto; max-height: 640px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; position: sticky; top: 0; background: white; border-bottom: 2px solid #CBD2D9; }}
th, td {{ padding: 7px 14px 7px 0; vertical-align: top; }}
td {{ border-bottom: 1px solid #E4E7EB; }}
code, pre {{ font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 12.5px; }}
code {{ background: #F0F2F5; padding: 2px 6px; border-radius: 4px; user-select: all; white-space: nowrap; }}
pre {{ overflow: auto; max-height: 420px; background: #F0F2F5; padding: 12px; border-radius: 6px; }}
.badge {{ background: {FRONT}; color: white; border-radius: 9px; padding: 1px 8px; font-size: 12px; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 0; }}
dt {{ color: {MUTED}; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
"""


def page(title: str, body: Iterable[str]) -> str:
    """A complete document around parts made by the other functions; plotly (4.8 MB) is in it exactly once."""
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
            f"<script>{get_plotlyjs()}</script></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n")


def figure(drawn: go.Figure, name: str) -> str:
    """A figure as a section; `name` is the id of its element, so that pages of one sweep are byte-identical."""
    inner = plotly.io.to_html(drawn, full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=name)
    return f"<section>{inner}</section>"


def section(title: str, *parts: str) -> str:
    """A titled card around HTML parts."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML already; the head is plain text."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of names with values, plain text; a value of None is left out."""
    lines = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in pairs
                    if value is not None)
    return f"<dl>{lines}</dl>"


def write(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` so that a reader sees the old file or the new one and never a part; answers the full path."""
    final = Path(path).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(final)
    return final
