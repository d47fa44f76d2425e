"""Two-layer channel mixing.

Legend: B batch, T tokens, D width, F hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import unknown
from ..axes import Axis, Init, Param, axis, param
from ..operator import Operator, Source
from .checks import require_whole
from .layernorm import LayerNormalisation

__all__ = ["MLP", "FeedForward", "PolynomialFeedForward", "check_ratio", "hidden_size", "keep_largest", "sub_norm_axes"]

ACTIVATIONS = ("gelu", "silu", "squared_relu", "relu", "abs")
POLYNOMIALS = ("poly_relu", "poly_norm")
MULTIPLE = 8


def hidden_size(ratio: float, width: int) -> int:
    """`ratio * width`, rounded up to a multiple of 8 so that rows stay aligned."""
    return MULTIPLE * math.ceil(round(ratio * width / MULTIPLE, 6))


def check_ratio(ratio: Any, where: str) -> None:
    """Raise ValueError unless `ratio` is a positive number."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
        raise ValueError(f"ratio must be a positive number at {where}: got {ratio!r}; it is hidden size over width, "
                         "such as 4; use Identity() for no channel mixer")


def keep_largest(h_BTF: Tensor, count: int) -> Tensor:
    """The `count` largest entries of each token; zeros elsewhere."""
    largest_BTK, index_BTK = h_BTF.topk(count, dim=-1)
    return torch.zeros_like(h_BTF).scatter(-1, index_BTK, largest_BTK)


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, each token alone."""

    def __init__(self, width: int, hidden: int, activation: str, sub_norm: bool = False, top_k: int | None = None):
        super().__init__()
        self.activation, self.top_k = activation, top_k
        self.up = nn.Linear(width, hidden, bias=False)
        self.sub_norm = LayerNormalisation(hidden) if sub_norm else None
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        if self.activation == "squared_relu":
            h_BTF = F.relu(h_BTF).square()
        elif self.activation == "relu":
            h_BTF = F.relu(h_BTF)
        elif self.activation == "gelu":
            h_BTF = F.gelu(h_BTF)
        elif self.activation == "abs":
            h_BTF = h_BTF.abs()
        elif self.activation == "sine":
            h_BTF = torch.sin(math.sqrt(2) * h_BTF)
        else:
            h_BTF = F.silu(h_BTF)
        if self.top_k is not None:
            h_BTF = keep_largest(h_BTF, self.top_k)
        if self.sub_norm is not None:
            h_BTF = self.sub_norm(h_BTF)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD


class PolynomialFeedForward(nn.Module):
    """`down(a_0 + sum of a_i u_i)`, u_i being the i-th power of relu(up(x)), or of up(x) over its root mean square."""

    def __init__(self, width: int, hidden: int, order: int, normalise: bool, sub_norm: bool = False,
                 top_k: int | None = None):
        super().__init__()
        self.normalise, self.top_k = normalise, top_k
        self.up = nn.Linear(width, hidden, bias=False)
        self.sub_norm = LayerNormalisation(hidden) if sub_norm else None
        self.down = nn.Linear(hidden, width, bias=False)
        self.coefficient = nn.Parameter(torch.empty(order))
        self.offset = nn.Parameter(torch.empty(1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.activated(self.up(x_BTD))
        if self.top_k is not None:
            h_BTF = keep_largest(h_BTF, self.top_k)
        if self.sub_norm is not None:
            h_BTF = self.sub_norm(h_BTF)
        y_BTD: Tensor = self.down(h_BTF)
        return y_BTD

    def activated(self, h_BTF: Tensor) -> Tensor:
        """The polynomial, in float32 at least: squares of cubes leave half precision at 7."""
        base_BTF = h_BTF.to(torch.promote_types(h_BTF.dtype, torch.float32))
        base_BTF = base_BTF if self.normalise else F.relu(base_BTF)
        power_BTF, total_BTF = base_BTF, self.offset.to(base_BTF.dtype)
        for i, coefficient in enumerate(self.coefficient.unbind()):
            power_BTF = power_BTF * base_BTF if i else base_BTF
            total_BTF = total_BTF + coefficient * (self.scaled(power_BTF) if self.normalise else power_BTF)
        return total_BTF.to(h_BTF.dtype)

    def scaled(self, power_BTF: Tensor) -> Tensor:
        """Over its root mean square."""
        return power_BTF * torch.rsqrt(power_BTF.square().mean(-1, keepdim=True) + 1e-6)


@dataclass(frozen=True)
class MLP(Operator):
    """Feed-forward sublayer (Vaswani et al., 2017). hidden = ratio * width, rounded up to a multiple of 8.

    activation: "gelu", "silu", "relu"; "squared_relu", the edit that Primer's search found (So et al., 2021); "abs", which
    makes features the most diverse in depth (Tensor Programs VI, Yang et al., 2023); "sine", sin(sqrt(2)
    up(x)), for fields over coordinates: the variance of 2 that its argument starts with is that of Implicit Neural
    Representations with Periodic Activation Functions (Sitzmann et al., 2020), the frequency a part of the matrix; or a
    polynomial with learned coefficients (Polynomial Composition Activations, Zhuo et al., 2024): "poly_relu" of relu(x),
    "poly_norm" of x, each power over its root mean square (the paper writes the Euclidean norm, its published code the root
    mean square, which is taken here; they differ by a factor that the next layer takes up).
    sub_norm: a layer norm before the last matrix (Foundation Transformers, Wang et al., 2022).
    order: the highest power of a polynomial. top_k: hidden units that are kept for a token, the largest; None for all
    (the Top-k Transformer of The Lazy Neuron Phenomenon, Li et al., 2022, keeps some of relu's). What is left out is
    multiplied all the same.
    """

    ratio: Any = 4
    activation: Any = "gelu"
    sub_norm: Any = False
    order: Any = 3
    top_k: Any = None
    kind: ClassVar[str] = "channel"
    fixed: ClassVar[Mapping[str, str]] = {"powers": "a power of the input"}
    source: ClassVar[Source] = Source("Primer: Searching for Efficient Transformers for Language Modeling", 2021,
                                      systems=("S254",), options=("S239", "S180"))

    @property
    def chooses(self) -> bool:                                                        # type: ignore[override]
        return self.top_k is not None

    def check(self, width: int, where: str) -> None:
        check_ratio(self.ratio, where)
        known = (*ACTIVATIONS, "sine", *POLYNOMIALS)
        if self.activation not in known:
            raise ValueError(f"{unknown('activation', self.activation, known)} (at {where})")
        require_whole("order", self.order, where)
        if self.top_k is not None:
            require_whole("top_k", self.top_k, where, instead="use None to keep all hidden units")
            hidden = hidden_size(self.ratio, width)
            if self.top_k > hidden:
                raise ValueError(f"top_k must not exceed the hidden size at {where}: got {self.top_k} and {hidden}; use at "
                                 f"most {hidden}")

    def axes(self, width: int) -> dict[str, Param]:
        d, f = axis("width", width), axis("hidden", hidden_size(self.ratio, width))
        declared = {"up.weight": param(f, d), "down.weight": param(d, f), **sub_norm_axes(f, self.sub_norm)}
        if self.activation in POLYNOMIALS:
            equal = Init("constant", low=1 / self.order)
            declared["coefficient"] = param(axis("powers", self.order), share="own", init=equal)
            declared["offset"] = param(axis("constant", 1), share="own", init="zeros")
        return declared

    def build(self, width: int) -> nn.Module:
        hidden, sub_norm = hidden_size(self.ratio, width), bool(self.sub_norm)
        if self.activation in POLYNOMIALS:
            return PolynomialFeedForward(width, hidden, self.order, self.activation == "poly_norm", sub_norm, self.top_k)
        return FeedForward(width, hidden, self.activation, sub_norm, self.top_k)


def sub_norm_axes(hidden: Axis, sub_norm: bool) -> dict[str, Param]:
    """Gain and shift of a layer norm of the hidden units, where there is one."""
    return {"sub_norm.weight": param(hidden, share="own", init="ones"),
            "sub_norm.bias": param(hidden, share="own", init="zeros")} if sub_norm else {}
