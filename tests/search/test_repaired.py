"""A sweep under constraints that reject nearly everything: what was repaired is recorded, and replay finds it again."""

import bodyplan as bp
from bodyplan.space.constraints import cost, count

LIMIT = 8.93e7


def make_space():
    block = bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(2, 4)), bp.ShortConv(kernel=bp.choice(3, 4))),
                     channel=bp.choice(bp.MLP(ratio=bp.choice(1, 2, 3)), bp.Identity()))
    return bp.Space(embed=bp.TokenEmbedding(vocab=64), width=bp.choice(16, 32, 64), head=bp.LanguageHead(tied=True),
                    body=bp.repeat(block, times=bp.integer(3, 8)),
                    constraints=[cost("macs") >= LIMIT, count(bp.Attention) >= 2])


def asks_of(directory):
    with bp.Journal.open(directory) as journal:
        return [event.body for event in journal.events("ask")]


def test_repaired_candidates_are_recorded_and_found_again_by_replay(sweep_in):
    def sweep(trials):
        return sweep_in("run", space=make_space(), objectives=["parameters", "macs"], reference=[1e6, 1e9], trials=trials)

    front = sweep(6).run()
    assert all(point.architecture.cost().macs >= LIMIT for point in front.points)
    asks = asks_of(sweep(6).directory)
    flags = [flag for body in asks for flag in body["repaired"]]
    assert len(flags) == sum(len(body["genomes"]) for body in asks) and any(flags)
    sweep(10).run(resume=True)
    assert [body for body in asks_of(sweep(10).directory) if body in asks] == asks
    assert len(asks_of(sweep(10).directory)) > len(asks)
