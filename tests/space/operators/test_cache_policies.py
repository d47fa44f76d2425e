"""Policies for the cache of attention: what is kept, by loops over tokens; what ties them to full attention."""

from __future__ import annotations

import math
from dataclasses import replace

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.graph import operator_label
from bodyplan.space.operators.caching_attention import gumbel_noise
from bodyplan.testing import (
    built,
    check_batch,
    check_causality,
    check_costs,
    check_elasticity,
    check_order,
    check_prefill,
    check_reference,
    check_state,
    check_streaming,
)
from exported_folders import assert_equal_to_the_module, export_all, judged
from operator_examples.softmax_attention import rms, turned

torch.set_num_threads(1)
WHERE = "body[0].mixer"
POLICIES = [
    bp.Keyformer(budget=9), bp.Keyformer(budget=10, recent=0, prompt=20, end=5.0, horizon=7, seed=3),
    bp.Keyformer(budget=4, recent=4), bp.HeavyHitters(budget=8), bp.HeavyHitters(budget=7, recent=2, prompt=15),
    bp.RecentTokens(budget=6, sinks=2), bp.RecentTokens(budget=1, sinks=0, prompt=5)]
CONFIGS = [*(bp.Attention(heads=2, cache=policy) for policy in POLICIES),
           bp.Attention(heads=4, kv_heads=2, qk_norm=True, rotary=False, cache=bp.Keyformer(budget=6)),
           bp.Attention(heads=4, kv_heads=1, sub_norm=False, cache=bp.HeavyHitters(budget=5))]


def inputs(length, batch=2, dtype=torch.float32, width=16):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def noise_of(h, t, s, seed):
    """Of one head, query and key, with whole numbers of any size."""
    place = ((t * 1000003 + h) * 1000003 + s) ^ (seed * 7919)
    bits = ((place ^ (place >> 29)) + 0x9E3779B9) % 2**32
    for multiplier in (0x45D9F3B, 0x119DE1F3):
        bits = (bits ^ (bits >> 16)) * multiplier % 2**32
    uniform = min(max(((bits ^ (bits >> 16)) + 0.5) / 2**32, 1e-9), 1 - 1e-7)
    return -math.log(-math.log(uniform))


def dropped(policy, held, f, length):
    """What a head keeps after `length` tokens: held are its tokens, f their scores."""
    if length < policy.limit or len(held) <= policy.budget:
        return held
    old = [s for s in held if s not in held[len(held) - policy.kept_last:]]
    ranked = sorted(old, key=lambda s: (s < policy.kept_first, f.get(s, 0.0)), reverse=True)
    stay = set(ranked[:policy.budget - policy.kept_last]) | (set(held) - set(old))
    return [s for s in held if s in stay]


def weights_for_keeping(policy, x, h, t, places):
    if policy.score == "weights":
        return x.softmax(-1)
    start, end, horizon, seed = policy.noise()
    tau = start + (end - start) * min(max(t - policy.limit + 1, 0), horizon) / horizon
    zeta = torch.tensor([noise_of(h, t, j, seed) for j in range(len(places))], dtype=x.dtype)
    return ((x + zeta) / tau).softmax(-1)


def by_loops(w, config, x):
    """Token after token, each key/value head with a list of the tokens it holds."""
    (batch, length, _), (groups, per_group, size) = x.shape, config.sizes(x.shape[-1])
    q, k, v = ((x @ w[f"{n}.weight"].T).view(batch, length, -1, size) for n in ("query", "key", "value"))
    if config.qk_norm:
        q, k = rms(q, w["query_norm.weight"]), rms(k, w["key_norm.weight"])
    if config.rotary:
        q, k = turned(q, config.rope_base), turned(k, config.rope_base)
    rows = []
    for b in range(batch):
        held, scores = [[] for _ in range(groups)], [{} for _ in range(groups)]
        for t in range(length):
            row = []
            for h in range(config.heads):
                g = h // per_group
                places = [*held[g], t]
                logit = k[b, places, g] @ q[b, t, h] / math.sqrt(size)
                row.append(logit.softmax(-1) @ v[b, places, g])
                if config.cache.score is not None:
                    for s, more in zip(places, weights_for_keeping(config.cache, logit.detach(), h, t, places), strict=True):
                        scores[g][s] = scores[g].get(s, 0.0) + float(more)
            held = [dropped(config.cache, [*held[g], t], scores[g], t + 1) for g in range(groups)]
            rows.append(torch.cat(row))
    return torch.stack(rows).view(batch, length, -1) @ w["out.weight"].T


