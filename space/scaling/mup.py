"""Starting values and learning rates that keep their meaning when a network grows wider or deeper.

In the usual parametrisation the best learning rate falls as the width grows. Under the maximal update parametrisation
(Tensor Programs V, Yang et al., 2022) every layer's activations move by about as much per step at any width, so a rate
found on a small model serves a large one. Its extension to depth (Tensor Programs VI, Yang et al., 2023; Bordelon et
al., 2023) divides what each residual branch adds, and how fast it learns, by the square root of the depth.

The rules are read off the named axes of two architectures, the one to train and a smaller `base`: a dimension grows
with the width where its size differs between them. For Adam, with r the ratio of a matrix's inputs to the base's:

    a matrix with growing inputs and outputs    starts at 1 / sqrt(inputs), as always    learns at 1 / r
    one with growing inputs alone               starts smaller by another 1 / sqrt(r)    learns at 1 / r
    a table of tokens, read times sqrt(width)   starts at 1 / sqrt(width), as always     learns at 1 / sqrt(r)
    anything else (gains, biases, filters)      starts as in the base                    learns at 1

and with q the ratio of depths, everything inside residual branches learns at 1 / sqrt(q) of that; what a branch adds to
the stream is divided by sqrt(q). The depth counts branches, those inside loops once per iteration.

All multipliers are folded into starting values and rates, so the module and its exported form stay as they are: to Adam,
which ignores the size of gradients, a weight m W that learns at m is the same as W behind a multiplier m. The branch's
multiplier goes into its last matrix (or the norm after it), unless `Stack(..., residual=DepthScale())` has it as a number of
its own, that of logits from a tied table into the gain of the final
norm, and the attention scale 1 / head_dim in place of 1 / sqrt(head_dim), where heads grow, into the queries.

Three limits. The branches of a loop share weights, so their sum is not one of independent terms, which the theory of depth
assumes. State spaces are outside of the theory of width (Vankadara et al., 2024); for them the rules are what the axes say.
Blocks whose norm stands after the sum, `placement="post"`, or alone after the operator, "out", are outside of the theory of
depth: such a norm undoes the branch's multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..axes import Param
from ..macros.residual_depth import DepthScale
from ..operators.custom import Custom
from .twins import Twin, twins

if TYPE_CHECKING:
    from ..architecture import Architecture
    from ..model import SequenceModel

__all__ = ["Mup", "mup"]

NOISE = 0.1              # of the spread of a user's own module, which is measured
SUBLAYERS = {"mixer", "channel"}
HEAD_AXES = {"head_dim", "half", "pairs"}
LAST = ("out.weight", "down.weight", "down_out.weight", "project.weight", "weight", "down")     # operators' output matrices


@dataclass(frozen=True)
class Mup:
    """How one architecture starts and learns so that settings found on a smaller base hold.

    init: factor on the usual starting values, by name of trained parameter. rates: factor on the learning rate, likewise,
    for the trainer's `rates`. width, depth: how many times wider and deeper than the base. output, attention: the folded
    factors on logits and on attention scores, the latter beside 1 / sqrt(head_dim). unfolded: branches that have nothing
    to fold the factor of depth into, such as pooling; they add at full size.

    Rates do not multiply weight decay; in a parameter group of torch's AdamW they would.
    """

    architecture: Architecture
    init: Mapping[str, float]
    rates: Mapping[str, float]
    width: float
    depth: float
    output: float
    attention: float
    unfolded: tuple[str, ...]

    def build(self, seed: int = 0, device: Any = None) -> SequenceModel:
        """The module with its starting values; those of `architecture.build(seed)` where nothing has grown."""
        import torch

        model = self.architecture.build(seed, device)
        tensors = dict(model.named_parameters())
        with torch.no_grad():
            for name, factor in self.init.items():
                if factor != 1.0 and tensors[name].device.type != "meta":
                    tensors[name].mul_(factor)
        return model

    def initialise(self, model: SequenceModel, seed: int = 0) -> None:
        """Give a module of this architecture the values of `build(seed)`, in place, whatever it holds now."""
        model.load_state_dict(self.build(seed).state_dict())


def mup(architecture: Architecture, base: Architecture) -> Mup:
    """The starting values and rates with which `architecture` behaves like `base`, a smaller network of the same kind.

    `base` has the same embedding, head and kinds of layers; `architecture.scale(...)` makes such pairs. At equal width and
    depth every factor is 1.

    Example:
        >>> import bodyplan as bp
        >>> space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, head=bp.LanguageHead(tied=True),
        ...                  body=bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=2)))
        >>> small = space.sample(0)
        >>> rules = mup(small.scale(width=128), base=small)
        >>> rules.rates["layers.0.channel.op.up.weight"], rules.rates["layers.0.channel.norm.weight"]
        (0.25, 1.0)

    Raises:
        ValueError: the two differ in more than width and depth, or a tied head has no norm with a gain before it.
    """
    found = {name: twin for name, twin in twins(architecture, base).items() if not twin.here.statistic}
    width, depth = architecture.plan.width / base.plan.width, _depth_ratio(architecture, base)
    rules = _Rules(found)
    attention = rules.fold_attention()
    unfolded = rules.fold_depth(depth ** -0.5, _branches(architecture), _scaled_stacks(architecture))
    output = width ** -0.5
    if getattr(architecture.plan.head, "tied", False):
        rules.fold_output(output)
    return Mup(architecture, rules.init, rules.rates, width, depth, output, attention, unfolded)


class _Rules:
    """The factors of every parameter as the rules are applied one after another."""

    def __init__(self, found: Mapping[str, Twin]):
        self.found = found
        factors = {name: _of_width(twin) for name, twin in found.items()}
        self.init = {name: start for name, (start, _) in factors.items()}
        self.rates = {name: rate for name, (_, rate) in factors.items()}

    def multiply(self, name: str, factor: float) -> None:
        """Put a multiplier of the output into a parameter that the output is linear in."""
        self.init[name] *= factor
        self.rates[name] *= factor

    def fold_attention(self) -> float:
        """1 / head_dim in place of 1 / sqrt(head_dim); returns the smallest factor on scores."""
        factors = [1.0]
        for name, twin in self.found.items():
            if twin.key == ("query_norm.weight" if getattr(twin.operator, "qk_norm", False) else "query.weight"):
                factors.append((_head_dim(twin.base) / _head_dim(twin.here)) ** 0.5)
                self.multiply(name, factors[-1])
        return min(factors)

    def fold_output(self, factor: float) -> None:
        """The multiplier of logits, into the final norm, since a tied table also embeds."""
        gains = [name for name, twin in self.found.items() if twin.prefix == "norm"]
        if not gains and factor != 1.0:
            raise ValueError("a tied head needs a final norm with a gain, which takes the multiplier of logits: got none; "
                             "use norm=RMSNorm(), or a head of its own")
        for name in gains:
            self.multiply(name, factor)

    def fold_depth(self, factor: float, branches: Mapping[str, int], scaled: tuple[str, ...]) -> tuple[str, ...]:
        """The multiplier and the slower learning of branches; returns the branches without a place for the multiplier.

        scaled: prefixes below which branches have their multiplier already.
        """
        last = {branch: self._last(branch) for branch in branches if not branch.startswith(scaled)}
        for name, twin in self.found.items():
            if SUBLAYERS & set(twin.prefix.split(".")):
                self.rates[name] *= factor
        for name in {name for names in last.values() for name in names}:
            self.multiply(name, factor)
        for name, twin in self.found.items():
            if twin.key == "B" and any(twin.matrix in names for names in last.values()):
                self.multiply(name, factor)
        return tuple(branch for branch, names in last.items() if not names)

    def _last(self, prefix: str) -> set[str]:
        """Parameters that the output of an operator is linear in: its last matrix with its bias, or the norm after it.

        Branches side by side without a projection of their own each have theirs.
        """
        after = f"{prefix.removesuffix('op')}out_norm"                       # Block(placement="peri")
        if f"{after}.weight" in self.found:
            return {name for name in (f"{after}.weight", f"{after}.bias") if name in self.found}
        own = {twin.key: twin for twin in self.found.values() if twin.prefix == prefix and twin.matrix is None}
        for key in LAST:
            if key in own and own[key].is_matrix and own[key].writes:
                stem = key.removesuffix("weight").rstrip(".")
                after = f"{stem}_norm".lstrip("_")
                last = (f"{after}.weight", f"{after}.bias")
                names = last if last[0] in own else (key, f"{stem}.bias".lstrip("."))
                return {f"{prefix}.{name}" for name in names if name in own}
        inner = {twin.prefix for twin in self.found.values() if twin.prefix.startswith(f"{prefix}.branches.")}
        return {name for branch in inner for name in self._last(branch)}


def _of_width(twin: Twin) -> tuple[float, float]:
    """The factors of start and rate for the growth of width."""
    if not twin.is_matrix:
        return 1.0, 1.0
    ratio = twin.inputs[0] / twin.inputs[1]
    if twin.operator.kind == "embedding" and [axis.name for axis in twin.here.dims[0].axes()] == ["vocab"]:
        return 1.0, ratio ** -0.5
    wanted = ratio ** -0.5 if twin.outputs[0] != twin.outputs[1] else 1.0 / ratio
    noise = NOISE if isinstance(twin.operator, Custom) else 1e-9
    is_usual = twin.here.init.kind == "zeros" or math.isclose(wanted, twin.spread, rel_tol=noise)
    return 1.0 if is_usual else wanted / twin.spread, 1.0 / ratio


def _head_dim(queries: Param) -> int:
    return math.prod(axis.size for axis in queries.dims[0].axes() if axis.name in HEAD_AXES)


def _depth_ratio(architecture: Architecture, base: Architecture) -> float:
    here, there = sum(_branches(architecture).values()), sum(_branches(base).values())
    return here / there if there else 1.0


def _scaled_stacks(architecture: Architecture) -> tuple[str, ...]:
    """Prefixes of the stacks whose sums have the multiplier of depth in them."""
    return tuple(f"{place.name}." for place in architecture.placed
                 if isinstance(getattr(place.operator, "residual", None), DepthScale))


def _branches(architecture: Architecture) -> dict[str, int]:
    """The residual branches by the prefix of their operator, and how often each runs."""
    recursions = ((place.name, getattr(place.operator, "recursion", None)) for place in architecture.placed)
    loops = [(f"{name}.", recursion.times) for name, recursion in recursions if recursion is not None]
    found = {}
    for prefix, _ in architecture.modules:
        if len(parts := prefix.split(".")) > 2 and parts[-1] == "op" and parts[-2] in SUBLAYERS:
            found[prefix] = math.prod(times for loop, times in loops if prefix.startswith(loop))
    return {prefix: times * architecture.plan.recursion.times for prefix, times in found.items()}
