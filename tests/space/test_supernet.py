"""The supernet: a subnet trains the shared tensors, extraction is exact, nothing else is touched."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.space.axes import Axis, Param, axis, flat_indices, largest, param, take
from example_spaces import SPACES

IDS = torch.arange(24).view(2, 12) * 7 % 256


def lora_space():
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64),
                    body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2)),
                                            channel=bp.SwiGLU(ratio=bp.choice(2, 3))), times=bp.integer(1, 3)),
                    recursion=bp.choice(bp.Once(), bp.Loop(times=bp.choice(2, 3), lora_rank=bp.choice(0, 2, 4))),
                    head=bp.LanguageHead(tied=True))


ALL = {**SPACES, "lora": lora_space()}


def packed(net, architecture):
    """The subnet's function over contiguous copies that still carry gradients."""
    from torch.func import functional_call

    leaves = {n: t.detach().clone().contiguous().requires_grad_() for n, t in net.taken(architecture)}
    return functional_call(net.subnet(architecture).module, leaves, (IDS,), tie_weights=False), leaves


@pytest.mark.parametrize("name", ALL)
def test_extraction_is_bit_identical_forward_and_gradient(name):
    space = ALL[name]
    net = bp.Supernet(space, seed=1)
    for seed in range(6):
        architecture = space.sample(seed)
        model = net.extract(architecture)
        out, leaves = packed(net, architecture)
        assert torch.equal(model(IDS), out)
        model(IDS).square().mean().backward()
        out.square().mean().backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.equal(parameter.grad, leaves[key].grad), key


@pytest.mark.parametrize("name", ALL)
def test_a_view_computes_what_its_packed_copy_does(name):
    space = ALL[name]
    net = bp.Supernet(space, seed=1)
    for seed in range(6):
        architecture = space.sample(seed)
        torch.testing.assert_close(net.subnet(architecture)(IDS), net.extract(architecture)(IDS), rtol=1e-5, atol=1e-5)


def test_training_a_subnet_trains_exactly_the_shared_entries_it_touches():
    space = ALL["lora"]
    net = bp.Supernet(space, seed=1)
    architecture = space.sample(4)
    subnet = net.subnet(architecture)
    subnet(IDS).square().mean().backward()
    touched = subnet.touched()
    for address, tensor in net.tensors.items():
        if tensor.grad is None:
            assert address not in touched
            continue
        outside = torch.ones(tensor.numel(), dtype=torch.bool)
        outside[touched[address]] = False
        assert not tensor.grad.flatten()[outside].any()