@pytest.mark.parametrize("config", CONFIGS, ids=operator_label)
def test_a_policy_keeps_what_its_paper_says(config, monkeypatch):
    monkeypatch.setattr("bodyplan.testing.behaviour.LENGTHS", (1, 9, 31))
    check_reference(config, 16, by_loops)


@pytest.mark.parametrize("config", CONFIGS[::2], ids=operator_label)
def test_a_policy_keeps_the_contract(config):
    check_causality(config, 16)
    check_streaming(config, 16)
    check_prefill(config, 16)
    check_state(config, 16)
    check_costs(config, 16)
    check_batch(config, 16)
    check_order(config, 16)
    check_elasticity([(config, 16), (config, 8)])


@pytest.mark.parametrize("policy", [bp.Keyformer(budget=33), bp.Keyformer(budget=5, prompt=33), bp.HeavyHitters(budget=33),
                                    bp.RecentTokens(budget=33)], ids=operator_label)
def test_as_long_as_everything_fits_it_is_full_attention_bit_for_bit(policy):
    plain = bp.Attention(heads=4, kv_heads=2)
    cached = replace(plain, cache=policy)
    full, module, x = built(plain, 16), built(cached, 16), inputs(33)
    module.load_state_dict(full.state_dict())
    assert torch.equal(module(x), full(x))
    (_, here), (_, there) = module.step(x[:, :20], None), full.step(x[:, :20], None)
    for t in range(20, 33):
        (y, here), (z, there) = module.step(x[:, t:t + 1], here), full.step(x[:, t:t + 1], there)
        assert torch.equal(y, z)
    assert not torch.equal(module(inputs(60)), full(inputs(60)))


def test_only_the_newest_tokens_are_a_window():
    cached = built(bp.Attention(heads=2, cache=bp.RecentTokens(budget=6, sinks=0)), 16, dtype=torch.float64)
    window = built(bp.Attention(heads=2, window=7), 16, dtype=torch.float64)
    window.load_state_dict(cached.state_dict())
    torch.testing.assert_close(cached(inputs(40, dtype=torch.float64)), window(inputs(40, dtype=torch.float64)))


def test_hot_keyformer_keeps_the_oldest():
    """At a high temperature all weights of a query are alike, so that a token's score is how often it was read."""
    hot = built(bp.Attention(heads=2, cache=bp.Keyformer(budget=6, recent=3, start=1e9, end=1e9)), 16, dtype=torch.float64)
    _, state = hot.step(inputs(40, dtype=torch.float64), None)
    first = built(bp.Attention(heads=2, cache=bp.RecentTokens(budget=6, sinks=3)), 16, dtype=torch.float64)
    _, wanted = first.step(inputs(40, dtype=torch.float64), None)
    torch.testing.assert_close(state["key"], wanted["key"])


def test_the_state_stops_growing_when_the_budget_is_full():
    config = bp.Attention(heads=2, cache=bp.Keyformer(budget=8, prompt=12))
    module, x = built(config, 16), inputs(60, batch=1)
    held = []
    _, state = module.step(x[:, :10], None)
    for t in range(10, 60):
        _, state = module.step(x[:, t:t + 1], state)
        held.append(sum(v.numel() for v in state.values() if isinstance(v, torch.Tensor)))
    assert held[0] == 11 * (2 * 16 + 2) and set(held[1:]) == {8 * (2 * 16 + 2)} == {config.state_numel(16, 60)}
    assert config.decode_macs(16, 10**6) == config.decode_macs(16, 60)


