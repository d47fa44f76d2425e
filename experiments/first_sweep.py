"""The first sweep: hybrid byte-level language models on real English text, from a space to a standalone model.

Every layer chooses its mixer (softmax attention, gated delta rule, Mamba-2, gated short convolution, Hyena) and its
channel mixer; width, depth, FFN ratio, heads, windows and recursion are decisions too. `bodyplan demo` runs this file.
"""

from __future__ import annotations

import bodyplan as bp

__all__ = ["space", "sweep"]


def space() -> bp.Space:
    """About 10^11 hybrid decoders of two to five layers, up to 350,000 parameters."""
    mixer = bp.choice(
        bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2), window=bp.choice(None, 32)),
        bp.GatedDeltaNet(heads=bp.choice(1, 2)),
        bp.Mamba2(state=bp.choice(8, 16), head_dim=32),
        bp.ShortConv(kernel=bp.choice(3, 5)),
        bp.Hyena())
    channel = bp.choice(
        bp.SwiGLU(ratio=bp.choice(1, 2)),
        bp.MLP(ratio=bp.choice(2, 3), activation=bp.choice("gelu", "squared_relu")),
        bp.Identity())
    return bp.Space(
        embed=bp.TokenEmbedding(vocab=256),
        width=bp.choice(32, 48, 64),
        body=bp.repeat(bp.Block(mixer=mixer, channel=channel, norm=bp.RMSNorm()), times=bp.integer(2, 5)),
        recursion=bp.choice(bp.Once(), bp.Loop(times=2), bp.Loop(times=3), bp.Loop(times=2, lora_rank=4)),
        head=bp.LanguageHead(tied=True))


def sweep(minutes: float = 12.0, directory: str = "runs/first") -> bp.Sweep:
    """The complete study, scaled so that two CPU cores need about `minutes`.

    Half of the time trains the shared weights, a third a sample of candidates alone, which is what the rank correlation
    is measured against; the rest scores candidates and their random twin.
    """
    return bp.Sweep(
        space(),
        task=bp.tasks.text(length=128, batch=4),
        objectives=["loss", bp.latency("cpu", batch=1, length=128, phase="decode", budget_ms=30), "parameters"],
        strategy="evolution", trials=max(20, round(20 * minutes)), twin=True,
        supernet=True, supernet_steps=round(125 * minutes), supernet_strategy="sandwich",
        steps=round(35 * minutes), fidelity_sample=12 if minutes >= 6 else 6, retrain=3,
        executor="local", directory=directory, seed=0)
