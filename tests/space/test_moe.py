"""Mixture of experts: the paper's formula, routing, costs, and experts as an elastic axis."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.moe import MoE
from bodyplan.testing import built, check_reference, count_macs

torch.set_num_threads(1)


def one_token_after_the_other(w, config, x_BTD):
    """y = sum over the chosen e of softmax(score)_e down_e (silu(gate_e x) * up_e x), straight from the papers."""
    def token(x_D):
        scores = [w["router.weight"][e] @ x_D for e in range(config.experts)]
        chosen = sorted(range(config.experts), key=lambda e: -float(scores[e].detach()))[:config.top_k]
        among = range(config.experts) if config.top_k == 1 else chosen
        total = sum(torch.exp(scores[e]) for e in among)
        mixed = torch.zeros_like(x_D)
        for e in chosen:
            gate, up = w["gate"][e] @ x_D, w["up"][e] @ x_D
            mixed = mixed + torch.exp(scores[e]) / total * (w["down"][e] @ (gate * torch.sigmoid(gate) * up))
        return mixed

    return torch.stack([torch.stack([token(x_D) for x_D in x_TD]) for x_TD in x_BTD])


@pytest.mark.parametrize("config", [MoE(experts=4, top_k=2, ratio=1), MoE(experts=3, top_k=1, ratio=2), MoE(1, 1, 1)])
def test_the_grouped_computation_is_the_papers_formula(config):
    check_reference(config, 8, one_token_after_the_other)


def test_the_router_of_a_single_choice_is_trained():
    module = built(MoE(experts=4, top_k=1, ratio=1), 8)
    module(torch.randn(2, 9, 8)).square().sum().backward()
    assert module.router.weight.grad.abs().sum() > 0


def test_only_the_chosen_experts_cost_and_are_counted():
    config = MoE(experts=16, top_k=2, ratio=2)
    module = built(config, 16)
    executed = count_macs(module, torch.randn(1, 50, 16))
    assert executed == config.macs(16, 50) == 50 * (16 * 16 + 2 * 3 * 16 * 32)
    every = MoE(experts=16, top_k=16, ratio=2)
    assert every.macs(16, 50) == 50 * (16 * 16 + 16 * 3 * 16 * 32)


def test_experts_that_no_token_chose_get_a_zero_gradient():
    module = built(MoE(experts=4, top_k=1, ratio=1), 8)
    module.router.weight.data = torch.tensor([1.0, 0, 0, 0])[:, None].expand(4, 8).contiguous()
    module(torch.rand(1, 5, 8)).sum().backward()
    assert module.gate.grad[0].any() and not module.gate.grad[1:].any()


@pytest.mark.parametrize(("config", "text"), [
    (MoE(experts=2, top_k=3), "top_k must not exceed experts at body.channel: got 3 of 2; use at most 2"),
    (MoE(experts=0), "experts must be a whole number of at least 1 at body.channel: got 0"),
    (MoE(ratio=0), "ratio must be a positive number at body.channel: got 0")])
def test_numbers_that_cannot_be_built_are_named(config, text):
    with pytest.raises(ValueError) as caught:
        config.check(16, "body.channel")
    assert text in str(caught.value)


def test_experts_width_and_hidden_are_elastic_in_a_space():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=bp.choice(16, 24), head=bp.LanguageHead(tied=True),
                     body=bp.Block(channel=MoE(experts=bp.choice(2, 4), top_k=bp.choice(1, 2), ratio=bp.choice(1, 2))))
    net = bp.Supernet(space, seed=0)
    assert {tuple(t.shape) for a, t in net.tensors.items() if a.endswith("/gate")} == {(4, 48, 24)}
    ids = torch.arange(12)[None]
    for seed in range(8):
        architecture = space.sample(seed)
        model = net.extract(architecture)
        torch.testing.assert_close(net.subnet(architecture)(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert architecture.cost(12).parameters == sum(p.numel() for p in model.parameters())
