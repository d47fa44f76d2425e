"""A small space and cheap objectives that every test of the search shares."""

import hashlib
import sys

import bodyplan as bp
import cloudpickle
import pytest

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a conftest


def make_space(widths=(8, 16, 32), depth=3, **more):
    block = bp.Block(mixer=bp.choice(bp.Attention(heads=bp.choice(1, 2), window=bp.choice(None, 8)), bp.Identity()),
                     channel=bp.choice(bp.SwiGLU(ratio=bp.choice(1, 2)), bp.MLP(ratio=bp.choice(1, 2))))
    return bp.Space(embed=bp.TokenEmbedding(vocab=16), width=bp.choice(*widths),
                    body=bp.repeat(block, times=bp.integer(1, depth)), head=bp.LanguageHead(tied=True), **more)


def pseudo_loss(architecture):
    """Deterministic, better with size, with some noise that depends on the architecture alone."""
    noise = int(hashlib.sha256(architecture.hash.encode()).hexdigest()[:6], 16) / 16**6
    return 10 / (1 + architecture.cost().parameters / 4000) + noise


def make_sweep(directory, space=None, **more):
    given = {"objectives": [bp.Objective("loss", unit="nats", evaluate=pseudo_loss), "parameters"], "trials": 30,
             "tracking": False, "quiet": True, "seed": 3, "reference": [20.0, 1e5], **more}
    return bp.Sweep(space or make_space(), directory=directory, **given)


@pytest.fixture
def space():
    return make_space()


@pytest.fixture
def sweep_in(tmp_path):
    """Makes sweeps with directories of their own: `sweep_in("name", trials=...)`."""
    return lambda name, **more: make_sweep(tmp_path / name, **more)


@pytest.fixture
def trials_of():
    """What a sweep asked for and what came of it, without times: equal for equal searches."""
    def read(directory):
        with bp.Journal.open(directory) as journal:
            return [(t.number, t.stream, t.genome.key, t.state, dict(t.values), t.seed) for t in journal.trials()]
    return read


@pytest.fixture(name="pseudo_loss")
def pseudo_loss_function():
    return pseudo_loss
