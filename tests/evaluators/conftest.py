"""A space small enough to train in a second, and one torch thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def space():
    import bodyplan as bp

    block = bp.Block(
        mixer=bp.Attention(heads=bp.choice(1, 2), window=bp.choice(4, None)),
        channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.MLP(), bp.Identity()))
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(8, 16),
                    body=bp.repeat(block, times=bp.integer(1, 2)),
                    recursion=bp.choice(bp.Once(), bp.Loop(times=2)), head=bp.LanguageHead(tied=True))


@pytest.fixture(scope="session")
def task():
    import bodyplan as bp

    return bp.tasks.text(length=16, batch=4, held_out_batches=2)