def test_noise_is_gumbel_and_repeats():
    noise = gumbel_noise(4, 100, 50, 80, 1, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(noise[:2, 10:, :30], gumbel_noise(2, 110, 40, 30, 1, torch.zeros(1, dtype=torch.float64)))
    assert abs(noise.mean().item() - 0.5772) < 0.03 and abs(noise.var().item() - math.pi**2 / 6) < 0.06
    assert not torch.equal(noise, gumbel_noise(4, 100, 50, 80, 2, noise))
    for a, b in ((noise[:, :-1], noise[:, 1:]), (noise[..., :-1], noise[..., 1:]), (noise[:-1], noise[1:])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 0.03


def test_a_key_token_outlives_the_window():
    """A token that all others look at stays for ever; with the newest alone it is gone."""
    module = built(bp.Attention(heads=1, rotary=False, cache=bp.Keyformer(budget=6, recent=3)), 16)
    recent = built(bp.Attention(heads=1, rotary=False, cache=bp.RecentTokens(budget=6, sinks=0)), 16)
    with torch.no_grad():
        for part in (module, recent):
            part.query.weight.copy_(torch.eye(16))
            part.key.weight.copy_(torch.eye(16))
    x = torch.nn.functional.normalize(inputs(80, batch=1), dim=-1)
    x[..., 0], x[:, 2] = 2.0, torch.eye(16)[0] * 9
    assert (module.step(x, None)[1]["key"][0, :, 0, 0] == 9).sum() == 1
    assert (recent.step(x, None)[1]["key"][0, :, 0, 0] == 9).sum() == 0


def test_a_trained_network_is_decoded_with_a_policy_and_policies_share_weights():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=False), body=bp.repeat(bp.Block(
        mixer=bp.Attention(heads=2, cache=bp.choice(None, bp.Keyformer(budget=bp.choice(4, 8)), bp.RecentTokens(budget=5,
                           sinks=1))), channel=bp.MLP(ratio=1)), 2))
    assert space.size() == 16
    net, ids = bp.Supernet(space, seed=0), torch.randint(32, (2, 30), generator=torch.Generator().manual_seed(0))
    again, found = bp.Space.from_json(space.to_json()), {}
    for architecture in map(space.architecture, space.enumerate()):
        found[architecture.hash] = model = net.extract(architecture).eval()
        weights = model.state_dict()
        assert all(torch.equal(weights[name], other) for name, other in next(iter(found.values())).state_dict().items())
        assert bp.Architecture.from_json(architecture.to_json(), again).hash == architecture.hash
    assert len(found) == 16 and len({model(ids).sum().item() for model in found.values()}) == 16
    generated = model.generate(ids, 20, temperature=0)
    assert torch.equal(generated, model.generate(ids, 20, temperature=0))


def test_an_exported_folder_drops_what_the_module_drops(tmp_path):
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=False), body=tuple(bp.Block(
        mixer=bp.Attention(heads=4, kv_heads=2, cache=policy), channel=bp.MLP(ratio=1)) for policy in (
            bp.Keyformer(budget=4, horizon=5), bp.HeavyHitters(budget=5, prompt=6), bp.RecentTokens(budget=4, sinks=1))))
    root = export_all(tmp_path, {"policies": space.sample(0)})
    verdict = judged(root, ["policies"])["policies"]
    assert verdict["steps"]
    assert_equal_to_the_module(verdict, root, "policies")


@pytest.mark.parametrize("config", CONFIGS, ids=operator_label)
@pytest.mark.parametrize("length", [2, 30])
def test_two_counters_of_multiply_adds_agree(config, length):
    module, x = built(config, 16).eval(), inputs(length, batch=1)
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9)


@pytest.mark.parametrize(("policy", "text"), [
    (bp.Keyformer(budget=0), "budget must be a whole number"), (bp.Keyformer(recent=257), "what always stays must fit"),
    (bp.RecentTokens(budget=3), "what always stays must fit"), (bp.RecentTokens(sinks=-1), "sinks must be a whole number"),
    (bp.Keyformer(start=0.0), "start must be a positive number"), (bp.Keyformer(horizon=0), "horizon must be"),
    (bp.Keyformer(seed=-1), "seed must be a whole number"), (bp.HeavyHitters(recent=1.5), "recent must be a whole number"),
    (bp.Keyformer(prompt=None), "prompt must be a whole number")])
def test_numbers_that_cannot_be_built_are_named(policy, text):
    with pytest.raises(ValueError, match=f"{text}.* {WHERE.replace('[', '.').replace(']', '.')}.cache"):
        bp.Attention(heads=2, cache=policy).check(16, WHERE)


@pytest.mark.parametrize("options", [{"window": 4}, {"bidirectional": True}, {"sink": True}, {"position": "alibi"},
                                     {"value_residual": "single"}, {"reuse_kv": True}])
def test_options_that_need_all_keys_are_refused(options):
    with pytest.raises(ValueError, match="cache goes with causal attention|goes with plain softmax"):
        bp.Attention(heads=2, cache=bp.Keyformer(), **options).check(16, WHERE)
    with pytest.raises(TypeError, match="cache is a policy"):
        bp.Attention(heads=2, cache=64).check(16, WHERE)
