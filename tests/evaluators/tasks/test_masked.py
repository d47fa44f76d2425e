"""Tasks whose training inputs are hidden in part: what is hidden, what stays, and that a model trains on them."""

import pickle

import bodyplan as bp
import pytest
import torch

INNER = {"text": bp.tasks.text(length=40, batch=6, held_out_batches=1),
         "mqar": bp.tasks.mqar(pairs=3, length=32, vocab=24, batch=6, held_out_batches=1)}
every = pytest.mark.parametrize("name", INNER)


@every
@pytest.mark.parametrize("share", [0.15, 0.5, 0.001])
def test_a_share_of_each_training_sequence_is_hidden_and_nothing_else_changes(name, share):
    inner, task = INNER[name], bp.tasks.masked_inputs(INNER[name], share)
    places = []
    for step in range(4):
        plain, given = inner.batch("train", step, 5), task.batch("train", step, 5)
        hidden = given.inputs == inner.num_tokens
        length = given.inputs.shape[1]
        assert (hidden.sum(1) == max(1, int(share * length))).all() and not hidden[:, -1].any()
        assert torch.equal(given.inputs[~hidden], plain.inputs[~hidden]) and torch.equal(given.targets, plain.targets)
        assert (plain.inputs < inner.num_tokens).all()
        assert torch.equal(given.inputs, task.batch("train", step, 5).inputs)
        places.append(hidden)
    assert not torch.equal(places[0], places[1]) and len({tuple(row.tolist()) for row in torch.cat(places)}) > 4


def test_every_place_but_the_last_is_hidden_equally_often():
    task = bp.tasks.masked_inputs(bp.tasks.mqar(pairs=2, length=12, vocab=16, batch=2000), 0.25)
    often = (task.batch("train", 0, 0).inputs == 16).float().mean(0)
    assert often[:-1].tolist() == pytest.approx([3 / 11] * 11, abs=0.04)


@every
def test_what_is_held_out_is_seen_whole_and_scored_as_the_task_scores_it(name):
    inner, task = INNER[name], bp.tasks.masked_inputs(INNER[name])
    for split in ("validation", "test"):
        assert all(torch.equal(*pair) for pair in zip(inner.batch(split, 0, 0), task.batch(split, 0, 3), strict=True))
        assert inner.num_batches(split) == task.num_batches(split)
    assert (inner.metric, inner.unit, inner.goal) == (task.metric, task.unit, task.goal)
    model = network(task)
    assert task.score(model) == inner.score(model)
    batch = task.batch("train", 0, 0)
    assert task.loss(model, batch) == inner.loss_of(model(batch.inputs), inner.batch("train", 0, 0))


def network(task, vocab=None):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=vocab or task.num_tokens), width=16,
                     body=bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1)), head=bp.LanguageHead())
    task.check(space)
    return space.sample(0).build()


@every
def test_a_model_trains_on_it_and_is_used_without_a_mask(name):
    task = bp.tasks.masked_inputs(INNER[name])
    model = network(task)
    before = INNER[name].loss(model, INNER[name].batch("train", 100, 0)).item()
    record = bp.train(model, task, steps=25, lr=1e-2)
    assert record.steps == 25
    assert INNER[name].loss(model, INNER[name].batch("train", 100, 0)).item() < before
    assert model.embed.weight[task.mask_token].abs().sum() > 0


def test_the_settings_tell_tasks_apart_and_travel():
    task = bp.tasks.masked_inputs(INNER["mqar"], 0.2)
    assert pickle.loads(pickle.dumps(task)) == task
    others = [INNER["mqar"], bp.tasks.masked_inputs(INNER["mqar"]), bp.tasks.masked_inputs(INNER["text"], 0.2)]
    assert task.fingerprint not in {other.fingerprint for other in others} and len(task.fingerprint) == 16
    assert task.describe().endswith("; 20% of the training inputs hidden")


def test_what_does_not_fit_is_refused():
    task = bp.tasks.masked_inputs(INNER["text"])
    with pytest.raises(ValueError, match=r"hides tokens behind token 256 at embed: .*; use TokenEmbedding\(vocab=257\)"):
        network(task, vocab=256)
    with pytest.raises(ValueError, match="of at least 256 at embed"):
        network(task, vocab=255)
    for share in (0, 1, -0.1, True, "some"):
        with pytest.raises(ValueError, match="share is above 0 and below 1"):
            bp.tasks.masked_inputs(INNER["text"], share)
    for inner in (bp.tasks.images(), task, "text"):
        with pytest.raises(ValueError, match="hides tokens of a task that has them"):
            bp.tasks.masked_inputs(inner)
