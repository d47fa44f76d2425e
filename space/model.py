"""The module of a plan: embedding, residual layers, optional recursion with per-iteration LoRA, head.

Legend: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .axes import Param
from .macros.running import as_sequence, initial_state, step_part, without_attention
from .operator import leaf
from .operators.feature_table import feature_tables
from .plan import Plan
from .tree import matrices_of, placed

if TYPE_CHECKING:
    from .architecture import Architecture

__all__ = ["BlockModule", "LayerStack", "Layers", "LowRank", "SequenceModel", "Stepping", "Sublayer", "built_layers",
           "built_lora", "initialise"]

State = list[list[Any]]                  # [iteration][layer]
Shared = dict[str, Any]                  # what parts of one stream hand to each other: keys and values, a memory


class Sublayer(nn.Module):
    """`x + op(norm(x))`.

    hides: the keys and values that layers hand on are for their own mixers: not for a channel, nor for what is inside a
    macro.
    """

    def __init__(self, norm: nn.Module, op: nn.Module, spatial: bool = False, hides: bool = False):
        super().__init__()
        self.norm: Any = norm
        self.op: Any = op
        self.spatial, self.hides = spatial, hides

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        return x_BTD + self.branch(x_BTD, shared)

    def branch(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        """`op(norm(x))` alone."""
        given = without_attention(shared) if self.hides else shared
        return as_sequence(self.op, self.norm(x_BTD), self.spatial, given)

    def init_state(self, batch: int, dtype: torch.dtype, device: Any) -> Any:
        return initial_state(self.op, batch, dtype, device)

    def step(self, x_BTD: Tensor, state: Any, shared: Shared | None = None) -> tuple[Tensor, Any]:
        """With the operator's decode state; an operator without one works on each token alone."""
        y_BTD, state = self.step_branch(x_BTD, state, shared)
        return x_BTD + y_BTD, state

    def step_branch(self, x_BTD: Tensor, state: Any, shared: Shared | None = None) -> tuple[Tensor, Any]:
        given = without_attention(shared) if self.hides else shared
        return step_part(self.op, self.norm(x_BTD), state, self.spatial, given)


