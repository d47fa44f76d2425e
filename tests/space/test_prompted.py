"""Layers that read a text and a time: against plain formulas, what a U carries inside, exports, what is refused."""

from __future__ import annotations

import random

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter
from example_macros import shaken
from exported_folders import assert_tidy, judged, model_text, perturbed
from safetensors.torch import save_file

torch.set_num_threads(1)

READS = (bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), norm=bp.AdaNorm()),
         bp.Block(mixer=bp.CrossAttention(heads=2), channel=bp.MLP(ratio=1), norm=bp.AdaNorm()))
SHAPE = bp.UShape(before=READS, inner=READS, stride=(2, 2), width=12, skip="concat", carry=("memory", "condition"))


def model(body=SHAPE, features=5, image=(4, 6), width=8, seed=0):
    space = bp.Space(embed=bp.LatentEmbedding(channels=3, image=image), width=width, head=bp.DenseHead(3),
                     body=bp.Prompted(body, features=features, tokens=4), norm=bp.NoNorm())
    return shaken(space.sample(0).build(seed=seed)).double().eval()


def given(image=(4, 6), rows=5, features=5, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 3, *image, generator=generator, dtype=torch.float64),
            torch.randn(batch, rows, features, generator=generator, dtype=torch.float64))


def attended(q, k, v, heads):
    """Query by query, head by head."""
    rows, size = [], q.shape[1] // heads
    for row in q:
        parts = [torch.softmax(k[:, h] @ row[h] / size**0.5, 0) @ v[:, h]
                 for h in (slice(i * size, (i + 1) * size) for i in range(heads))]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def adapted(w, name, x, condition):
    """The norm of a sublayer: shift and scale are linear in silu(c)."""
    shift, scale = (w[f"{name}.norm.modulate.weight"] @ F.silu(condition) + w[f"{name}.norm.modulate.bias"]).chunk(2)
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def transformer(w, place, x, text, condition):
    """x + attention, + attention to the text, + MLP, a place being a row."""
    first, second = f"{place}.layers.0.mixer", f"{place}.layers.1"
    y = adapted(w, first, x, condition)
    q, k, v = (y @ w[f"{first}.op.{name}.weight"].T for name in ("query", "key", "value"))
    x = x + attended(q, k, v, 2) @ w[f"{first}.op.out.weight"].T
    y = adapted(w, f"{second}.mixer", x, condition)
    q, k, v = (z @ w[f"{second}.mixer.op.{name}.weight"].T for z, name in ((y, "query"), (text, "key"), (text, "value")))
    x = x + attended(q, k, v, 2) @ w[f"{second}.mixer.op.out.weight"].T
    y = adapted(w, f"{second}.channel", x, condition)
    names = [name for name in w if name.startswith(f"{second}.channel.op") and name.endswith("weight")]
    up, down = sorted(names, key=lambda name: "up" not in name)
    return x + F.gelu(y @ w[up].T) @ w[down].T


