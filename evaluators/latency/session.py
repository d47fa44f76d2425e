"""What `bodyplan profile` does: measure and print, perhaps save; or write the script that measures elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...space.operator import Operator
from ..devices import check_device
from .emit import emit
from .measuring import conditions_of, profile_operators
from .operators import EXAMPLES, cases_of, table_lines
from .profile import Profile
from .runner import Conditions

if TYPE_CHECKING:
    from ...space.architecture import Architecture
    from ...space.space import Space

__all__ = ["Asked", "emitted", "profiled", "rooflines"]


@dataclass(frozen=True)
class Asked:
    """What is to be measured: the operators of a space or the examples; None stands for what is usual."""

    device: str
    widths: Sequence[int] | None = None
    lengths: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    phases: Sequence[str] | None = None
    dtype: str = "float32"
    mode: str = "eager"
    space: Space | None = None

    @property
    def pairs(self) -> list[tuple[Operator, int]]:
        """The operators with their widths: those of the space, if widths are given the ones among them.

        Raises:
            ValueError: a width that the space does not have.
        """
        if self.space is None:
            return [(config, width) for width in self.widths or (128,) for config in EXAMPLES]
        found = cases_of(self.space)
        known = sorted({width for _, width in found})
        for width in self.widths or ():
            if width not in known:
                raise ValueError(f"the operators of this space have widths {', '.join(map(str, known))}: got {width}")
        return [(config, width) for config, width in found if width in (self.widths or known)]

    @property
    def conditions(self) -> list[Conditions]:
        return conditions_of(self.lengths or (256,), self.batches or (1,), self.phases or ("prefill", "decode"),
                             dtype=self.dtype, mode=self.mode)


def profiled(asked: Asked, save: Path | None, command: str) -> Iterator[str]:
    """Measure; gives the lines of the table, and where the profile went. Refuses a file that exists before it measures.

    Raises:
        ValueError: an absent device, an existing file, or operators and conditions that do not fit.
    """
    check_device(asked.device)
    if save is not None and save.exists():
        raise ValueError(f"a profile overwrites nothing: there is a file at {save}; name another")
    found: Profile = profile_operators(asked.device, conditions=asked.conditions, command=command, pairs=asked.pairs)
    yield from table_lines(found.sessions[0]["fingerprint"], found.operators)
    for row in found.failures:
        yield f"failed: {row['operator']}, {row['phase']} at {row['length']} tokens: {row['reason']}"
    if save is not None:
        found.save(save)
        yield f"wrote {len(found.operators)} measurements to {save}; read it with bp.Profile.load({str(save)!r})"


def rooflines(asked: Asked) -> Iterator[str]:
    """The lines of a roofline per phase, length and batch: of a space's largest architecture, or of the examples in a row.

    Raises:
        ValueError: a device that is neither known nor here, widths given, or a phase that has none.
    """
    from ..costing.roofline import roof_of, roofline, roofline_lines

    if asked.widths and asked.space is not None:
        raise ValueError("a roofline is of the largest architecture of a space, whose width it has: leave --width out")
    architecture = _examples((asked.widths or (128,))[0]) if asked.space is None else (
        asked.space.architecture(asked.space.largest()))
    roof = roof_of(asked.device, asked.dtype)
    for phase in asked.phases or ("prefill", "decode"):
        for length in asked.lengths or (256,):
            for batch in asked.batches or (1,):
                yield from roofline_lines(roofline(architecture, roof, length, phase, batch, asked.dtype))
                yield ""


def _examples(width: int) -> Architecture:
    from ...space.operators.embedding import TokenEmbedding
    from ...space.operators.head import LanguageHead
    from ...space.operators.identity import Identity
    from ...space.plan import Block
    from ...space.space import Space

    body = tuple(Block(mixer=config) if config.kind == "mixer" else Block(mixer=Identity(), channel=config)
                 for config in EXAMPLES)
    return Space(embed=TokenEmbedding(vocab=256), width=width, body=body, head=LanguageHead(tied=True)).sample(0)


def emitted(asked: Asked, path: Path, save: Path | None = None) -> str:
    """Write the script; returns what to do with it. Raises ValueError where a profile is asked for as well."""
    if save is not None:
        raise ValueError("a script is written or a profile is measured: got both --emit and --save; the script has --out")
    emit(path, asked.pairs, asked.conditions, asked.device)
    return (f"wrote {path}; on the other machine: python {path.name} --device {asked.device} --out profile.json; then here: "
            "bp.Profile.load('profile.json')")
