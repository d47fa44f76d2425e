"""Words inside sentences: the paper's formula, what is left without the words, costs, sizes that are refused."""

from __future__ import annotations

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter
from bodyplan.testing import built

torch.set_num_threads(1)


def block(heads, ratio=2):
    return bp.Block(mixer=bp.Attention(heads=heads, bidirectional=True, rotary=False), channel=bp.MLP(ratio=ratio),
                    norm=bp.LayerNorm())


def nested(inner=2, outer=3, **options):
    return bp.TransformerInTransformer(inner=(block(2),) * inner, outer=(block(4),) * outer,
                                       **{"width": 16, "side": 2, "places": (3, 2), **options})


def model(config, width=8, image=(12, 8), seed=0):
    head = bp.PooledHead(5, pool="class" if config.class_token else "mean")
    space = bp.Space(embed=bp.PatchEmbedding(2, 1, image, grid=True, position=False), width=width, body=config, head=head)
    return space.sample(0).build(seed=seed)


def grid(*size, seed=1):
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_norm(module, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-5) * module.weight + module.bias


def reference(module, config, x):
    """Sentence by sentence, as lists of words; layers are those of the module."""
    side, rows, columns = config.side, x.shape[1] // config.side, x.shape[2] // config.side
    words = []                                                          # [sentence][word]
    for r in range(rows):
        for c in range(columns):
            words.append(torch.stack([x[:, r * side + i, c * side + j] + module.word_position[i, j]
                                      for i in range(side) for j in range(side)], 1))
    sentences = [layer_norm(module.sentence_norm, layer_norm(module.first_norm, each.flatten(1)) @ module.first.weight.T)
                 for each in words]
    if config.places:
        sentences = [each + module.position[i // columns, i % columns] for i, each in enumerate(sentences)]
    for i, outer in enumerate(module.outer):
        if i < len(module.inner):
            words = [module.inner[i](each) for each in words]
            news = [layer_norm(module.norms[i], each).flatten(1) @ module.projects[i].weight.T for each in words]
            first = sentences[:len(sentences) - len(news)]
            sentences = first + [each + new for each, new in zip(sentences[len(first):], news, strict=True)]
        if i == 0 and config.class_token:
            sentences = [module.token.expand(len(x), -1), *sentences]
        sentences = list(outer(torch.stack(sentences, 1)).unbind(1))
    return torch.stack(sentences, 1)


@pytest.mark.parametrize("options", [{}, {"class_token": True}, {"places": None}, {"side": 3, "places": (2, 1)},
                                     {"side": 1, "places": (6, 4), "class_token": True}], ids=str)
@pytest.mark.parametrize("inner", [0, 1, 3])
def test_sentences_are_the_papers_formula(options, inner):
    config = nested(inner=inner, **options)
    size = (config.side * 3, config.side * 2) if config.places is None else tuple(config.side * n for n in config.places)
    config.check(8, "here")
    module = model(config, image=tuple(2 * n for n in size)).double().layers[0]
    x = grid(*size, 8).requires_grad_()
    ours = module(x)
    theirs = reference(module, config, x).view(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    mask, leaves = grid(*ours.shape[1:], seed=2), [x, *module.parameters()]
    pairs = zip(*(torch.autograd.grad((y * mask).sum(), leaves, allow_unused=True, materialize_grads=True)
                  for y in (ours, theirs)), strict=True)
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-9)
    assert config.out(8, size) == (16, tuple(ours.shape[1:3]))


@pytest.mark.parametrize("class_token", [True, False])
def test_without_what_words_give_sentences_go_through_outer_layers_alone(class_token):
    config, alone = nested(3, 3, class_token=class_token), nested(0, 3, class_token=class_token)
    module, plain = (model(each).double().layers[0] for each in (config, alone))
    held = module.state_dict()
    plain.load_state_dict({name: held[name] for name in plain.state_dict()})
    x = grid(6, 4, 8)
    assert not torch.allclose(module(x), plain(x))
    with torch.no_grad():
        for project in module.projects:
            project.weight.zero_()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-12, atol=1e-12)


def test_words_of_one_sentence_do_not_see_those_of_another():
    """Without layers among sentences' tokens a sentence depends on its own words alone."""
    pointwise = bp.Block(channel=bp.MLP(ratio=1), norm=bp.LayerNorm())
    config = bp.TransformerInTransformer((block(2),) * 2, (pointwise,) * 2, width=16, side=2)
    module, x = model(config).double().layers[0], grid(6, 4, 8)
    changed = x.clone()
    changed[:, 0, 3] += 1
    moved = (module(changed) - module(x)).abs().amax((0, -1)) > 0
    assert moved.tolist() == [[False, True], [False, False], [False, False]]


SPACE = bp.Space(embed=bp.PatchEmbedding(2, 1, 12, grid=True, kernel=3, position=False), width=bp.choice(8, 12),
                 body=bp.TransformerInTransformer(
                     inner=bp.repeat(bp.Block(mixer=bp.choice(bp.Attention(heads=2), bp.DepthwiseConv2d(kernel=3))),
                                     bp.integer(1, 2)),
                     outer=bp.repeat(block(bp.choice(2, 4)), bp.integer(2, 3)), width=bp.choice(16, 24),
                     side=bp.choice(2, 3)),
                 head=bp.PooledHead(5))


def test_costs_are_those_that_torch_counts():
    for seed in range(4):
        architecture = SPACE.sample(random.Random(seed))
        assert macs_flop_counter(architecture.build(), torch.randn(1, 1, 12, 12)) == architecture.cost().macs
        assert architecture.cost().parameters == sum(p.numel() for p in architecture.build(device="meta").parameters())


@pytest.mark.parametrize(("options", "text"), [
    ({"inner": 4}, "inner has at most as many layers as outer at body[0]: got 4 and 3"),
    ({"side": 0}, "side must be a whole number of at least 1 at body[0]: got 0"),
    ({"places": 3}, "places is (rows, columns) of sentences, or None, at body[0]: got 3"),
    ({"places": (3, 0)}, "places must be a whole number of at least 1 at body[0]: got 0"),
    ({"width": None}, "width must be a whole number of at least 1 at body[0]: got None"),
])
def test_a_size_that_cannot_be_built_is_named(options, text):
    with pytest.raises(ValueError) as caught:
        nested(**options).check(8, "body[0]")
    assert text in str(caught.value)


def test_the_declaration_is_what_the_module_holds():
    """Of the macro alone, without its layers."""
    config = bp.TransformerInTransformer((), (), width=16, side=2, places=(3, 2), class_token=True)
    assert {name: tuple(p.shape) for name, p in built(config, 8).named_parameters()} == {
        name: declared.shape for name, declared in config.axes(8).items()}
