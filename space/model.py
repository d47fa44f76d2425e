"""The module of a plan: embedding, residual layers, optional recursion with per-iteration LoRA, head.

Legend: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .axes import Param
from .plan import Block, Plan

if TYPE_CHECKING:
    from .architecture import Architecture

__all__ = ["BlockModule", "LowRank", "SequenceModel", "Sublayer", "initialise"]

State = list[list[dict[str, Any]]]       # [iteration][layer][sublayer]


class Sublayer(nn.Module):
    """`x + op(norm(x))`."""

    def __init__(self, norm: nn.Module, op: nn.Module):
        super().__init__()
        self.norm: Any = norm
        self.op: Any = op

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = self.op(self.norm(x_BTD))
        return x_BTD + y_BTD

    def step(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """With the operator's decode state; an operator without one works on each token alone."""
        if not hasattr(self.op, "step"):
            return self.forward(x_BTD), state
        y_BTD, state = self.op.step(self.norm(x_BTD), state)
        return x_BTD + y_BTD, state


class BlockModule(nn.Module):
    """The sublayers of one layer; those of `Identity()` are None."""

    def __init__(self, block: Block, width: int):
        super().__init__()
        built = {name: Sublayer(block.norm.build(width), op.build(width)) for name, op in block.sublayers()}
        self.mixer = built.get("mixer")
        self.channel = built.get("channel")

    def forward(self, x_BTD: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """All tokens at once without a state; the next tokens with one."""
        new_state = {}
        for name, sublayer in (("mixer", self.mixer), ("channel", self.channel)):
            if sublayer is None:
                continue
            if state is None:
                x_BTD = sublayer(x_BTD)
            else:
                x_BTD, new_state[name] = sublayer.step(x_BTD, state[name])
        return x_BTD, new_state

    def init_state(self, batch: int, dtype: torch.dtype, device: Any) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, sublayer in (("mixer", self.mixer), ("channel", self.channel)):
            if sublayer is not None:
                has_state = hasattr(sublayer.op, "init_state")
                state[name] = sublayer.op.init_state(batch, dtype=dtype, device=device) if has_state else {}
        return state


class LowRank(nn.Module):
    """One low-rank pair per iteration for one matrix."""

    def __init__(self, times: int, rank: int, rows: int, columns: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(times, rank, columns))
        self.B = nn.Parameter(torch.zeros(times, rows, rank))

    def forward(self, iteration: int) -> Tensor:
        return self.B[iteration] @ self.A[iteration]


class SequenceModel(nn.Module):
    """A network as its plan says, ready to train. `forward(ids_BT)` gives logits; images give class scores.

    `init_state` and `step` decode token by token when every mixer streams.
    """

    architecture: Architecture | None = None

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.times = plan.recursion.times
        self.embed = plan.embed.build(plan.width)
        self.layers = nn.ModuleList(BlockModule(block, plan.width) for block in plan.layers)
        self.norm = plan.norm.build(plan.width)
        self.head = plan.head.build(plan.width)
        self.tied = bool(getattr(plan.head, "tied", False))
        self.lora = nn.ModuleDict()
        if plan.recursion.lora_rank:
            for name, matrix in lora_matrices(plan):
                self.lora[name.replace(".", "_")] = LowRank(self.times, plan.recursion.lora_rank, *matrix.shape)

    def forward(self, inputs: Tensor) -> Tensor:
        x_BTD = self.embed(inputs)
        for iteration in range(self.times):
            for index in range(len(self.layers)):
                x_BTD, _ = self._layer(iteration, index, x_BTD, None)
        return self._logits(x_BTD)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> State:
        """The state before the first token, one per layer and iteration.

        Raises ValueError when an operator cannot decode token by token.
        """
        for i, block in enumerate(self.plan.layers):
            for name, op in block.sublayers():
                if not op.streaming:
                    raise ValueError(f"decoding needs operators with a state at layers[{i}].{name}: {type(op).__name__} "
                                     "has none; use forward, or give its module init_state and step")
        return [[layer.init_state(batch, dtype, device) for layer in self.layers] for _ in range(self.times)]  # type: ignore[operator]

    def step(self, ids_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of T >= 1 next tokens and the state after them; the given state is left as it was."""
        x_BTD = self.embed(ids_BT)
        new_state: State = []
        for iteration in range(self.times):
            states = []
            for index in range(len(self.layers)):
                x_BTD, after = self._layer(iteration, index, x_BTD, state[iteration][index])
                states.append(after)
            new_state.append(states)
        return self._logits(x_BTD), new_state

    def _layer(self, iteration: int, index: int, x_BTD: Tensor, state: dict[str, Any] | None) -> tuple[Tensor, Any]:
        layer = self.layers[index]
        if not len(self.lora):
            return layer(x_BTD, state)                                        # type: ignore[no-any-return]
        prefix = f"layers_{index}_"
        weights = {}
        for name, weight in layer.named_parameters():
            key = prefix + name.replace(".", "_")
            weights[name] = weight + self.lora[key](iteration) if key in self.lora else weight
        return functional_call(layer, weights, (x_BTD, state))                # type: ignore[no-any-return]

    def _logits(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.norm(x_BTD)
        return self.head(x_BTD, self.embed.weight) if self.tied else self.head(x_BTD)   # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, tokens: int, temperature: float = 1.0, top_k: int | None = None,
                 generator: torch.Generator | None = None) -> Tensor:
        """Append `tokens` sampled tokens to `ids_BT`; temperature 0 takes the most likely."""
        logits_BTV, state = self.step(ids_BT, self.init_state(len(ids_BT), next(self.parameters()).dtype, ids_BT.device))
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
    found = []
    for i, block in enumerate(plan.layers):
        for name, op in block.sublayers():
            for key, declared in op.axes(plan.width).items():
                if declared.is_matrix:
                    found.append((f"layers.{i}.{name}.op.{key}", declared))
    return found


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
