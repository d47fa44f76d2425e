"""An operator whose matrices have the spectral norm that a learned number says.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..axes import Param, axis, param
from ..operator import Source
from .attention import Attention
from .checks import require_whole
from .wrapped import Wrapped

__all__ = ["Spectral", "SpectralOperator", "SpectralStepping", "spectral_norm"]


def spectral_norm(weight: Tensor, iterations: int) -> Tensor:
    """The largest singular value, by power iteration from the norms of the columns; gradients reach the matrix as those of
    u W v, with the singular vectors held."""
    with torch.no_grad():
        v = F.normalize(torch.linalg.vector_norm(weight, dim=0), dim=0)
        for _ in range(iterations):
            u = F.normalize(torch.mv(weight, v), dim=0)
            v = F.normalize(torch.mv(weight.mT, u), dim=0)
        u = F.normalize(torch.mv(weight, v), dim=0)
    return torch.dot(u, torch.mv(weight, v))


class SpectralStepping(nn.Module):
    """An operator whose `forward` is its `step`: `functional_call` reaches `forward` alone."""

    def __init__(self, op: nn.Module):
        super().__init__()
        self.op: Any = op

    def forward(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.op.step(x_BTD, state)                                            # type: ignore[no-any-return]


class SpectralOperator(nn.Module):
    """`op` with every matrix W as `gamma W / sigma(W)`, sigma its spectral norm."""

    def __init__(self, op: nn.Module, matrices: list[str], iterations: int):
        super().__init__()
        self.op: Any = op
        self.matrices, self.iterations = matrices, iterations
        self.gamma = nn.Parameter(torch.ones(len(matrices)))

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD: Tensor = functional_call(self.op, self.weights(""), (x_BTD,))
        return y_BTD

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
        return self.op.init_state(batch, dtype=dtype, device=device) if hasattr(self.op, "init_state") else {}

    def step(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The next tokens; an operator without a state works on each token alone."""
        if not hasattr(self.op, "step"):
            return self.forward(x_BTD), {} if state is None else state
        return functional_call(SpectralStepping(self.op), self.weights("op."), (x_BTD, state))  # type: ignore[no-any-return]

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The operator's matrices with the norms they have here, by name behind a prefix."""
        found = {}
        for number, name in enumerate(self.matrices):
            path, _, key = name.rpartition(".")
            weight = getattr(self.op.get_submodule(path), key)                      # what stands there may be a view
            found[prefix + name] = self.gamma[number] / spectral_norm(weight, self.iterations) * weight
        return found


@dataclass(frozen=True)
class Spectral(Wrapped):
    """sigmaReparam (Zhai et al., 2023): every matrix of an operator as `gamma W / sigma(W)`, gamma learned, 1 at first.

    op: the operator, whose numbers may be choices; between operators of other kinds choose outside,
    `choice(Spectral(Attention()), Spectral(MLP()))`. iterations: of the power method that finds sigma in every pass, from the
    norms of the columns on. The paper keeps the vectors and makes one iteration per training step; this way the norm
    depends on the matrix alone, so that weights may be shared and taken apart. `folded` puts the norms of a trained network
    into its matrices. Costs are those of the operator: `norm_macs` says what the iterations add to a pass.
    """

    op: Any = field(default_factory=Attention)
    iterations: Any = 8
    source: ClassVar[Source] = Source("Stabilizing Transformer Training by Preventing Attention Entropy Collapse", 2023,
                                      systems=("S265",))

    @property
    def fixed(self) -> Mapping[str, str]:                                            # type: ignore[override]
        return {**self.op.fixed, "matrices": "a number per matrix"}

    def check(self, width: int, where: str) -> None:
        self.check_inside(width, where, ("mixer", "channel"))
        require_whole("iterations", self.iterations, where)
        if not self.matrices(width):
            raise ValueError(f"there is a matrix to reparametrise at {where}: got {self.op!r}, which has none")

    def matrices(self, width: int) -> list[str]:
        """The names of the operator's matrices."""
        return [name for name, declared in self.op.axes(width).items() if declared.is_matrix]

    def axes(self, width: int) -> dict[str, Param]:
        gamma = param(axis("matrices", len(self.matrices(width))), share="own", init="ones")
        return {"gamma": gamma, **{f"op.{name}": declared for name, declared in self.op.axes(width).items()}}

    def build(self, width: int) -> nn.Module:
        return SpectralOperator(self.op.build(width), self.matrices(width), self.iterations)

    def norm_macs(self, width: int) -> float:
        """Multiply-adds of all power iterations, once per pass."""
        return float(2 * (self.iterations + 1) * self.op.matrix_numel(width))
