"""Residual topologies: how the outputs of layers reach later layers. The modules are in `residual_layers`."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from ..axes import Init, Param, axis, param
from ..operator import Length, Source, tokens_of
from ..operators.attention import Attention
from ..operators.checks import is_whole
from ..operators.selective_attention import SelectiveAttention
from ..plan import Block

MODES = ("learnable", "identity", "single")
__all__ = ["CrossLayerKV", "DenseAverage", "HyperConnections", "Ladder", "LayerMemory", "PersistentSelection", "Placed",
           "Residual", "Reversible", "ValueResidual"]


@dataclass(frozen=True)
class Residual:
    """The plain residual stream: each sublayer adds to what reached it (He et al., 2015)."""

    source: ClassVar[Source] = Source("Deep Residual Learning for Image Recognition", 2015)

    def check(self, where: str) -> None:
        """Raise ValueError for numbers that cannot be built."""

    def check_layers(self, items: list[Any], where: str) -> None:
        """Raise ValueError for layers that cannot be joined; their fields may be choices."""

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        """Parameters beside those of the layers; `units` counts their sublayers."""
        return {}

    def macs(self, width: int, length: Length, units: int) -> float:
        """Multiply-adds beside those of the layers."""
        return 0.0

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        """The layers as this topology needs them, one for one; placeholders stay."""
        return items

    def join(self, layers: list[Any], width: int, units: int) -> Any:
        """The module that runs the layers, None for one after the other."""
        return None

    def rewrite(self, operator: Any) -> Any:
        """What the topology may make of an operator."""
        return operator


@dataclass(frozen=True)
class DenseAverage(Residual):
    """DenseFormer (Pagliardini et al., 2024): after layer i the stream is a learned weighted sum of the input and of the
    outputs of layers 1 to i; it starts as the newest alone.

    dilation: only every so many outputs, counted back from the newest, take part. period: only after every so many layers.
    """

    dilation: Any = 1
    period: Any = 1
    proof: ClassVar[str] = "tests/space/test_residuals.py -k dilated_average"
    source: ClassVar[Source] = Source("DenseFormer: Enhancing Information Flow in Transformers via Depth Weighted "
                                      "Averaging", 2024, systems=("S071",))

    def check(self, where: str) -> None:
        for name, number in (("dilation", self.dilation), ("period", self.period)):
            if not is_whole(number):
                raise ValueError(f"{name} is 1 or more at {where}: got {number!r}")

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        """One row of weights per average, rows of growing length one after the other, so that fewer layers are a prefix."""
        pairs = sum(i // self.dilation + 1 for i in range(self.period, layers + 1, self.period))
        return {"weights": param(axis("depth_pairs", pairs), init="zeros")} if pairs else {}


@dataclass(frozen=True)
class ValueResidual(Residual):
    """ResFormer and SVFormer (Zhou et al., 2024): attention layers mix their values with those of the first one.

    mode: "learnable", by two numbers per layer that start at a half; "identity", half and half; "single" (SVFormer), no
    values of their own, so that values are computed and cached once. last: only in so many of the last attention layers
    (the sparse ResFormer), None for all. Holds for softmax attention as a block's mixer, where the first one's heads and
    head size, and for "single" its window, are the same.
    """

    mode: Any = "learnable"
    last: Any = None
    source: ClassVar[Source] = Source("Value Residual Learning For Alleviating Attention Concentration In Transformers",
                                      2024, systems=("S202",))

    def check(self, where: str) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)} at {where}: got {self.mode!r}")
        if self.last is not None and not is_whole(self.last):
            raise ValueError(f"last is 1 or more at {where}: got {self.last!r}; use None for every attention layer")

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        first, made = None, []
        own = [index for index, item in enumerate(items) if attention_of(item) is not None]
        late = set(own if self.last is None else own[-self.last:])
        for index, item in enumerate(items):
            attention = attention_of(item)
            if attention is None or attention.reuse_kv:
                made.append(item)
            elif first is None:
                first = self._kind(attention, width)
                made.append(item)
            else:
                fits = index in late and self._kind(attention, width) == first
                made.append(replace(item, mixer=self.rewrite(attention)) if fits else item)
        return made

    def _kind(self, attention: Any, width: int) -> tuple[Any, ...]:
        """What an attention layer and the first one must have in common."""
        window = (attention.window, attention.bidirectional) if self.mode == "single" else ()
        return (*values_of(attention, width), *window)

    def rewrite(self, operator: Any) -> Any:
        mode = True if self.mode == "learnable" else self.mode
        fits = is_softmax(operator) and not operator.reuse_kv and self.mode in MODES
        return replace(operator, value_residual=mode) if fits else operator


@dataclass(frozen=True)
class CrossLayerKV(Residual):
    """Cross-layer attention (Brandon et al., 2024): of every `every` attention layers in a row the first computes keys and
    values, the others use them.

    Holds for softmax attention as a block's mixer; a layer whose key/value heads, head size or window differ from those it
    would use, or that has an option on its scores, computes its own and starts anew.
    """

    every: Any = 2
    source: ClassVar[Source] = Source("Reducing Transformer Key-Value Cache Size with Cross-Layer Attention", 2024)

    def check(self, where: str) -> None:
        if not isinstance(self.every, int) or self.every < 2:
            raise ValueError(f"every is 2 or more at {where}: got {self.every!r}; use Residual() to share nothing")

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        held, used, made = None, 0, []
        for item in items:
            attention = attention_of(item)
            if attention is None or attention.writes_scores:
                held = held if attention is None else None
                made.append(item)
                continue
            kind = (*values_of(attention, width), attention.window)
            used = used + 1 if kind == held and used < self.every else 1
            held = kind
            made.append(item if used == 1 else replace(item, mixer=self.rewrite(attention)))
        return made

    def rewrite(self, operator: Any) -> Any:
        is_plain = is_softmax(operator) and not operator.value_residual and not operator.writes_scores
        return replace(operator, reuse_kv=True) if is_plain else operator


@dataclass(frozen=True)
class LayerMemory(Residual):
    """Attention layers that read what those before them computed: `LayerMixAttention` (LIMe, Gerasimov et al., 2025),
    `SkipAttention` (Chen et al., 2024), `ForwardCrossAttention` (FcaFormer, Zhang et al., 2023), one kind per stack.

    Tells each such mixer of a block how many there are before it, and hands their list on.
    """

    source: ClassVar[Source] = Source("You Do Not Fully Utilize Transformer's Representation Capacity", 2025)

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        made: list[Any] = []
        count = 0
        for item in items:
            remembers = isinstance(item, Block) and hasattr(item.mixer, "before")
            made.append(replace(item, mixer=replace(item.mixer, before=count)) if remembers else item)
            count += remembers
        return made


@dataclass(frozen=True)
class Placed:
    """An operator as it is after `before` others that remember; others as they are."""

    before: int

    def __call__(self, operator: Any) -> Any:
        return replace(operator, before=self.before) if hasattr(operator, "before") else operator


@dataclass(frozen=True)
class HyperConnections(Residual):
    """Hyper-connections (Zhu et al., 2024): `rate` copies of the stream, mixed before and after every sublayer.

    Sublayer k reads a learned mixture of the streams and writes to all of them; it starts as a plain residual layer on
    stream k mod rate. dynamic: the mixtures also depend on the token, through a tanh of its normalised streams (here
    without a gain). The streams are summed at the end.
    """

    rate: Any = 2
    dynamic: Any = True
    source: ClassVar[Source] = Source("Hyper-Connections", 2024)

    def check(self, where: str) -> None:
        if not isinstance(self.rate, int) or self.rate < 2:
            raise ValueError(f"rate is 2 or more at {where}: got {self.rate!r}; use Residual() for one")

    def axes(self, width: int, layers: int, units: int) -> dict[str, Param]:
        if not units:
            return {}
        u, n, d = axis("units", units), axis("streams", self.rate), axis("width", width)
        reads = axis("read", 1) + axis("streams", self.rate)
        found = {"mix": param(u, n, reads, init="zeros"), "write": param(u, n, init="zeros")}
        if self.dynamic:
            small = Init("constant", low=0.01)
            found |= {"mix_by_token": param(u, d, reads, init="zeros"), "write_by_token": param(u, d, init="zeros"),
                      "mix_scale": param(u, init=small), "write_scale": param(u, init=small)}
        return found

    def macs(self, width: int, length: Length, units: int) -> float:
        n = self.rate
        mixing = n * (n + 1) * width
        by_token = n * (n + 2) * width if self.dynamic else 0
        return float(units * tokens_of(length) * (mixing + by_token))


@dataclass(frozen=True)
class Ladder(Residual):
    """Ladder residual (Zhang et al., 2025): each sublayer reads the stream as it was before the previous sublayer added to
    it, so that on several devices the previous one's communication overlaps with it."""

    source: ClassVar[Source] = Source("Ladder-residual: parallelism-aware architecture for accelerating large model "
                                      "inference with communication overlapping", 2025, systems=("S023",))