def u_by_hand(w, x, source):
    """The whole body for one image [H, W, D], its inner stage at half the resolution."""
    body, u = "layers.0", "layers.0.body.layers.0"
    hidden = F.silu(w[f"{body}.time.0.weight"] @ source[0] + w[f"{body}.time.0.bias"])
    condition = w[f"{body}.time.2.weight"] @ hidden + w[f"{body}.time.2.bias"]
    text = source[1:] @ w[f"{body}.text.weight"].T
    rows, columns, width = x.shape
    x = transformer(w, f"{u}.before", x.reshape(-1, width), text, condition).view(rows, columns, width)
    below = torch.stack([torch.stack([
        sum(w[f"{u}.down.weight"][:, :, a, b] @ x[2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1))
        for j in range(columns // 2)]) for i in range(rows // 2)]) + w[f"{u}.down.bias"]
    y = transformer(w, f"{u}.inner", below.flatten(0, 1), text @ w[f"{u}.carry.memory.weight"].T,
                    w[f"{u}.carry.condition.weight"] @ condition).view_as(below)
    up = torch.stack([torch.stack([w[f"{u}.up.weight"][:, :, i % 2, j % 2].T @ y[i // 2, j // 2] for j in range(columns)])
                      for i in range(rows)]) + w[f"{u}.up.bias"]
    return torch.cat([x, up], -1) @ w[f"{u}.merge.weight"].T


def test_a_u_with_a_prompt_is_its_formula_place_by_place_with_all_gradients():
    module = model()
    latents, source = given()
    latents.requires_grad_()
    source.requires_grad_()
    w, weight = dict(module.named_parameters()), torch.randn(2, 4, 6, 8, dtype=torch.float64)
    x = module.embed(latents)
    ours = module.layers[0](x, {"source": module.embed(source)})
    theirs = torch.stack([u_by_hand(w, *pair) for pair in zip(x, source, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    leaves = [latents, source, *(p for name, p in w.items() if not name.startswith(("head", "layers.0.empty")))]
    for mine, wanted in zip(*(torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True) for y in (ours, theirs)),
                            strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-9)


def test_without_a_source_the_learned_rows_are_the_prompt():
    module, (latents, _) = model(), given()
    empty = module.layers[0].empty.detach().expand(2, -1, -1)
    assert torch.equal(module(latents), module(latents, empty))
    assert not torch.allclose(module(latents), module(latents, empty + 1))


def test_what_carries_by_the_identity_is_what_is_read_without():
    """At one width: a map that changes nothing leaves everything as it is where nothing is carried."""
    shape = bp.UShape(inner=READS, stride=(2, 2), carry=("memory", "condition"))
    module, plain = model(shape), model(bp.UShape(inner=READS, stride=(2, 2)))
    maps = module.layers[0].body.layers[0].carry
    with torch.no_grad():
        for linear in maps.values():
            linear.weight.copy_(torch.eye(8))
    state = {name: p for name, p in module.state_dict().items() if ".carry." not in name}
    plain.load_state_dict(state)
    assert torch.allclose(module(*given()), plain(*given()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("names", [("condition",), ("memory", "condition"), ("memory",)], ids="-".join)
def test_own_parameters_and_multiply_adds_are_as_declared(names):
    """With a text as long as the outer stream, as costs of a U say; its parts counted apart."""
    prompt = bp.Prompted((), features=5, tokens=24)
    shape = bp.UShape(inner=(), stride=(2, 2), width=12, carry=names)
    module, (latents, source) = model(bp.UShape(inner=(), stride=(2, 2), width=12, carry=names)), given(rows=25, batch=1)
    embed, head = bp.LatentEmbedding(channels=3, image=(4, 6)), bp.DenseHead(3)
    declared = sum(part.macs(8, (4, 6)) for part in (prompt, shape, embed, head))
    assert declared == macs_flop_counter(Called(module, source), latents)
    held = sum(p.numel() for p in module.parameters())
    assert held == sum(p.numel for part in (prompt, shape, embed, head) for p in part.axes(8).values())


class Called(torch.nn.Module):
    """A model with its second input."""

    def __init__(self, inner, source):
        super().__init__()
        self.inner, self.source = inner, source

    def forward(self, x):
        return self.inner(x, self.source)


def test_a_generator_in_a_space_is_the_same_as_a_view_and_as_a_copy():
    shape = bp.UShape(before=READS, inner=READS, stride=(2, 2), width=bp.choice(12, 16), skip="concat",
                      carry=("memory", "condition"))
    space = bp.Space(embed=bp.LatentEmbedding(channels=3, image=(4, 6)), width=bp.choice(8, 12), head=bp.DenseHead(3),
                     body=bp.Prompted(shape, features=5))
    net, (latents, source) = shaken(bp.Supernet(space, seed=0)), (part.float() for part in given())
    for seed in range(3):
        architecture = space.sample(random.Random(seed))
        copy = net.extract(architecture)
        assert torch.allclose(net.subnet(architecture)(latents, source), copy(latents, source), rtol=1e-4, atol=1e-5)
        copy(latents, source).square().mean().backward()
        missing = [name for name, p in copy.named_parameters() if p.grad is None]
        assert missing == ["layers.0.empty"]


def test_the_exported_generator_computes_what_the_module_does_with_a_prompt_of_any_length(tmp_path):
    module = perturbed(shaken(bp.presets.ascan.generator("tiny").build(seed=1))).eval()
    bp.export(module, tmp_path / "generator")
    generator = torch.Generator().manual_seed(3)
    latents, source = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 12, generator=generator)
    with torch.no_grad():
        told = {"given": latents, "source": source, "alone": module(latents), "logits": module(latents, source)}
    save_file(told, tmp_path / "generator.told")
    verdict = judged(tmp_path, ["generator"])["generator"]
    assert verdict.get("exact"), verdict
    assert verdict["tests"] == 2 and not verdict["generates"] and not verdict["steps"]
    assert_tidy(model_text(tmp_path, "generator"))
    code = (tmp_path / "generator" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "torch.randn(1, 4, 8, 8)" in code and "torch.randn(1, 20, 12)" in code and "model(latents, source)" in code


@pytest.mark.parametrize(("made", "text"), [
    (lambda: bp.UShape(inner=(), carry="memory").check(8, "body[0]"), "carry is a tuple of names, each once, at body[0]"),
    (lambda: bp.UShape(inner=(), carry=("a", "a")).check(8, "body[0]"), "carry is a tuple of names, each once"),
    (lambda: bp.Prompted((), features=0).check(8, "body[0]"), "features must be a whole number of at least 1 at body[0]"),
    (lambda: bp.Prompted((), tokens=0).check(8, "body[0]"), "tokens must be a whole number of at least 1"),
    (lambda: bp.LatentEmbedding(kernel=2).check(8, "embed"), "kernel"),
    (lambda: bp.UShape(inner=(), stride=2, carry=("memory",)).build(8)(torch.ones(1, 4, 8)), "got no memory"),
], ids=["text", "twice", "features", "tokens", "kernel", "nothing handed on"])
def test_what_cannot_be_built_is_named(made, text):
    with pytest.raises(ValueError) as caught:
        made()
    assert text in str(caught.value)