def test_after_a_training_step_the_extracted_module_follows():
    space = ALL["hybrid"]
    net = bp.Supernet(space, seed=1)
    architecture = space.sample(2)
    model = net.extract(architecture)
    for module in (model, net.subnet(architecture)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(IDS).square().mean().backward()
        optimizer.step()
    again = net.extract(architecture)
    for (key, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


def test_siblings_do_not_share_but_nested_sizes_do():
    space = ALL["hybrid"]
    rng = random.Random(0)
    seen = [space.architecture(space.sample_genome(rng)) for _ in range(40)]
    queries = {a for arch in seen for n, a in arch.weight_addresses.items() if n == "layers.0.mixer.op.query.weight"}
    assert queries == {"body[0].mixer.0/query.weight"}


def test_layers_of_a_tied_block_decide_together_but_keep_their_own_weights():
    space = ALL["whole layers tied"]
    architecture = space.architecture(space.largest())
    addresses = [a for n, a in architecture.weight_addresses.items() if n.endswith("query.weight")]
    assert len(set(addresses)) == len(architecture.plan.layers) == 3


def test_saving_and_loading_keeps_every_bit(tmp_path):
    net = bp.Supernet(ALL["lora"], seed=3)
    net.save(tmp_path / "net.safetensors")
    again = bp.Supernet.load(ALL["lora"], tmp_path / "net.safetensors")
    assert all(torch.equal(t, again.tensors[a]) for a, t in net.tensors.items())
    with pytest.raises(ValueError, match="belong to one space"):
        bp.Supernet.load(ALL["hybrid"], tmp_path / "net.safetensors")


def test_absorb_is_the_inverse_of_extract():
    space = ALL["lora"]
    net, other = bp.Supernet(space, seed=0), bp.Supernet(space, seed=1)
    architecture = space.sample(5)
    other.absorb(net.extract(architecture))
    assert torch.equal(other.extract(architecture)(IDS), net.extract(architecture)(IDS))


@pytest.mark.parametrize("name", ALL)
def test_decoding_step_by_step_equals_prefill(name):
    space = ALL[name]
    model = bp.Supernet(space, seed=2).extract(space.sample(1))
    state, outputs = model.init_state(2), []
    for t in range(IDS.shape[1]):
        logits, state = model.step(IDS[:, t:t + 1], state)
        outputs.append(logits)
    torch.testing.assert_close(torch.cat(outputs, 1), model(IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_declared_parameters_are_the_modules_own(name):
    space = ALL[name]
    for seed in range(5):
        architecture = space.sample(seed)
        model = architecture.build(seed=0)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        assert shapes == {n: p.shape for n, p in architecture.parameters.items()}
        assert architecture.cost().parameters == sum(p.numel() for p in model.parameters())
        assert list(model.state_dict()) == list(shapes)


def test_building_is_a_function_of_the_seed():
    architecture = ALL["lora"].sample(0)
    a, b, c = (architecture.build(seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)


def test_lora_starts_as_the_plain_loop():
    def space(rank):
        return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, recursion=bp.Loop(times=2, lora_rank=rank),
                        body=bp.Block(mixer=bp.Attention(heads=2)), head=bp.LanguageHead(tied=True))

    plain, adapted = space(0).sample(0).build(seed=0), space(3).sample(0).build(seed=0)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(adapted(IDS), plain(IDS))


# -- takes ------------------------------------------------------------------------------------------------------------

def naive_take(stored, held: Param, wanted: Param):
    """Entry by entry from the definition: every wanted index tuple maps to a stored one."""
    def positions(have, want):
        found, base = [], 0
        for h, w in zip(have.segments, want.segments, strict=True):
            def expand(axes, offset=0):
                if not axes:
                    return [offset]
                (a, b), rest = axes[0], axes[1:]
                inner = 1
                for x, _ in rest:
                    inner *= x.size
                start = {"leading": 0, "trailing": a.size - b.size, "centre": (a.size - b.size) // 2}
                picks = b.select if isinstance(b.select, tuple) else range(start[b.select], start[b.select] + b.size)
                return [p for i in picks for p in expand(rest, offset + i * inner)]

            found += expand(list(zip(h, w, strict=True)), base)
            size = 1
            for x in h:
                size *= x.size
            base += size
        return torch.tensor(found)

    for d, (have, want) in enumerate(zip(held.dims, wanted.dims, strict=True)):
        stored = stored.index_select(d, positions(have, want))
    return stored


def declared(kv, group, pairs, taps, centre, width):
    heads = axis("kv", kv) * axis("group", group) * axis("half", 2) * axis("pairs", pairs)
    return [param(heads, axis("width", width)), param(axis("width", width), heads + axis("z", taps) + axis("z", taps)),
            param(axis("width", width), axis("taps", taps, "trailing")), param(axis("c", centre, "centre"))]


@pytest.mark.parametrize("sizes", [(2, 4, 8, 4, 7, 16), (1, 4, 8, 4, 5, 16), (2, 2, 8, 3, 3, 16), (2, 4, 3, 2, 1, 5)])
def test_take_reads_the_entries_its_axes_name(sizes):
    for held, wanted in zip(declared(2, 4, 8, 4, 7, 16), declared(*sizes), strict=True):
        stored = torch.arange(held.numel).view(held.shape)
        assert torch.equal(take(stored, held, wanted), naive_take(stored, held, wanted))
        assert torch.equal(flat_indices(held, wanted), naive_take(stored, held, wanted).flatten())


def test_an_explicit_index_list_is_taken_in_its_order():
    held, wanted = param(axis("layer", 4) * axis("w", 2)), param(axis("layer", 2, (3, 1)) * axis("w", 2))
    assert take(torch.arange(8), held, wanted).tolist() == [6, 7, 2, 3]


def test_leading_takes_are_views():
    held, wanted = param(axis("rows", 8), axis("width", 8)), param(axis("rows", 4), axis("width", 6))
    stored = torch.zeros(8, 8)
    assert take(stored, held, wanted).data_ptr() == stored.data_ptr()


def test_largest_holds_every_member_and_a_larger_take_is_refused():
    members = [param(axis("heads", 2) * axis("dim", 32)), param(axis("heads", 4) * axis("dim", 16))]
    held = largest(members)
    assert held.shape == (128,)
    with pytest.raises(ValueError, match="at most what is stored"):
        take(torch.zeros(128), held, param(Axis("heads", 8) * Axis("dim", 16)))


def test_a_model_with_an_operator_that_cannot_stream_refuses_to_decode():
    class Mean(torch.nn.Module):
        def __init__(self, width):
            super().__init__()

        def forward(self, x):
            return x.mean(1, keepdim=True).expand_as(x)

    space = bp.Space(embed=bp.TokenEmbedding(vocab=256), width=32, head=bp.LanguageHead(tied=True),
                     body=bp.Block(mixer=bp.Custom(Mean, causal=False)))
    with pytest.raises(ValueError, match=r"layers\[0\].mixer: Custom has none"):
        space.sample(0).build().init_state(1)


def test_an_untied_head_has_the_vocabulary_of_its_embedding():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=64), width=32, head=bp.LanguageHead(tied=False),
                     body=bp.Block(mixer=bp.Attention(heads=2)))
    assert space.sample(0).build()(IDS % 64).shape == (2, 12, 64)
