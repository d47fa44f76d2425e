"""Small spaces that tests share."""

import bodyplan as bp
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.parallel import Parallel
from bodyplan.space.macros.residual import DenseAverage, HyperConnections, Ladder, Residual, ValueResidual
from bodyplan.space.macros.stack import Stack
from bodyplan.space.operators.grouped_conv import GroupedConv
from bodyplan.space.operators.low_rank import LowRankMLP
from bodyplan.space.operators.moe import MoE


def make(width=None, body=None, recursion=None):
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=width or bp.choice(32, 64),
                    body=body or default_body(), recursion=recursion or bp.choice(bp.Once(), bp.Loop(times=2)),
                    head=bp.LanguageHead(tied=True))


def default_body():
    mixer = bp.choice(bp.Attention(heads=bp.choice(2, 4), window=bp.choice(None, 8)), bp.Identity())
    return bp.repeat(bp.Block(mixer=mixer, channel=bp.choice(bp.MLP(ratio=2), bp.Identity())), times=bp.integer(1, 3))


SPACES = {
    "hybrid": make(),
    "fixed depth": make(body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4))), times=2)),
    "tied": make(body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.tied(bp.choice(2, 4))),
                                         channel=bp.choice(bp.MLP(ratio=bp.choice(1, 2)), bp.Identity())),
                                times=bp.integer(0, 2))),
    "two parts": make(body=(bp.Block(mixer=bp.Attention(heads=2)),
                            bp.repeat(bp.choice(bp.Block(mixer=bp.Attention(heads=4)),
                                                bp.Block(channel=bp.MLP(ratio=bp.choice(1, 2)))), times=bp.choice(1, 2)))),
    "whole layers tied": make(body=bp.repeat(bp.tied(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4)))),
                                             times=bp.integer(1, 3))),
}


def sparse_space():
    experts = MoE(experts=bp.choice(2, 4), top_k=bp.choice(1, 2), ratio=1)
    channel = bp.choice(experts, LowRankMLP(ratio=2, rank=bp.choice(3, 5)))
    mixer = bp.choice(GroupedConv(kernel=bp.choice(2, 4), groups=bp.choice(2, 4)),
                      bp.Mamba2(state=bp.choice(4, 8), head_dim=8, groups=bp.choice(1, 2)))
    return make(width=bp.choice(16, 32), body=bp.repeat(bp.Block(mixer=mixer, channel=channel), times=bp.integer(1, 2)))


def macro_space():
    """Parts inside parts, each with a decision; streaming, so that everything below holds for it."""
    attention = bp.Attention(heads=4, kv_heads=bp.choice(1, 2), rotary=bp.choice(True, False))
    layer = bp.Block(mixer=attention, channel=bp.SwiGLU(bp.choice(1, 2)))
    residual = bp.choice(Residual(), DenseAverage(), ValueResidual(), HyperConnections(bp.choice(2, 3)), Ladder())
    return make(width=bp.choice(16, 32), body=(
        Stack(bp.repeat(layer, times=bp.integer(1, 3)), residual),
        bp.Block(mixer=Parallel((attention, bp.ShortConv(bp.choice(2, 4))), merge=bp.choice("sum", "gated", "concat"))),
        Looped(layer, bp.choice(bp.Once(), bp.Loop(times=2, lora_rank=bp.choice(1, 2))))))
