# mypy: ignore-errors
# The text below goes into exported files, where comments for a type checker have no place.
"""The parts of an exported file that hold the operators together, as they stand before they are specialised.

Same computation, in the same order, as `space/model.py`. `Layer` and `Model` never run from here: export folds their
options to one architecture, then writes `Model.__init__` out layer by layer.

Legend: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..macros.running import as_sequence, initial_state, step_part, without_attention

__all__ = ["AdaptedLayer", "Layer", "LowRank", "Model", "Stepping", "Sublayer", "pick"]


class Sublayer(nn.Module):
    """`op(norm(x))`, to be added to the residual stream."""

    shares = True

    def __init__(self, norm: nn.Module, op: nn.Module, spatial: bool = False, hides: bool = False):
        super().__init__()
        self.norm, self.op, self.spatial, self.hides = norm, op, spatial, hides

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        return as_sequence(self.op, self.norm(x_BTD), self.spatial, without_attention(shared) if self.hides else shared)

    def init_state(self, batch: int, dtype: torch.dtype, device: Any) -> dict[str, Any]:
        return initial_state(self.op, batch, dtype, device)

    def step(self, x_BTD: Tensor, state: dict[str, Any],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        return step_part(self.op, self.norm(x_BTD), state, self.spatial,
                         without_attention(shared) if self.hides else shared)


class Layer(nn.Module):
    """Pre-norm residual layer."""

    shares = True

    def __init__(self, mixer: Sublayer | None = None, channel: Sublayer | None = None, mixer_streams: bool = False,
                 channel_streams: bool = False):
        super().__init__()
        self.mixer, self.channel = mixer, channel
        self.mixer_streams, self.channel_streams = mixer_streams, channel_streams

    def forward(self, x_BTD: Tensor, shared: dict[str, Any] | None = None) -> Tensor:
        if self.mixer is not None:
            x_BTD = x_BTD + self.mixer(x_BTD, shared)
        if self.channel is not None:
            x_BTD = x_BTD + self.channel(x_BTD, shared)
        return x_BTD

    def init_state(self, batch: int, dtype: torch.dtype, device: Any) -> dict[str, Any]:
        state = {}
        if self.mixer is not None and self.mixer_streams:
            state["mixer"] = self.mixer.op.init_state(batch, dtype=dtype, device=device)
        if self.channel is not None and self.channel_streams:
            state["channel"] = self.channel.op.init_state(batch, dtype=dtype, device=device)
        return state

    def step(self, x_BTD: Tensor, state: dict[str, Any],
             shared: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens and the state after them."""
        after = {}
        if self.mixer is not None:
            if self.mixer_streams:
                y_BTD, after["mixer"] = self.mixer.step(x_BTD, state["mixer"], shared)
                x_BTD = x_BTD + y_BTD
            else:
                x_BTD = x_BTD + self.mixer(x_BTD, shared)
        if self.channel is not None:
            if self.channel_streams:
                y_BTD, after["channel"] = self.channel.step(x_BTD, state["channel"], shared)
                x_BTD = x_BTD + y_BTD
            else:
                x_BTD = x_BTD + self.channel(x_BTD, shared)
        return x_BTD, after


class AdaptedLayer(Layer):
    """A layer called with other weights than its own (`functional_call` reaches `forward` alone)."""

    def forward(self, x_BTD: Tensor, state: dict[str, Any] | None = None) -> Any:
        """All tokens at once; with a state the next tokens, and the state after them."""
        return super().forward(x_BTD) if state is None else self.step(x_BTD, state)


class Stepping(nn.Module):
    """A layer whose `forward` is its `step`: `functional_call` reaches `forward` alone."""

    shares = True

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor, state: Any, shared: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        return step_part(self.layer, x_BTD, state, True, shared)


class LowRank(nn.Module):
    """One low-rank correction B[t] @ A[t] of one matrix per iteration t."""

    def __init__(self, times: int, rank: int, rows: int, columns: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(times, rank, columns))
        self.B = nn.Parameter(torch.zeros(times, rows, rank))

    def forward(self, iteration: int) -> Tensor:
        return self.B[iteration] @ self.A[iteration]


