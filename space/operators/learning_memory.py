"""The module of memories that are networks, trained by their own errors while they read.

Legend: B batch, T tokens, D width, H heads, K key size, V value size, I and O inputs and outputs of a layer of the memory, P
numbers of a token that a chunk keeps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.gated_delta.chunked import chunked_gated_delta, gated_delta_step
from ...kernels.neural_memory.chunked import memory_chunk
from ...kernels.short_conv.naive import causal_conv

__all__ = ["LearningMemory", "memory_layers"]


def memory_layers(features: int, hidden: int, outputs: int, depth: int) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of every layer of a memory; a memory of one layer shares none with deeper ones."""
    if depth == 1:
        return [("only", features, outputs)]
    between = [(f"between_{n}", hidden, hidden) for n in range(1, depth - 1)]
    return [("first", features, hidden), *between, ("last", hidden, outputs)]


class LearningMemory(nn.Module):
    """Per head `S_t = eta_t S_{t-1} - theta_t grad_t`, `M_t = a_t M_{t-1} + S_t`, read as M_t(q_t), normalised and gated.

    Gradients are those of half the squared error |M(k) - v|^2 of the memory that the token's chunk began with, summed over
    a window of tokens; keys and queries are features of unit length. One projection gives queries, keys and values, which
    pass a short convolution and SiLU, then the gate, the logits of a and theta, and those of eta and of the weights in the
    window where there are such. theta is `rate` * sigmoid * (1 - eta), so that a lasting gradient moves the memory by
    `rate` a token, however long the momentum. One layer, chunks of one token and neither momentum nor window is the gated
    delta rule, by its kernel. The state holds the tokens of the chunk so far.
    """

    def __init__(self, heads: int, key_dim: int, value_dim: int, width: int, hidden: int, depth: int, degree: int,
                 conv: int, window: int, chunk: int, inner: str, rate: float):
        super().__init__()
        self.heads, self.key_dim, self.value_dim, self.degree = heads, key_dim, value_dim, degree
        self.window, self.chunk, self.muon, self.momentum, self.rate = window, chunk, inner == "muon", inner != "gd", rate
        self.is_delta = depth == window == chunk == 1 and inner == "gd"
        mixed = heads * (2 * key_dim + value_dim)
        self.sizes = [mixed, heads * value_dim, heads, heads, heads * self.momentum, heads * (window > 1)]
        self.input = nn.Linear(width, sum(self.sizes), bias=False)
        self.taps = nn.Parameter(torch.empty(mixed, conv)) if conv else None
        self.keep_bias = nn.Parameter(torch.empty(heads))
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.momentum_bias = nn.Parameter(torch.empty(heads)) if self.momentum else None
        features = key_dim if degree == 1 else 1 + key_dim + key_dim * key_dim
        layers = memory_layers(features, hidden, value_dim, depth)
        self.names = [name for name, _, _ in layers]
        self.memory = nn.ParameterDict({name: nn.Parameter(torch.empty(heads, o, i)) for name, i, o in layers})
        self.norm = nn.RMSNorm(value_dim, eps=1e-6)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        layers = [layer.detach().to(wide).mT.expand(batch, -1, -1, -1).contiguous() for layer in self.layers()]
        state = {f"memory_{n}": layer for n, layer in enumerate(layers)}
        if self.momentum:
            state |= {f"surprise_{n}": torch.zeros_like(layer) for n, layer in enumerate(layers)}
        if not self.is_delta:
            none = torch.zeros(batch, 0, self.heads, 2 * self.key_dim + self.value_dim + 4, dtype=wide, device=device)
            state |= {"before": none, "pending": none.clone()}
        if self.taps is not None:
            state["past"] = torch.zeros(batch, self.taps.shape[1] - 1, self.taps.shape[0], dtype=dtype, device=device)
        return state

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.step(x_BTD, None)[0]

    def layers(self) -> list[Tensor]:
        """The memory before the first token, from keys to values."""
        return [self.memory[name] for name in self.names]

    def step(self, x_BTD: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        mixed_BTM, gate_BTG, *logits = torch.split(self.input(x_BTD), self.sizes, dim=-1)
        after = {}
        if self.taps is not None:
            mixed_BTM, past = causal_conv(mixed_BTM, self.taps, None if state is None else state["past"])
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        token_BTHP = self.tokens(F.silu(mixed_BTM).to(wide), [part.to(wide) for part in logits])
        if self.is_delta:
            y_BTHV, after["memory_0"] = self.by_delta_rule(token_BTHP, state)
        else:
            y_BTHV, after = self.by_chunks(token_BTHP, state)
        if self.taps is not None:
            after["past"] = past
        y_BTG = self.norm(y_BTHV.to(x_BTD.dtype)).flatten(2) * F.silu(gate_BTG)
        return self.out(y_BTG), after

    def beginning(self, like_BTD: Tensor) -> list[Tensor]:
        """The memory before the first token of every sequence, [B, H, I, O] a layer, as it is trained."""
        wide = torch.promote_types(like_BTD.dtype, torch.float32)
        return [layer.to(wide).mT.expand(len(like_BTD), -1, -1, -1) for layer in self.layers()]

    def recall(self, x_BTD: Tensor, layers: list[Tensor], past_BWM: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What a memory of these layers answers to tokens that it does not learn, and the past of their convolution."""
        inner = self.heads * self.key_dim
        q_BTM = F.linear(x_BTD, self.input.weight[:inner])
        gate_BTG = F.linear(x_BTD, self.input.weight[self.sizes[0]:self.sizes[0] + self.sizes[1]])
        if self.taps is not None:
            q_BTM, past_BWM = causal_conv(q_BTM, self.taps[:inner], past_BWM)
        q_BTHK = torch.unflatten(F.silu(q_BTM).to(layers[0].dtype), -1, (self.heads, self.key_dim))
        q_BTHK = q_BTHK * torch.rsqrt(q_BTHK.square().sum(-1, keepdim=True) + 1e-6)
        y_BHTI = self.features(q_BTHK).transpose(1, 2)
        for number, layer_BHIO in enumerate(layers):
            y_BHTI = (F.silu(y_BHTI) if number else y_BHTI) @ layer_BHIO
        y_BTG = self.norm(y_BHTI.transpose(1, 2).to(x_BTD.dtype)).flatten(2) * F.silu(gate_BTG)
        return self.out(y_BTG), past_BWM

    def tokens(self, mixed_BTM: Tensor, logits: list[Tensor]) -> Tensor:
        """Query, key, value, log a, theta, log eta and weight of every token and head, side by side."""
        sizes = [self.heads * self.key_dim, self.heads * self.key_dim, self.heads * self.value_dim]
        q, k, v_BTHV = (part.view(*part.shape[:2], self.heads, -1) for part in torch.split(mixed_BTM, sizes, dim=-1))
        q, k = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6) for y in (q, k))
        keep_BTH, step_BTH = logits[0] + self.keep_bias, self.rate * torch.sigmoid(logits[1] + self.step_bias)
        zero_BTH = torch.zeros_like(keep_BTH)
        log_momentum_BTH = zero_BTH
        if self.momentum_bias is not None:
            log_momentum_BTH = F.logsigmoid(logits[2] + self.momentum_bias)
            step_BTH = step_BTH if self.muon else -step_BTH * torch.expm1(log_momentum_BTH)
        weight_BTH = torch.sigmoid(logits[3]) if self.window > 1 else zero_BTH + 1
        numbers = torch.stack([F.logsigmoid(keep_BTH), step_BTH, log_momentum_BTH, weight_BTH], dim=-1)
        return torch.cat([q, k, v_BTHV, numbers], dim=-1)

    def by_delta_rule(self, token_BTHP: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The gated delta rule answers after it fades, Titans before: with a v for v and theta / a for the strength both
        write the same."""
        sizes = [self.key_dim, self.key_dim, self.value_dim, 1, 1, 2]
        q, k, v, log_keep_BTH1, step_BTH1, _ = torch.split(token_BTHP, sizes, dim=-1)
        memory = self.memory["only"].to(q.dtype).mT.expand(len(q), -1, -1, -1) if state is None else state["memory_0"]
        rule = gated_delta_step if state is not None and q.shape[1] == 1 else chunked_gated_delta
        return rule(self.features(q), self.features(k), log_keep_BTH1.exp() * v, log_decay_BTH=log_keep_BTH1[..., 0],
                    beta_BTH=(step_BTH1 * torch.exp(-log_keep_BTH1))[..., 0], state_BHKV=memory)

    def by_chunks(self, token_BTHP: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        if state is None:
            layers = self.beginning(token_BTHP)
            surprise = [torch.zeros_like(layer) for layer in layers] if self.momentum else []
            before, pending = token_BTHP[:, :0], 0
        else:
            layers = [state[f"memory_{n}"] for n in range(len(self.memory))]
            surprise = [state[f"surprise_{n}"] for n in range(len(self.memory))] if self.momentum else []
            before, pending = state["before"], state["pending"].shape[1]
            token_BTHP = torch.cat([state["pending"], token_BTHP], dim=1)
        rows, part = [], token_BTHP[:, :0]
        for part in torch.split(token_BTHP, self.chunk, dim=1):
            y_BHCV, layers, surprise = self.chunk_of(part, before, layers, surprise)
            rows.append(y_BHCV)
            if part.shape[1] == self.chunk:
                seen = torch.cat([before, part], dim=1)
                before, part = seen[:, max(seen.shape[1] - self.window + 1, 0):], part[:, :0]
        after = {f"memory_{n}": layer for n, layer in enumerate(layers)}
        after |= {f"surprise_{n}": layer for n, layer in enumerate(surprise)}
        after |= {"before": before.clone(), "pending": part.clone()}
        return torch.cat(rows, dim=2).transpose(1, 2)[:, pending:], after

    def chunk_of(self, part: Tensor, before: Tensor, layers: list[Tensor],
                 surprise: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One chunk, or the beginning of one, with the tokens of the window before it."""
        size, sizes = part.shape[1], [self.key_dim, self.key_dim, self.value_dim, 4]
        q, k, v, numbers = torch.split(torch.cat([before, part], dim=1).transpose(1, 2), sizes, dim=-1)
        log_keep, step, log_momentum, weight = numbers.unbind(-1)
        return memory_chunk(self.features(q[:, :, -size:]), self.features(k), v, layers=layers, surprise=surprise,
                            log_keep_BHC=log_keep[..., -size:], step_BHC=step[..., -size:],
                            log_momentum_BHC=log_momentum[..., -size:] if self.momentum else None, weight_BHN=weight,
                            window=self.window, muon=self.muon, is_complete=size == self.chunk)

    def features(self, x: Tensor) -> Tensor:
        """All monomials up to the degree, weighed so that products of features are those of exp's series, to unit length."""
        if self.degree == 1:
            return x
        squares = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2)
        return torch.cat([torch.ones_like(x[..., :1]), x, squares], dim=-1) / math.sqrt(2.5)
