"""Losses beside the task's: one pass for all of them, what a step does with them, and who has none."""

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.auxiliary import with_auxiliary
from bodyplan.search.journal import Journal

TASK = bp.tasks.text(length=16, batch=6, held_out_batches=2)
LAYER = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1))
CHUNKS = bp.Hierarchy(encoder=LAYER, decoder=LAYER, inner=LAYER, width=20, chunker=bp.DynamicChunks(3))
ROUTED = bp.Routed((LAYER,), capacity=0.5)
GATED = bp.GatedDepth((LAYER, LAYER), temperature=0.0)
EXITS = bp.EarlyExit((LAYER, LAYER), exits=(1,))


def space_of(*body):
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=16, body=(LAYER, *body), head=bp.LanguageHead(tied=True))


def model_of(*body):
    return space_of(*body).sample(0).build(seed=0)


def first(batch=TASK):
    return batch.batch("train", 0, 0)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def equal(one, two):
    return all((a is None and b is None) or torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(one, two, strict=True))


def test_one_pass_gives_what_each_function_gives():
    model, batch = model_of(CHUNKS, ROUTED, GATED).train(), first()
    weights = {"ratio": 0.5, "routing": 2.0, "gate": 0.25}
    logits, extra = with_auxiliary(model, TASK, batch, weights)
    alone = {"ratio": bp.ratio_loss, "routing": bp.routing_loss, "gate": bp.mean_gate}
    expected = sum(weight * alone[name](model, batch.inputs)[1] for name, weight in weights.items())
    assert torch.equal(logits, model(batch.inputs))
    assert extra.item() == pytest.approx(expected.item(), rel=1e-6) and expected.item() > 0.5
    assert equal(gradients(model, extra), gradients(model, expected))


def test_the_losses_of_exits_come_from_one_pass_too():
    model, batch = model_of(bp.EarlyExit((LAYER, LAYER), exits=(1,), leave="token"), GATED).train(), first()
    logits, extra = with_auxiliary(model, TASK, batch, {"exits": 0.5, "exit_distillation": 2.0, "halting": 3.0, "gate": 1.0})
    early, whole = bp.exit_logits(model, batch.inputs)
    expected = (0.5 * TASK.loss_of(early, batch) + 2 * bp.exit_distillation(model, batch.inputs)
                + 3 * bp.halting_loss(model, batch.inputs, batch.targets)
                + bp.mean_gate(lambda_of(model), batch.inputs)[1])
    assert torch.allclose(logits, whole) and extra.item() == pytest.approx(expected.item(), rel=1e-5)


def lambda_of(model):
    """The model, all of whose exits run: the gate that follows sees a batch per exit."""
    class Every:
        def modules(self):
            return model.modules()

        def __call__(self, inputs):
            return torch.cat(bp.exit_logits(model, inputs))

    return Every()


def test_a_step_follows_the_sum():
    kept, moved = model_of(GATED), model_of(GATED)
    options = dict(steps=1, optimizer="sgd", lr=0.1, clip=None, weight_decay=0.0, warmup=0.0)
    bp.train(moved, TASK, auxiliary={"gate": 5.0}, **options)
    kept.train()
    logits, mean = bp.mean_gate(kept, first().inputs)
    (TASK.loss_of(logits, first()) + 5 * mean).backward()
    for name, parameter in moved.named_parameters():
        before = kept.get_parameter(name)
        assert torch.allclose(parameter, before - 0.1 * before.grad, atol=1e-6), name


def test_micro_batches_add_up():
    whole, parts = model_of(GATED), model_of(GATED)
    for model, accumulate in ((whole, 1), (parts, 3)):
        bp.train(model, TASK, 2, optimizer="sgd", lr=0.1, clip=None, auxiliary={"gate": 1.0}, accumulate=accumulate)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_gates_close_when_open_ones_cost():
    means = []
    for auxiliary in (None, {"gate": 3.0}):
        model = model_of(GATED)
        bp.train(model, TASK, 30, lr=0.02, auxiliary=auxiliary)
        means.append(float(bp.mean_gate(model.train(), first().inputs)[1]))
    assert means[1] < 0.5 * means[0]