class Model(nn.Module):
    """The network."""

    def __init__(self, times: int, rank: int, tied: bool, streams: bool, wraps: bool, reads: bool):
        super().__init__()
        self.times, self.rank, self.tied, self.streams, self.wraps, self.reads = times, rank, tied, streams, wraps, reads

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Model:
        """Build the model and load `model.safetensors` from its folder; every name and shape must fit."""
        from safetensors.torch import load_file

        weights = load_file(str(Path(directory) / "model.safetensors"))
        model = cls().to(next(iter(weights.values())).dtype)
        model.load_state_dict(weights)
        return model.eval()

    def forward(self, ids_BT: Tensor, source: Tensor | None = None) -> Tensor:
        """Logits of the token after every position, shape (B, T, V)."""
        x_BTD = self.embed(ids_BT)
        shared = None if source is None else {"source": self.embed(source)}
        if self.rank:
            for iteration in range(self.times):
                for index, layer in enumerate(self.layers):
                    x_BTD = functional_call(layer, self.adapted(iteration, index), (x_BTD, shared))
        elif self.times > 1:
            for _ in range(self.times):
                for layer in self.layers:
                    x_BTD = as_sequence(layer, x_BTD, True, shared)
        else:
            for layer in self.layers:
                x_BTD = as_sequence(layer, x_BTD, True, shared)
        return self.logits(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        if self.tied:
            return self.head(self.norm(x_BTD), self.embed.weight)
        return self.head(self.norm(x_BTD))

    def adapted(self, iteration: int, index: int) -> dict[str, Tensor]:
        """A layer's parameters in one iteration: every matrix W becomes W + B[t] @ A[t]."""
        weights = {}
        for name, weight in self.layers[index].named_parameters():
            key = f"layers_{index}_" + name.replace(".", "_")
            weights[name] = weight + self.lora[key](iteration) if key in self.lora else weight
        return weights

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None,
                   source: Tensor | None = None) -> list[Any]:
        """The state before the first token."""
        if self.reads:
            if source is None:
                raise ValueError("decoding needs the source that the encoder reads: got none; give source=...")
            return {"source": self.embed(source), "layers": self.states(batch, dtype, device)}
        if self.times > 1:
            return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def states(self, batch: int, dtype: torch.dtype, device: Any) -> list[Any]:
        """The states of the layers before the first token."""
        if self.times > 1:
            return [[initial_state(layer, batch, dtype, device) for layer in self.layers] for _ in range(self.times)]
        return [initial_state(layer, batch, dtype, device) for layer in self.layers]

    def step(self, ids_BT: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Logits of T >= 1 next tokens and the state after them; the given state is left as it was."""
        x_BTD = self.embed(ids_BT)
        shared = None
        if self.reads and isinstance(state, dict):
            # Before the first token; later states hold what the decoder keeps of the source.
            shared, state = {"source": state["source"]}, state["layers"]
        after = []
        if self.rank:
            for iteration in range(self.times):
                states = []
                for index, layer in enumerate(self.layers):
                    weights = self.adapted(iteration, index)
                    if self.wraps:
                        weights = {f"layer.{name}": weight for name, weight in weights.items()}
                        layer = Stepping(layer)
                    x_BTD, new = functional_call(layer, weights, (x_BTD, state[iteration][index], shared))
                    states.append(new)
                after.append(states)
        elif self.times > 1:
            for iteration in range(self.times):
                states = []
                for layer, before in zip(self.layers, state[iteration], strict=True):
                    x_BTD, new = step_part(layer, x_BTD, before, True, shared)
                    states.append(new)
                after.append(states)
        else:
            for layer, before in zip(self.layers, state, strict=True):
                x_BTD, new = step_part(layer, x_BTD, before, True, shared)
                after.append(new)
        return self.logits(x_BTD), after

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, tokens: int, temperature: float = 1.0, top_k: int | None = None,
                 seed: int | None = None, source: Tensor | None = None) -> Tensor:
        """Append `tokens` sampled tokens to `ids_BT`; temperature 0 takes the most likely, `seed` makes it repeat."""
        generator = None if seed is None else torch.Generator(ids_BT.device).manual_seed(seed)
        if self.streams:
            state = self.init_state(len(ids_BT), next(self.parameters()).dtype, ids_BT.device, source)
            logits_BTV, state = self.step(ids_BT, state)
            for _ in range(tokens):
                next_B1 = pick(logits_BTV[:, -1], temperature, top_k, generator)
                ids_BT = torch.cat([ids_BT, next_B1], dim=1)
                logits_BTV, state = self.step(next_B1, state)
        else:
            for _ in range(tokens):
                next_B1 = pick(self(ids_BT, source)[:, -1], temperature, top_k, generator)
                ids_BT = torch.cat([ids_BT, next_B1], dim=1)
        return ids_BT


def pick(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Sample one token per row."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    if top_k is not None:
        floor_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -math.inf)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)
