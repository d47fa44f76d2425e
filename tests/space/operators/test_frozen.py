"""Operators that are never trained: they compute what the operator does, count for nothing, and stay as they were drawn."""

import bodyplan as bp
import pytest
import torch
from bodyplan.testing import check_operator
from macro_oracles import holds_to_steps, ids, model_of

RANDOM = bp.Block(mixer=bp.Frozen(bp.Attention(heads=4, position=None)), norm=bp.Frozen(bp.RMSNorm()))
TRAINED = bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=1))


def suma(width=16, **more):
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=width, head=bp.LanguageHead(tied=False), **more,
                    body=(bp.Looped((RANDOM,), bp.Loop(2)), TRAINED))


@pytest.mark.parametrize("op", [bp.Attention(heads=2), bp.Attention(heads=2, bidirectional=True), bp.ShortConv(),
                                bp.MLP(ratio=2), bp.Mamba2(state=4, head_dim=8)], ids=lambda op: type(op).__name__)
def test_a_frozen_operator_keeps_the_contract(op):
    check_operator(bp.Frozen(op), width=16)


@pytest.mark.parametrize("op", [bp.Attention(heads=2), bp.SwiGLU(ratio=1), bp.Mamba2(state=4, head_dim=8), bp.RMSNorm()],
                         ids=lambda op: type(op).__name__)
def test_it_computes_what_the_operator_does_bit_for_bit(op):
    inside, frozen = op.build(16), bp.Frozen(op).build(16)
    with torch.no_grad():
        for name, parameter in inside.named_parameters():
            parameter.uniform_(0.1, 0.5)
            frozen.get_parameter(f"op.{name}").copy_(parameter)
    x = torch.randn(2, 9, 16)
    assert torch.equal(frozen(x), inside(x))
    assert (bp.Frozen(op).macs(16, 9), bp.Frozen(op).state_numel(16, 9)) == (op.macs(16, 9), op.state_numel(16, 9))


def heads_by_hand(layer, x_BTD):
    """Two passes of x + W_o heads(RMSNorm(x)), head by head and token by token, as SUMA's encoder has them."""
    block = layer.layers[0].mixer
    op, norm = block.op.op, block.norm.op
    for _ in range(2):
        rows = []
        for x_TD in x_BTD:
            n_TD = torch.stack([x / (x @ x / len(x) + norm.eps).sqrt() * norm.weight for x in x_TD])
            q, k, v = (n_TD @ projection.weight.T for projection in (op.query, op.key, op.value))
            outputs = []
            for t in range(len(x_TD)):
                heads = []
                for h in range(4):
                    part = slice(4 * h, 4 * h + 4)
                    weights = torch.stack([q[t, part] @ k[s, part] / 4 ** 0.5 for s in range(t + 1)]).softmax(0)
                    heads.append(sum(w * v[s, part] for s, w in enumerate(weights)))
                outputs.append(op.out.weight @ torch.cat(heads))
            rows.append(x_TD + torch.stack(outputs))
        x_BTD = torch.stack(rows)
    return x_BTD


def test_the_encoder_is_the_papers_random_heads_run_twice():
    layer = model_of(bp.Looped((RANDOM,), bp.Loop(2))).layers[0]
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert not [p for p in layer.parameters() if p.requires_grad]
    ours, theirs = layer(x), heads_by_hand(layer, x)
    assert (ours - theirs).abs().max() < 1e-12
    x.requires_grad_()
    first, second = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (layer, lambda x: heads_by_hand(layer, x)))
    assert (first - second).abs().max() < 1e-10


def test_training_moves_what_is_behind_and_below_and_nothing_of_it():
    model = suma().sample(0).build(seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bp.train(model, bp.tasks.text(length=16, batch=2), steps=2)
    for name, parameter in model.named_parameters():
        is_random = name.startswith("layers.0.")
        assert torch.equal(parameter, before[name]) == is_random == (not parameter.requires_grad), name
    assert model.architecture.cost().parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_it_decodes_token_by_token_as_in_one_pass():
    model = suma().sample(0).build().double().eval()
    holds_to_steps(model, ids())


def test_networks_of_a_supernet_have_the_same_random_numbers():
    net = bp.Supernet(suma(width=bp.choice(8, 16)), seed=0)
    small, large = (net.extract(net.space.architecture(genome)) for genome in (net.space.smallest(), net.space.largest()))
    name = "layers.0.layers.0.mixer.op.op.query.weight"
    large, small = dict(large.named_parameters())[name], dict(small.named_parameters())[name]
    assert small.numel() < large.numel() and set(small.flatten().tolist()) < set(large.flatten().tolist())


@pytest.mark.parametrize(("op", "text"), [
    (bp.TokenEmbedding(vocab=4), r"op is a mixer or a channel mixer at .*write Frozen\(Attention\(\)\)"),
    (bp.Attention(heads=3), "heads must divide width at .*op"),
    (bp.CrossAttention(heads=2), "works alone at here: got CrossAttention.*other layers hand on"),
])
def test_what_cannot_be_frozen_is_refused(op, text):
    with pytest.raises((ValueError, TypeError), match=text):
        bp.Frozen(op).check(16, "here")