def test_short_numbers_train_with_them_too():
    model = model_of(GATED)
    record = bp.train(model, TASK, 3, dtype="bfloat16", auxiliary={"gate": 1.0})
    assert record.skipped == 0


@pytest.mark.parametrize("strategy", ["sandwich", "single_path"])
def test_subnets_without_such_layers_have_none_of_it(strategy):
    space = space_of(bp.choice(LAYER, ROUTED))
    nets = [bp.Supernet(space) for _ in range(2)]
    for net, auxiliary in zip(nets, (None, {"routing": 10.0}), strict=True):
        bp.train(net, TASK, 4, strategy=strategy, seed=1, auxiliary=auxiliary)
    routers = [net.tensors[address] for net in nets for address in net.tensors if address.endswith("router.weight")]
    assert len(routers) == 2 and not torch.equal(*routers)
    plain = next(a for a in (space.sample(seed) for seed in range(20)) if "router" not in " ".join(a.parameters))
    assert float(with_auxiliary(nets[0].subnet(plain), TASK, first(), {"routing": 1.0})[1]) == 0


def test_bad_losses_are_refused_before_work(tmp_path):
    model = model_of(GATED)
    before = [parameter.clone() for parameter in model.parameters()]
    for auxiliary, message in (({"gates": 1.0}, "one of ratio, routing"), ({"gate": 0}, "positive number"),
                               ({"gate": True}, "positive number"), ({"ratio": 1.0}, "DynamicChunks in a model: got none"),
                               ({"rate": 1.0, "exits": 1.0}, "a pass each")):
        with pytest.raises(ValueError, match=message):
            bp.train(model, TASK, 1, auxiliary=auxiliary)
    with pytest.raises(ValueError, match="got none in Supernet"):
        bp.train(bp.Supernet(space_of()), TASK, 1, auxiliary={"gate": 1.0})
    with pytest.raises(ValueError, match="got none in Space"):
        bp.Sweep(space_of(), TASK, trials=2, auxiliary={"gate": 1.0}, directory=tmp_path / "one")
    with pytest.raises(ValueError, match="without any"):
        bp.Sweep(space_of(GATED), objectives=["parameters", "macs"], trials=2, auxiliary={"gate": 1.0},
                 directory=tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_training_with_other_losses_is_another_one(tmp_path):
    model, file = model_of(GATED), tmp_path / "training.safetensors"
    bp.train(model, TASK, 2, checkpoint=file, auxiliary={"gate": 1.0})
    with pytest.raises(ValueError, match="auxiliary"):
        bp.train(model, TASK, 2, checkpoint=file, resume=True)


def test_candidates_of_a_sweep_are_trained_with_them(tmp_path):
    space = space_of(bp.choice(LAYER, GATED))
    losses = []
    for auxiliary in (None, {"gate": 20.0}):
        sweep = bp.Sweep(space, TASK, trials=2, steps=4, executor="inline", tracking=False, quiet=True, auxiliary=auxiliary,
                         directory=tmp_path / str(bool(auxiliary)))
        sweep.run()
        with Journal.open(sweep.directory) as journal:
            losses.append({trial.hash: trial.values["loss"] for trial in journal.trials("search")})
    assert losses[0].keys() == losses[1].keys() and len(losses[0]) == 2
    assert sum(losses[0][key] != losses[1][key] for key in losses[0]) == 1          # the one with gates
    with pytest.raises(bp.BodyplanError, match="another auxiliary"):
        bp.Sweep(space, TASK, trials=2, steps=4, executor="inline", tracking=False, quiet=True,
                 directory=tmp_path / "True").run(resume=True)
