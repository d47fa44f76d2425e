"""Attention to a random part of the tokens in training: groups by loops, what ties it to full attention, its savings."""

from __future__ import annotations

import math
from dataclasses import replace

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.graph import operator_label
from bodyplan.space.operators.subsampled_attention import shuffled
from bodyplan.testing import built, check_declaration, check_elasticity, count_macs
from exported_folders import assert_equal_to_the_module, export_all, judged
from operator_examples.softmax_attention import turned

torch.set_num_threads(1)
WHERE = "body[0].mixer"
CONFIGS = [bp.Attention(heads=2, subsample=bp.Subsample(keep=0.3)),
           bp.Attention(heads=4, kv_heads=2, rotary=False, subsample=bp.Subsample(keep=0.25, spread=4.0)),
           bp.Attention(heads=2, bidirectional=True, subsample=bp.Subsample(keep=0.4)),
           bp.Attention(heads=2, subsample=bp.Subsample(keep=0.01))]


def inputs(length, dtype=torch.float64, width=16):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def by_loops(w, config, x, order):
    """Pair by pair: token t reads those of its group."""
    (batch, length, _), (_, per_group, size) = x.shape, config.sizes(x.shape[-1])
    q, k, v = ((x @ w[f"{n}.weight"].T).view(batch, length, -1, size) for n in ("query", "key", "value"))
    if config.rotary:
        q, k = turned(q, config.rope_base), turned(k, config.rope_base)
    count = math.ceil(config.subsample.keep * length)
    group_of = {t: i // count for i, t in enumerate(order)}
    rows = []
    for t in range(length):
        seen = [s for s in range(length) if group_of[s] == group_of[t] and (config.bidirectional or s <= t)]
        row = []
        for h in range(config.heads):
            logit = torch.einsum("bsp,bp->bs", k[:, seen, h // per_group], q[:, t, h]) / math.sqrt(size)
            row.append(torch.einsum("bs,bsp->bp", logit.softmax(-1), v[:, seen, h // per_group]))
        rows.append(torch.cat(row, -1))
    return torch.stack(rows, 1) @ w["out.weight"].T


@pytest.mark.parametrize("config", CONFIGS, ids=operator_label)
@pytest.mark.parametrize("length", [1, 2, 23])
def test_a_token_reads_its_own_group_in_training(config, length):
    module, x = built(config, 16, dtype=torch.float64), inputs(length).requires_grad_()
    torch.manual_seed(3)
    order = shuffled(length, config.subsample.spread, x.device).tolist()
    assert sorted(order) == list(range(length))
    torch.manual_seed(3)
    ours, theirs = module(x), by_loops(dict(module.named_parameters()), config, x, order)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    leaves = [x, *module.parameters()]
    mine, wanted = (torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in (ours, theirs))
    torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS, ids=operator_label)
def test_outside_of_training_and_with_all_tokens_kept_it_is_attention_bit_for_bit(config):
    plain = built(replace(config, subsample=None), 16, dtype=torch.float32)
    x = inputs(21, torch.float32)
    for options, mode in ((config.subsample, False), (bp.Subsample(keep=1), True)):
        module = built(replace(config, subsample=options), 16).train(mode)
        module.load_state_dict(plain.state_dict())
        assert torch.equal(module(x), plain(x))
    if config.streaming:
        state, pieces = None, []
        for piece in x.split([9, 1, 11], 1):
            y, state = module.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), plain(x))
    assert replace(config, subsample=None).macs(16, 40) == config.macs(16, 40)


def test_every_pass_draws_anew_and_a_seed_repeats_it():
    module, x = built(CONFIGS[0], 16), inputs(21, torch.float32)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(module(x), first)


def test_no_token_reads_a_later_one_in_training():
    module, x = built(CONFIGS[1], 16), inputs(21, torch.float32)
    changed = x.clone()
    changed[:, 12:] += 1
    torch.manual_seed(0)
    y = module(x)
    torch.manual_seed(0)
    assert torch.equal(module(changed)[:, :12], y[:, :12])


def test_a_small_spread_keeps_neighbours_together():
    torch.manual_seed(0)
    near = torch.stack([(shuffled(64, 2.0, torch.device("cpu")) - torch.arange(64)).abs().float().mean() for _ in range(20)])
    far = torch.stack([(shuffled(64, None, torch.device("cpu")) - torch.arange(64)).abs().float().mean() for _ in range(20)])
    assert near.max() < 4 and far.min() > 12


def test_training_multiplies_the_share_that_is_kept():
    config = bp.Attention(heads=2, subsample=bp.Subsample(keep=0.125))
    module, x = built(config, 16), inputs(128, torch.float32)[:1]
    projections = config.matrix_numel(16) * 128
    dense = count_macs(module.eval(), x) - projections
    assert count_macs(module.train(), x) - projections == dense / 8


def test_it_declares_its_weights_and_shares_them():
    for config in CONFIGS:
        check_declaration(config, 16)
    with torch.random.fork_rng():
        evaluated = replace(CONFIGS[0], subsample=bp.Subsample(keep=1.0))
        check_elasticity([(evaluated, 16), (evaluated, 8)])


def test_the_ensemble_is_the_mean_of_sub_models():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=16, head=bp.LanguageHead(tied=False), body=bp.Block(
        mixer=bp.Attention(heads=2, subsample=bp.Subsample(keep=bp.choice(0.25, 0.5))), channel=bp.MLP(ratio=1)))
    assert space.size() == 2 and bp.Space.from_json(space.to_json()).hash == space.hash
    model = space.sample(0).build().eval()
    ids = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    found = bp.self_ensemble(model, ids, samples=3)
    assert not model.training
    torch.manual_seed(5)
    model.train()
    wanted = torch.stack([model(ids).softmax(-1) for _ in range(3)]).mean(0)
    assert torch.equal(found, wanted.detach())
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 12))
    one, other = (bp.self_ensemble(model, ids, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        bp.self_ensemble(model, ids, 0)


def test_an_exported_folder_reads_everything(tmp_path):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=False), body=bp.Block(
        mixer=bp.Attention(heads=2, subsample=bp.Subsample()), channel=bp.MLP(ratio=1)))
    architecture = space.sample(0)
    root = export_all(tmp_path, {"subsampled": architecture})
    assert_equal_to_the_module(judged(root, ["subsampled"])["subsampled"], root, "subsampled")


@pytest.mark.parametrize("config", CONFIGS, ids=operator_label)
def test_two_counters_of_multiply_adds_agree(config):
    module, x = built(config, 16).eval(), inputs(23, torch.float32)
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9)


@pytest.mark.parametrize(("options", "error", "text"), [
    ({"subsample": bp.Subsample(keep=0)}, ValueError, "keep must be a share"),
    ({"subsample": bp.Subsample(keep=True)}, ValueError, "keep must be a share"),
    ({"subsample": bp.Subsample(spread=-1)}, ValueError, "spread must be a number of places"),
    ({"subsample": 0.5}, TypeError, "subsample is a Subsample"),
    ({"subsample": bp.Subsample(), "window": 3}, ValueError, "subsample goes with plain softmax"),
    ({"subsample": bp.Subsample(), "cache": bp.Keyformer()}, ValueError, "subsample goes with plain softmax"),
    ({"subsample": bp.Subsample(), "sink": True}, ValueError, "subsample goes with plain softmax")])
def test_what_cannot_be_built_is_named(options, error, text):
    with pytest.raises(error, match=text):
        bp.Attention(heads=2, **options).check(16, WHERE)
