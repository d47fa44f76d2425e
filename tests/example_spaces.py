"""Small spaces that tests share."""

import bodyplan as bp


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
