"""Norms, and joins of what a sublayer gives to the stream; references token by token, from the papers' formulas."""

from __future__ import annotations

import math

import bodyplan as bp
import torch
from bodyplan.space.operator import Operator

__all__ = ["EXAMPLES", "REFERENCES", "UNVARIED"]

EXAMPLES: dict[str, list[tuple[Operator, int]]] = {
    "Add": [(bp.Add(), 16), (bp.Add(skip=0.5, branch=-2.0), 16)],
    "AdaGate": [(bp.AdaGate(), 16), (bp.AdaGate(), 8)],
    "AdaNorm": [(bp.AdaNorm(), 16), (bp.AdaNorm(eps=1e-3), 8)],
    "Affine": [(bp.Affine(), 16), (bp.Affine(), 8)],
    "Branched": [(bp.Branched(bp.SwiGLU(ratio=2), branches=3, steps=8, warmup=1000), 16),
                 (bp.Branched(bp.SwiGLU(ratio=1), branches=2, warmup=900), 8)],
    "AugmentedShortcut": [(bp.AugmentedShortcut(paths=3), 24), (bp.AugmentedShortcut(paths=2, block=4), 24),
                          (bp.AugmentedShortcut(paths=1, block=2), 8)],
    "Blend": [(bp.Blend(), 16), (bp.Blend(start=-1.0), 8)],
    "CRMSNorm": [(bp.CRMSNorm(), 15), (bp.CRMSNorm(eps=1e-3), 8)],
    "Frozen": [(bp.Frozen(bp.SwiGLU(ratio=2)), 16), (bp.Frozen(bp.SwiGLU(ratio=1)), 8)],
    "GatedResidual": [(bp.GatedResidual(), 16), (bp.GatedResidual("sigtanh", start=1.0), 16),
                      (bp.GatedResidual("highway"), 12), (bp.GatedResidual("output", rectified=False), 8),
                      (bp.GatedResidual("input"), 8)],
    "LayerScale": [(bp.LayerScale(), 16), (bp.LayerScale(init=0.5, per_channel=False), 16), (bp.LayerScale(init=0.1), 8)],
    "PRepBN": [(bp.PRepBN(steps=8, warmup=50), 16), (bp.PRepBN(warmup=60, momentum=0.3, eps=1e-3), 8)],
    "Spectral": [(bp.Spectral(bp.SwiGLU(ratio=2)), 16), (bp.Spectral(bp.SwiGLU(ratio=1), iterations=3), 8)],
    "TimeDependentNorm": [(bp.TimeDependentNorm(), 16), (bp.TimeDependentNorm(eps=1e-3), 8)],
}

UNVARIED: dict[str, dict[str, str]] = {
    "LayerScale": {"branch": "one number for the whole branch"},
    "Branched": {"one": "a number of its own"},
    "PRepBN": {"one": "a number of its own"},
    "Spectral": {"matrices": "the gated layer has three"},
    "TimeDependentNorm": {"ends": "the condition moves between two ends", "position": "a place between them is one number"},
}


def _crms(weights, config, x_BTD):
    """The RMS norm of the vector with its last entry put back."""
    whole = torch.cat([x_BTD, -x_BTD.sum(-1, keepdim=True)], -1)
    rms = torch.stack([(row.dot(row) / len(row) + config.eps).sqrt() for row in whole.flatten(0, 1)])
    return x_BTD / rms.view(*x_BTD.shape[:2], 1) * weights["weight"]


def _layer_norm(weights, config, x_BTD):
    rows = []
    for row in x_BTD.flatten(0, 1):
        row = row - row.sum() / len(row) if config.project else row
        rows.append(row / (row.dot(row) / len(row) + config.eps).sqrt() if config.scale else row)
    y_BTD = torch.stack(rows).view(x_BTD.shape) * weights["weight"]
    return y_BTD + weights["bias"] if config.bias else y_BTD


def _blend(weights, config, x_BTD, y_BTD):
    share = 1 / (1 + torch.exp(-weights["weight"]))
    return (1 - share) * x_BTD + share * y_BTD


REFERENCES = {"CRMSNorm": _crms, "LayerNorm": _layer_norm}


def standardised(row, eps):
    """Layer normalisation of one vector, without gain and shift."""
    centred = row - sum(row) / len(row)
    return centred / math.sqrt(float(centred.dot(centred)) / len(row) + eps)
