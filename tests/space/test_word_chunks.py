"""Words: against a loop over words and tokens, token by token, and what the marks do."""

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import space
from macro_oracles import ATTENTION, BOTH_WAYS, CONV, MAMBA, Next, agree, close, holds_to_steps, ids, model_of

MARKED = bp.MarkedEmbedding(vocab=32, marks=(0, 1, 2, 3, 4, 5, 6, 7))
HAT = {
    "plain": bp.Hierarchy(encoder=(BOTH_WAYS, CONV), inner=(ATTENTION, CONV), decoder=(ATTENTION, MAMBA),
                          chunker=bp.WordChunks()),
    "wider inside": bp.Hierarchy(encoder=BOTH_WAYS, inner=MAMBA, decoder=ATTENTION, width=24, chunker=bp.WordChunks()),
    "narrower inside": bp.Hierarchy(inner=ATTENTION, decoder=CONV, width=8, chunker=bp.WordChunks()),
}
each = pytest.mark.parametrize("body", HAT.values(), ids=HAT.keys())


def stream(tokens=13, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_BTD = torch.randn(batch, tokens, 16, dtype=torch.float64, generator=generator)
    x_BTD[..., 0] = (torch.rand(batch, tokens, generator=generator) < 0.4).double()
    return x_BTD


def hat(layer, x_BTD):
    """Word by word, and in a word token by token, as the paper has it."""
    rows = []
    for x_TD in x_BTD:
        words = []
        for t, x_D in enumerate(x_TD):
            if t == 0 or (x_D[0] > 0.5 and not x_TD[t - 1][0] > 0.5):
                words.append([])
            words[-1].append(x_D)
        outputs, vectors = [], []
        for word in words:
            context_E = layer.inner(torch.stack(vectors)[None])[0, -1] if vectors else layer.start
            prefix_D = layer.back.weight @ context_E + layer.back.bias
            for length in range(1, len(word) + 1):
                outputs.append(layer.decoder(torch.stack([prefix_D, *word[:length]])[None])[0, -1])
            read_D = layer.encoder(torch.stack([layer.word, *word])[None])[0, 0]
            vectors.append(layer.into.weight @ read_D + layer.into.bias)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


@each
@pytest.mark.parametrize("tokens", [1, 2, 13])
def test_words_are_the_loop_of_the_paper(body, tokens):
    agree(model_of(body).layers[0], hat, stream(tokens), 1e-10)


@torch.no_grad()
@each
def test_words_decode_token_by_token_as_in_one_pass_whatever_their_number(body):
    model = space((body, CONV), width=16, embed=MARKED).sample(0).build(seed=1).double().eval()
    layer, begins = model.layers[0], model.layers[0].begins(model.embed(ids()))
    assert layer.word.dtype == torch.float64 and len(set(begins.sum(-1).tolist())) > 1
    holds_to_steps(model, ids())
    close(model(ids()), torch.cat([model(row) for row in ids().split(1)]), 1e-12)


@each
def test_words_see_the_past_alone(body):
    layer, x = model_of(body).layers[0], stream().requires_grad_()
    for kept in (1, 4, 12):
        (gradient,) = torch.autograd.grad(layer(x)[:, :kept].sum(), x)
        assert not gradient[:, kept:].any()
        changed = torch.cat([x[:, :kept], stream(seed=5)[:, kept:]], 1)
        close(layer(changed)[:, :kept], layer(x)[:, :kept], 1e-12)
    assert body.causal and body.streaming


def test_a_token_sees_its_word_and_whole_words_before():
    layer, x = model_of(HAT["plain"]).layers[0], stream(9, 1)
    x[..., 0] = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1, 0]).double()                    # words 0-2, 3-5, 6-8
    x.requires_grad_()
    assert layer.begins(x)[0].nonzero().flatten().tolist() == [0, 3, 6], "a run of marks begins one word"
    (own,) = torch.autograd.grad(layer(x)[:, 4].sum(), x, retain_graph=True)
    assert own[0].abs().sum(-1).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    layer.back.weight.data.zero_()                                                   # nothing passes from word to word
    (own,) = torch.autograd.grad(layer(x)[:, 4].sum(), x)
    assert own[0].abs().sum(-1).nonzero().flatten().tolist() == [3, 4]