class BlockModule(nn.Module):
    """The sublayers of one layer; those of `Identity()` are None."""

    shares = True

    def __init__(self, mixer: Sublayer | None = None, channel: Sublayer | None = None):
        super().__init__()
        self.mixer, self.channel = mixer, channel

    def sublayers(self) -> list[tuple[str, Sublayer]]:
        """Those that exist, in order."""
        pairs = (("mixer", self.mixer), ("channel", self.channel))
        return [(name, sublayer) for name, sublayer in pairs if sublayer is not None]

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        for _, sublayer in self.sublayers():
            x_BTD = sublayer(x_BTD, shared)
        return x_BTD

    def step(self, x_BTD: Tensor, state: dict[str, Any], shared: Shared | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens and the state after them."""
        after = {}
        for name, sublayer in self.sublayers():
            x_BTD, after[name] = sublayer.step(x_BTD, state[name], shared)
        return x_BTD, after

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {name: sublayer.init_state(batch, dtype, device) for name, sublayer in self.sublayers()}


class LowRank(nn.Module):
    """One low-rank pair per iteration for one matrix."""

    def __init__(self, times: int, rank: int, rows: int, columns: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(times, rank, columns))
        self.B = nn.Parameter(torch.zeros(times, rows, rank))

    def forward(self, iteration: int) -> Tensor:
        return self.B[iteration] @ self.A[iteration]


class LayerStack(nn.Module):
    """Layers of a stream in order, `times` times over, with the low-rank pairs of their matrices where there are any."""

    shares = True

    def __init__(self, layers: list[nn.Module], times: int = 1, lora: dict[str, nn.Module] | None = None):
        super().__init__()
        self._hold(layers, times)
        self.lora = nn.ModuleDict(lora or {})

    def _hold(self, layers: list[nn.Module], times: int) -> None:
        self.times = times
        self.layers = nn.ModuleList(layers)

    def run(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        """All tokens at once through every iteration."""
        for iteration in range(self.times):
            for index, layer in enumerate(self.layers):
                if len(self.lora):
                    given = (x_BTD, shared) if shared is not None and getattr(layer, "shares", False) else (x_BTD,)
                    x_BTD = functional_call(layer, self._adapted(iteration, index), given)
                else:
                    x_BTD = as_sequence(layer, x_BTD, True, shared)
        return x_BTD

    def run_step(self, x_BTD: Tensor, state: State, shared: Shared | None = None) -> tuple[Tensor, State]:
        """The next tokens, with the state of every layer and iteration; the given state is left as it was."""
        after: State = []
        for iteration in range(self.times):
            states = []
            for index, layer in enumerate(self.layers):
                given = (x_BTD, state[iteration][index], shared)
                if len(self.lora):
                    weights = {f"layer.{name}": weight for name, weight in self._adapted(iteration, index).items()}
                    x_BTD, new = functional_call(Stepping(layer), weights, given)
                else:
                    x_BTD, new = step_part(layer, *given[:2], True, shared)
                states.append(new)
            after.append(states)
        return x_BTD, after

    def states(self, batch: int, dtype: torch.dtype, device: Any) -> State:
        """The states before the first token."""
        return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]

    def _adapted(self, iteration: int, index: int) -> dict[str, Tensor]:
        """A layer's parameters in one iteration: every matrix W becomes W + B[t] A[t]."""
        weights, prefix = {}, f"layers_{index}_"
        for name, weight in self.layers[index].named_parameters():
            key = prefix + name.replace(".", "_")
            weights[name] = weight + self.lora[key](iteration) if key in self.lora else weight
        return weights


class Layers(LayerStack):
    """A stack as a part of a larger module."""

    def forward(self, x_BTD: Tensor, shared: Shared | None = None) -> Tensor:
        return self.run(x_BTD, shared)

    def step(self, x_BTD: Tensor, state: State, shared: Shared | None = None) -> tuple[Tensor, State]:
        return self.run_step(x_BTD, state, shared)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> State:
        return self.states(batch, dtype, device)


def built_layers(items: Iterable[Any], width: int) -> list[nn.Module]:
    """The modules of items that follow one another, each at the width that reaches it."""
    made = []
    for item in items:
        made.append(item.build(width))
        width = item.out(width, 1)[0]
    return made


def built_lora(items: Iterable[Any], width: int, recursion: Any) -> dict[str, nn.Module]:
    """The low-rank pairs of every matrix that `recursion` repeats, by its name with underscores."""
    if not recursion.lora_rank:
        return {}
    found = {}
    for name, matrix in matrices_of(items, width):
        sizes = (recursion.times, recursion.lora_rank, *matrix.shape)
        found[name.replace(".", "_")] = leaf((LowRank, sizes), partial(LowRank, *sizes))
    return found


class Stepping(nn.Module):
    """A layer whose `forward` is its `step`: `functional_call` reaches `forward` alone."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor, state: Any, shared: Shared | None = None) -> tuple[Tensor, Any]:
        return step_part(self.layer, x_BTD, state, True, shared)


class SequenceModel(LayerStack):
    """A network as its plan says, ready to train. `forward(ids_BT)` gives logits; images give class scores.

    `forward(ids, source)` gives an encoder-decoder its second input. `init_state` and `step` decode token by token when
    every mixer streams; an encoder-decoder's source is given to `init_state`.
    """

    architecture: Architecture | None = None

    def __init__(self, plan: Plan):
        nn.Module.__init__(self)
        self.plan = plan
        self.embed = plan.embed.build(plan.width)                # in the order of the computation, as its names are read
        self._hold(built_layers(plan.layers, plan.width), plan.recursion.times)
        self.norm = plan.norm.build(plan.out_width)
        self.head = plan.head.build(plan.out_width)
        self.lora = nn.ModuleDict(built_lora(plan.layers, plan.width, plan.recursion))
        self.tied = bool(getattr(plan.head, "tied", False))

    def forward(self, inputs: Tensor, source: Tensor | None = None) -> Tensor:
        shared = None if source is None else {"source": self.embed(source)}
        return self._logits(self.run(self.embed(inputs), shared))

    @property
    def reads_source(self) -> bool:
        """Whether a part of it, such as an encoder, takes a second input."""
        return any(getattr(place.operator, "reads_source", False) for place in placed(self.plan.layers, self.plan.width, 1))

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None,
                   source: Tensor | None = None) -> Any:
        """The state before the first token, one per layer and iteration.

        source: [B, S], of a model that reads one. The first step puts it through the encoder; states after that hold what
        the decoder keeps of it.

        Raises ValueError when an operator cannot decode token by token, and for a source that is missing or not read.
        """
        self._check_decodes(batch, source)
        states = self.states(batch, dtype, device)
        return states if source is None else {"source": self.embed(source), "layers": states}

    def _check_decodes(self, batch: int, source: Tensor | None) -> None:
        for i, item in enumerate(self.plan.layers):
            for name, op in item.sublayers() if hasattr(item, "sublayers") else [("", item)]:
                if not op.streaming:
                    where = f"layers[{i}].{name}".rstrip(".")
                    raise ValueError(f"decoding needs operators with a state at {where}: {type(op).__name__} "
                                     "has none; use forward, or give its module init_state and step")
        if self.reads_source and source is None:
            raise ValueError("decoding needs the source that the encoder reads: got none; "
                             "write init_state(batch, source=ids), or generate(ids, tokens, source=ids)")
        if source is not None and not self.reads_source:
            raise ValueError("a source is read by an encoder: got one for a body without EncoderDecoder; leave it out")
        if source is not None and len(source) != batch:
            raise ValueError(f"a source has one row per sequence: got {len(source)} for a batch of {batch}")

    def step(self, ids_BT: Tensor, state: Any) -> tuple[Tensor, State]:
        """Logits of T >= 1 next tokens and the state after them; the given state is left as it was."""
        shared = None
        if isinstance(state, dict):                              # before the first token, where a source is read
            shared, state = {"source": state["source"]}, state["layers"]
        x_BTD, after = self.run_step(self.embed(ids_BT), state, shared)
        return self._logits(x_BTD), after

    def _logits(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.norm(x_BTD)
        return self.head(x_BTD, self.embed.weight) if self.tied else self.head(x_BTD)   # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, tokens: int, temperature: float = 1.0, top_k: int | None = None,
                 generator: torch.Generator | None = None, source: Tensor | None = None) -> Tensor:
        """Append `tokens` sampled tokens to `ids_BT`; temperature 0 takes the most likely. source: as for `init_state`."""
        state = self.init_state(len(ids_BT), next(self.parameters()).dtype, ids_BT.device, source)
        logits_BTV, state = self.step(ids_BT, state)
        for _ in range(tokens):
            next_B1 = _pick(logits_BTV[:, -1], temperature, top_k, generator)
            ids_BT = torch.cat([ids_BT, next_B1], dim=1)
            logits_BTV, state = self.step(next_B1, state)
        return ids_BT


def _pick(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    if top_k is not None:
        floor_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -math.inf)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)


def lora_matrices(plan: Plan) -> list[tuple[str, Param]]:
    """The matrices of the looped layers, by their names in the model."""
    return list(matrices_of(plan.layers, plan.width))


@torch.no_grad()
def initialise(tensor: Tensor, declared: Param, generator: torch.Generator) -> None:
    """Fill `tensor` as its declaration says. Raises ValueError for an unknown kind."""
    init = declared.init
    if init.kind == "linear":
        fan_in = math.prod(tensor.shape[1:]) or 1
        tensor.normal_(0.0, init.gain / math.sqrt(fan_in), generator=generator)
    elif init.kind == "last":
        tensor.normal_(0.0, init.gain / math.sqrt(tensor.shape[-1]), generator=generator)
    elif init.kind == "normal":
        tensor.normal_(0.0, init.gain, generator=generator)
    elif init.kind in ("zeros", "ones", "constant"):
        tensor.fill_({"zeros": 0.0, "ones": 1.0, "constant": init.low}[init.kind])
    elif init.kind.startswith("table:"):
        tensor.copy_(feature_tables.get(init.kind.removeprefix("table:"))(*tensor.shape))
    elif init.kind == "identity":
        tensor.zero_().fill_diagonal_(1.0)
    elif init.kind == "values":
        tensor.copy_(tensor.new_tensor(init.values).expand_as(tensor))
    elif init.kind == "uniform":
        tensor.uniform_(init.low, init.high, generator=generator)
    elif init.kind == "log_uniform":
        tensor.uniform_(math.log(init.low), math.log(init.high), generator=generator).exp_()
    elif init.kind == "a_log":
        tensor.uniform_(1.0, 16.0, generator=generator).log_()
    elif init.kind == "dt_bias":
        dt = tensor.uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp_()
        tensor.copy_(dt + torch.log(-torch.expm1(-dt)))
    else:
        raise ValueError(f"an initialisation is one of the kinds of axes.Init: got {init.kind!r}")
