"""What a model over tokens says of bytes, against the sum over every sequence of tokens there is."""

import itertools

import bodyplan as bp
import pytest
import torch

TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"", b"bb"]            # 5 ends a text
START = 0


def toy(seed=0, vocab=7):
    """A causal model whose every token depends on all before it."""
    space = bp.Space(embed=bp.TokenEmbedding(vocab=vocab), width=16, body=bp.Block(
        mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=2)), head=bp.LanguageHead(tied=False))
    model, generator = space.sample(0).build().double(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


@torch.no_grad()
def sequences(model, longest):
    """(tokens, probability) of every sequence that ends or has more than `longest` bytes: they add up to 1."""
    found, open_ones = [], [((), 1.0)]
    while open_ones:
        prefix, weight = open_ones.pop()
        next_V = model(torch.tensor([[START, *prefix]]))[0, -1].softmax(-1).tolist()
        for token, share in enumerate(next_V):
            made = (*prefix, token)
            closed = not TOKENS[token] or sum(len(TOKENS[t]) for t in made) > longest
            (found if closed else open_ones).append((made, weight * share))
    assert sum(weight for _, weight in found) == pytest.approx(1, abs=1e-12)
    return found


def by_brute_force(everything, text):
    """The share of sequences whose bytes go on with each byte after each beginning of the text."""
    wanted = torch.zeros(len(text) + 1, 257, dtype=torch.float64)
    for made, weight in everything:
        said = b"".join(TOKENS[t] for t in made)
        for n in range(len(text) + 1):
            if said[:n] == text[:n] and len(said) >= n:
                wanted[n, said[n] if len(said) > n else 256] += weight
    return wanted / wanted.sum(1, keepdim=True)


@pytest.mark.parametrize("text", [b"", b"a", b"ab", b"aab", b"abab", b"baab", b"bbab"])
def test_every_next_byte_is_as_likely_as_all_sequences_of_tokens_that_say_it(text):
    model = toy()
    found = bp.byte_probabilities(model, TOKENS, text, [START], batch=3)
    torch.testing.assert_close(found, by_brute_force(sequences(model, len(text)), text), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.sum(1), torch.ones(len(text) + 1, dtype=torch.float64))
    assert (found[:, 256] > 0).all() and not found[:, list(range(97)) + list(range(99, 256))].any()


def test_a_string_is_as_likely_as_the_product_of_its_bytes_and_all_strings_together_are_certain():
    model = toy(1)
    everything = sequences(model, 3)
    total = 0.0
    for length in range(4):
        for string in itertools.product(b"ab", repeat=length):
            rows = bp.byte_probabilities(model, TOKENS, bytes(string), [START])
            product = rows[range(length), list(string)].prod() * (rows[length, 256] if length < 3 else 1)
            said = sum(weight for made, weight in everything for text in [b"".join(TOKENS[t] for t in made)]
                       if (text == bytes(string) if length < 3 else text[:3] == bytes(string)))
            assert product == pytest.approx(said, rel=1e-9)
            total += float(product)
    assert total == pytest.approx(1, abs=1e-9)


def test_a_model_over_bytes_says_what_its_own_logits_say():
    model = toy(vocab=256)
    text = b"plain bytes"
    rows = bp.byte_probabilities(model, [bytes([n]) for n in range(256)], text, [10])
    with torch.no_grad():
        logits = model(torch.tensor([[10, *text]]))[0]
    torch.testing.assert_close(rows[:, :256], logits.softmax(-1))
    assert not rows[:, 256].any()
    bits = -rows[range(len(text)), list(text)].log2().mean()
    wanted = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(list(text))) / torch.log(torch.tensor(2.0))
    assert bits == pytest.approx(float(wanted), rel=1e-6)


def greedy(text):
    """The longest token first."""
    made = []
    while text:
        fitting = [t for t, piece in enumerate(TOKENS) if piece and text.startswith(piece)]
        made.append(max(fitting, key=lambda t: len(TOKENS[t])))
        text = text[len(TOKENS[made[-1]]):]
    return made


class Canonical(torch.nn.Module):
    """A model that gives nothing to tokens its encoder would not choose."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids):
        logits = self.inner(ids).clone()
        for row, tokens in enumerate(ids.tolist()):
            for t, piece in enumerate(TOKENS):
                made = [*tokens[1:], t]
                if piece and greedy(b"".join(TOKENS[i] for i in made)) != made:
                    logits[row, -1, t] = -torch.inf
        return logits


@pytest.mark.parametrize("text", [b"ab", b"abab", b"bbaab"])
def test_of_a_model_that_keeps_to_its_encoder_the_encodings_it_would_choose_are_enough(text):
    model = Canonical(toy(2))
    every = bp.byte_probabilities(model, TOKENS, text, [START])
    torch.testing.assert_close(bp.byte_probabilities(model, TOKENS, text, [START], encode=greedy), every)
    with_one_each = bp.byte_probabilities(model, TOKENS, text, [START], encode=greedy, most=len(text) + 1)
    torch.testing.assert_close(with_one_each, every)


def test_the_model_is_left_as_it_was_and_what_cannot_be_is_refused():
    model = toy().train()
    bp.byte_probabilities(model, TOKENS, b"ab", [START])
    assert model.training
    with pytest.raises(ValueError, match="start after a token: got none"):
        bp.byte_probabilities(model, TOKENS, b"ab", [])
    with pytest.raises(ValueError, match="got 6 for 7 logits"):
        bp.byte_probabilities(model, TOKENS[:-1], b"ab", [START])
    with pytest.raises(ValueError, match="at most 3 sequences of tokens are looked at: the first 2 of 4 bytes"):
        bp.byte_probabilities(model, TOKENS, b"abab", [START], most=3)
    with pytest.raises(ValueError, match="nothing covers its first 2 bytes"):
        bp.byte_probabilities(model, TOKENS, b"axb", [START])