@torch.no_grad()
def test_without_marks_a_text_is_one_word_behind_the_learned_start():
    layer, x = model_of(HAT["plain"]).layers[0], stream()
    x[..., 0] = 0
    prefix = (layer.back(layer.start)).expand(3, 1, -1)
    close(layer(x), layer.decoder(torch.cat([prefix, x], 1))[:, 1:], 1e-13)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [3, 8, 12, 14])
def test_costs_of_words_are_what_torch_executes_where_they_have_the_declared_length(tokens):
    body = bp.Hierarchy(encoder=BOTH_WAYS, inner=(ATTENTION, ATTENTION), decoder=ATTENTION, width=24,
                        chunker=bp.WordChunks(4))
    model = space(body, width=16, embed=bp.MarkedEmbedding(vocab=32, marks=(1,))).sample(0).build().eval()
    given, cost = torch.tensor([1, 0, 0, 0]).repeat(6)[None], model.architecture.cost(tokens)
    assert macs_flop_counter(model, given[:, :tokens]) == pytest.approx(cost.macs, rel=1e-9)
    assert bp.measured_macs(model, [given[:, :tokens]]).share == pytest.approx(1, rel=1e-9)
    _, state = model.step(given[:, :tokens], model.init_state(1))
    held = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert 4 * sum(t.numel() for t in held) == cost.state_bytes
    if tokens == 12:
        ran = []
        for t in range(12, 16):
            ran.append(macs_flop_counter(Next(model, state), given[:, t:t + 1]))
            _, state = model.step(given[:, t:t + 1], state)
        assert sum(ran) / 4 == pytest.approx(cost.decode_macs, rel=0.01)


def test_the_first_entry_of_a_marked_embedding_is_the_mark_and_nothing_learned():
    embed, given = MARKED.build(16), torch.tensor([[3, 9, 7, 8]])
    with torch.no_grad():
        embed.weight.normal_()
    plain = bp.TokenEmbedding(vocab=32).build(16)
    plain.load_state_dict(embed.state_dict())
    assert embed(given)[0, :, 0].tolist() == [1, 0, 1, 0]
    assert torch.equal(embed(given)[..., 1:], plain(given)[..., 1:])
    embed(given).square().sum().backward()
    assert not embed.weight.grad[:, 0].any()


def test_words_of_a_supernet_are_marked_at_every_width():
    body = bp.Hierarchy(encoder=BOTH_WAYS, inner=ATTENTION, decoder=CONV, width=bp.choice(None, 24), chunker=bp.choice(
        bp.WordChunks(4), bp.FixedChunks(4)))
    net = bp.Supernet(space(body, width=bp.choice(8, 16), embed=MARKED), seed=0)
    for genome in (net.space.smallest(), net.space.largest(), net.space.sample(1).genome, net.space.sample(2).genome):
        architecture = net.space.architecture(genome)
        torch.testing.assert_close(net.subnet(architecture)(ids()), net.extract(architecture)(ids()), rtol=1e-5, atol=1e-5)
    model = space(HAT["wider inside"], width=16, embed=MARKED).sample(0).build(seed=1).double()
    before = model(ids())
    bp.order_axes(model)
    close(model(ids()), before, 1e-8)


@pytest.mark.parametrize(("make", "text"), [
    (lambda: space(bp.Hierarchy(inner=ATTENTION, chunker=bp.WordChunks(0)), width=16), "ratio must be a whole number"),
    (lambda: space(ATTENTION, embed=bp.MarkedEmbedding(vocab=16)), r"marks are ids below vocab.*got \(9, 10, 13, 32\) of 16"),
    (lambda: space(ATTENTION, embed=bp.MarkedEmbedding(vocab=16, marks=())), "marks are ids below vocab, at least one"),
])
def test_what_cannot_be_words_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()
