"""Chunks that begin where a token is unlike the one before.

Legend: B batch, T tokens, K chunks, D width, E width of the inner layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import Param, axis, param
from ..operator import Source
from .base import Runs
from .chunking import Chunker
from .routing import compacted, count_of, gathered
from .running import initial_state

__all__ = ["DynamicChunkLayers", "DynamicChunks", "smoothed"]


def smoothed(x_BKD: Tensor, weight_BK: Tensor, before_BD: Tensor | None = None) -> Tensor:
    """m_k = w_k x_k + (1 - w_k) m_(k-1), the mean before the first being `before` or zero; in log2 K passes."""
    keep_BK1 = (1 - weight_BK).unsqueeze(-1)
    mean_BKD = weight_BK.unsqueeze(-1) * x_BKD
    if before_BD is not None:
        mean_BKD = torch.cat([mean_BKD[:, :1] + (keep_BK1[:, 0] * before_BD).unsqueeze(1), mean_BKD[:, 1:]], 1)
    reach = 1
    while reach < x_BKD.shape[1]:
        mean_BKD = mean_BKD + keep_BK1 * F.pad(mean_BKD, (0, 0, reach, 0))[:, :-reach]
        keep_BK1 = keep_BK1 * F.pad(keep_BK1, (0, 0, reach, 0))[:, :-reach]
        reach *= 2
    return mean_BKD


class DynamicChunkLayers(nn.Module):
    """Encoder, the tokens at which chunks begin through the inner layers, every token the mean of its chunk, decoder.

    Decoding, sequences come to boundaries at tokens of their own: there is a state of the inner layers per sequence, which
    moves at its boundaries alone. ahead: the inner layers are not causal, so every sequence is worked on alone, with nothing
    to fill it up.
    """

    def __init__(self, encoder: Any, inner: Any, decoder: Any, width: int, inner_width: int,
                 ratio: float = 6, ahead: bool = False):
        super().__init__()
        self.encoder: Any = encoder
        self.inner: Any = inner
        self.decoder: Any = decoder
        self.ratio, self.ahead = ratio, ahead
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.skip = nn.Linear(width, width)
        self.pad = nn.Parameter(torch.zeros(inner_width - width)) if inner_width > width else None

    def forward(self, x: Tensor) -> Tensor:
        if self.ahead and len(x) > 1:
            return torch.cat([self(row) for row in torch.split(x, 1)])
        x_BTD = self.encoder(x.flatten(1, -2))
        chance_BT, begins_BT, _ = self.boundaries(x_BTD)
        places_BK, _ = compacted(begins_BT)
        y_BKD = self.inner(self.widened(gathered(x_BTD, places_BK)))[..., :x_BTD.shape[-1]]
        mean_BKD = smoothed(y_BKD, chance_BT.gather(1, places_BK))
        mean_BTD = gathered(mean_BKD, begins_BT.cumsum(-1) - 1)
        y_BTD: Tensor = self.decoder(self.joined(x_BTD, mean_BTD, chance_BT, begins_BT))
        return y_BTD.view(x.shape)

    def boundaries(self, x_BTD: Tensor, key_B1D: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """How likely a chunk begins at each token, whether it does, and the keys; the first token of all begins one.

        key: that of the token before, None where there is none.
        """
        query_BTD, keys_BTD = F.normalize(self.query(x_BTD), dim=-1), F.normalize(self.key(x_BTD), dim=-1)
        first_B1D = torch.zeros_like(keys_BTD[:, :1]) if key_B1D is None else key_B1D
        before_BTD = torch.cat([first_B1D, keys_BTD[:, :-1]], 1)
        chance_BT = (0.5 - 0.5 * (query_BTD * before_BTD).sum(-1)).clamp(0, 1)
        if key_B1D is None:
            chance_BT = torch.cat([torch.ones_like(chance_BT[:, :1]), chance_BT[:, 1:]], 1)
        return chance_BT, chance_BT >= 0.5, keys_BTD

    def widened(self, x_BKD: Tensor) -> Tensor:
        """With the learned entries that the inner layers have beyond the stream's."""
        return x_BKD if self.pad is None else torch.cat([x_BKD, self.pad.expand(*x_BKD.shape[:-1], -1)], -1)

    def joined(self, x_BTD: Tensor, mean_BTD: Tensor, chance_BT: Tensor, begins_BT: Tensor) -> Tensor:
        """What reaches the decoder: the means, times one with the gradient of the confidence, and what the encoder gave."""
        sure_BT = torch.where(begins_BT, chance_BT, 1 - chance_BT)
        weight_BT = 1 + (sure_BT - sure_BT.detach())
        return weight_BT.unsqueeze(-1) * mean_BTD + self.skip(x_BTD)                  # type: ignore[no-any-return]

    def init_state(self, batch: int, dtype: torch.dtype = torch.float32, device: Any = None) -> dict[str, Any]:
        return {"encoder": initial_state(self.encoder, batch, dtype, device), "key": None,
                "inner": [initial_state(self.inner, 1, dtype, device) for _ in range(batch)],
                "mean": torch.zeros(batch, self.skip.out_features, dtype=dtype, device=device),
                "decoder": initial_state(self.decoder, batch, dtype, device)}

    def step(self, x_BTD: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next tokens; the inner layers take those at which chunks begin, sequence by sequence."""
        x_BTD, encoder = self.encoder.step(x_BTD, state["encoder"])
        chance_BT, begins_BT, keys_BTD = self.boundaries(x_BTD, state["key"])
        inner, means = [], []
        for row, before in enumerate(state["inner"]):
            mean_TD, after = self.step_row(x_BTD[row], chance_BT[row], begins_BT[row], state["mean"][row], before)
            means.append(mean_TD)
            inner.append(after)
        mean_BTD = torch.stack(means)
        y_BTD, decoder = self.decoder.step(self.joined(x_BTD, mean_BTD, chance_BT, begins_BT), state["decoder"])
        return y_BTD, {"encoder": encoder, "key": keys_BTD[:, -1:], "inner": inner, "mean": mean_BTD[:, -1],
                       "decoder": decoder}

    def step_row(self, x_TD: Tensor, chance_T: Tensor, begins_T: Tensor, mean_D: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The mean at each of the next tokens of one sequence; where no chunk begins the inner state stays as it was."""
        places_K = begins_T.nonzero().squeeze(-1)
        means_KD = mean_D.unsqueeze(0)
        if len(places_K):
            y_1KE, state = self.inner.step(self.widened(x_TD[places_K].unsqueeze(0)), state)
            new_1KD = smoothed(y_1KE[..., :x_TD.shape[-1]], chance_T[places_K].unsqueeze(0), means_KD)
            means_KD = torch.cat([means_KD, new_1KD.squeeze(0)])
        return means_KD[begins_T.cumsum(-1)], state


@dataclass(frozen=True)
class DynamicChunks(Chunker):
    """Dynamic chunking of H-Net (Hwang et al., 2025): a chunk begins where a token is unlike the one before.

    With q and k the encoder's output times matrices that start as the identity, p_t = (1 - cos(q_t, k_(t-1))) / 2, p_1 = 1,
    and a chunk begins at t where p_t is at least a half. The vectors at these tokens go through the inner layers, where a
    wider inner stream begins with the outer one and goes on with a learned vector; of its output the beginning is taken.
    Chunks become tokens by m_k = P_k y_k + (1 - P_k) m_(k-1), P_k being p of the chunk's first token; every token gets the
    m of its chunk, times one with the gradient of p_t (of 1 - p_t inside a chunk), plus a linear map of the encoder's
    output that starts at zero.

    ratio: tokens per chunk that `bp.ratio_loss` trains towards and costs are stated for; what ran is for `bp.measured_macs`
    to say. The encoder goes over all tokens and is causal; nested hierarchies are further stages. Decoding, the inner
    layers run at boundaries alone, each sequence of a batch at its own. The published code keeps p 1e-4 away from 0 and 1 in
    the mean, for its kernel; here it is as in the paper. `StreamNorm` is the norm its networks end with.
    """

    ratio: Any = 6
    begins_inside: ClassVar[bool] = True
    proof: ClassVar[str] = "tests/space/test_hierarchy.py -k dynamic"
    source: ClassVar[Source] = Source("Dynamic Chunking for End-to-End Hierarchical Sequence Modeling", 2025,
                                      systems=("S001",))

    def check(self, width: int, inner: int, where: str) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)) or not self.ratio > 1:
            raise ValueError(f"ratio is a number of tokens per chunk above 1 at {where}: got {self.ratio!r}; use 6")
        if inner < width:
            raise ValueError(f"the inner layers of dynamic chunks are no narrower than the stream at {where}: got {inner} "
                             f"inside {width}; use {width} or more")

    def axes(self, width: int, inner: int) -> dict[str, Param]:
        d, r = axis("width", width), axis("router", width)
        found = {"query.weight": param(r, d, init="identity"), "key.weight": param(r, d, init="identity"),
                 "skip.weight": param(d, d, init="zeros"), "skip.bias": param(d, init="zeros")}
        return found | ({"pad": param(axis("pad", inner - width), init="zeros")} if inner > width else {})

    def macs(self, width: int, inner: int, tokens: int) -> float:
        return float(3 * width * width * tokens)

    def decode_macs(self, width: int, inner: int) -> float:
        return float(3 * width * width)

    def state_numel(self, width: int, inner: int, tokens: int) -> int:
        return 2 * width

    def runs(self, field: str, tokens: int) -> Runs:
        if field != "inner":
            return Runs(((tokens, 1.0),), steps=((tokens, 1.0),), keeps=tokens)
        chunks = count_of(1 / self.ratio, tokens)
        return Runs(((chunks, 1.0),), steps=((chunks, 1 / self.ratio),), keeps=chunks)

    def build(self, encoder: nn.Module, inner: nn.Module, decoder: nn.Module, width: int, inner_width: int,
              ahead: bool) -> nn.Module:
        return DynamicChunkLayers(encoder, inner, decoder, width, inner_width, self.ratio, ahead)