@dataclass(frozen=True)
class Reversible(Residual):
    """Reversible residual layers (Gomez et al., 2017; Reformer, Kitaev et al., 2020): two copies of the stream, of which
    every sublayer reads one and adds to the other, in turn; their mean leaves the stack.

    Training remembers the activations of one sublayer at a time, whatever the depth, and runs every sublayer twice more on
    the way back: inputs are computed from outputs, up to rounding. Reformer concatenates the two streams in front of its
    head; the mean keeps the width. Where a second input is handed on (a decoder's memory) activations are kept as usual.
    """

    source: ClassVar[Source] = Source("Reformer: The Efficient Transformer", 2020, options=("S206",))


@dataclass(frozen=True)
class PersistentSelection(Residual):
    """TidalDecode (Yang et al., 2024): tokens that one attention layer chooses are what the layers after it read.

    Of the blocks with `SelectiveAttention` the first `dense` read everything; the next one chooses, and again those whose
    numbers among them (from 0) stand in `again`; all others read what was chosen last.
    """

    dense: Any = 2
    again: Any = ()
    proof: ClassVar[str] = "tests/space/operators/test_sparse_attention.py -k chosen"
    source: ClassVar[Source] = Source("TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
                                      2024, systems=("S341",))

    def check(self, where: str) -> None:
        if not isinstance(self.dense, int) or self.dense < 0:
            raise ValueError(f"dense is a number of layers at {where}: got {self.dense!r}; use 2")
        if not all(isinstance(n, int) and n > self.dense for n in self.again):
            raise ValueError(f"again names layers after number {self.dense}, the first that chooses, at {where}: got "
                             f"{self.again!r}; use for example ({self.dense + 11},)")

    def rewritten(self, items: list[Any], width: int) -> list[Any]:
        made: list[Any] = []
        count = 0
        for item in items:
            selects = isinstance(item, Block) and isinstance(item.mixer, SelectiveAttention)
            made.append(replace(item, mixer=replace(item.mixer, reads=self.reads(count))) if selects else item)
            count += selects
        return made

    def reads(self, number: int) -> str:
        """What the attention layer of this number reads."""
        if number < self.dense:
            return "all"
        return "choose" if number == self.dense or number in self.again else "chosen"

    def rewrite(self, operator: Any) -> Any:
        return replace(operator, reads="chosen") if isinstance(operator, SelectiveAttention) else operator

    def rewrite_to_choose(self, operator: Any) -> Any:
        """The other thing that the topology may make of an operator."""
        return replace(operator, reads="choose") if isinstance(operator, SelectiveAttention) else operator


def attention_of(item: Any) -> Any:
    """The softmax self-attention of a block, or None."""
    return item.mixer if isinstance(item, Block) and is_softmax(item.mixer) else None


def is_softmax(operator: Any) -> bool:
    return isinstance(operator, Attention)


def values_of(attention: Any, width: int) -> tuple[int, int]:
    """(key/value heads, head size)."""
    kv_heads, _, head_dim = attention.sizes(width)
    return kv_heads, head_dim


def residual_label(residual: Residual) -> str:
    """Class name and fields, for nodes of the graph."""
    assert is_dataclass(residual)
    given = ",".join(f"{f.name}={getattr(residual, f.name)}" for f in fields(residual))
    return f"{type(residual).__name__}({given})"
