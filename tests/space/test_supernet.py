"""The supernet: a subnet trains the shared tensors, extraction is exact, nothing else is touched."""

import random

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.optim import MaskedAdamW
from bodyplan.space.elastic.supernet import touch_masks
from example_spaces import SPACES, macro_space, make, sparse_space
from torch.func import functional_call

torch.set_num_threads(1)

IDS = torch.arange(24).view(2, 12) * 7 % 256


def lora_space():
    return bp.Space(embed=bp.TokenEmbedding(vocab=256), width=bp.choice(32, 64),
                    body=bp.repeat(bp.Block(mixer=bp.Attention(heads=bp.choice(2, 4), kv_heads=bp.choice(1, 2)),
                                            channel=bp.SwiGLU(ratio=bp.choice(2, 3))), times=bp.integer(1, 3)),
                    recursion=bp.choice(bp.Once(), bp.Loop(times=bp.choice(2, 3), lora_rank=bp.choice(0, 2, 4))),
                    head=bp.LanguageHead(tied=True))


ALL = {**SPACES, "lora": lora_space(), "sparse": sparse_space(), "macros": macro_space()}


def packed(net, architecture):
    """The subnet's function over contiguous copies that still carry gradients."""
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


def packed_output(net, architecture):
    """Through contiguous copies that carry gradients back to the shared tensors."""
    weights = {name: taken.contiguous() for name, taken in net.taken(architecture)}
    return functional_call(architecture.build(device="meta"), weights, (IDS,), tie_weights=False)


def whole_mask(tensor):
    """Explicit, so that both sides of a comparison run the same formula."""
    return torch.ones_like(tensor, dtype=torch.bool)


def descend(parameters, masks):
    torch.optim.SGD(parameters.values(), lr=0.1).step()


def adam(parameters, masks):
    MaskedAdamW(parameters).step(0.01, masks)


@pytest.mark.parametrize("name", ["hybrid", "lora", "sparse", "macros"])
@pytest.mark.parametrize("step", [descend, adam])
def test_a_step_on_packed_weights_is_the_step_of_the_extracted_module_bit_for_bit(name, step):
    space = ALL[name]
    for seed in range(3):
        net, architecture = bp.Supernet(space, seed=1), space.sample(seed)
        model = net.extract(architecture)
        own = dict(model.named_parameters())
        packed_output(net, architecture).square().mean().backward()
        model(IDS).square().mean().backward()
        masks = touch_masks([net.subnet(architecture)])
        step(net.tensors, {a: whole_mask(net.tensors[a]) if m is None else m for a, m in masks.items()})
        step(own, {key: whole_mask(p) for key, p in own.items()})
        for key, again in net.extract(architecture).named_parameters():
            assert torch.equal(own[key], again), key


@pytest.mark.parametrize("name", ["hybrid", "lora", "sparse", "macros"])
def test_after_a_step_of_a_subnet_the_extracted_module_follows(name):
    net, architecture = bp.Supernet(ALL[name], seed=1), ALL[name].sample(2)
    model = net.extract(architecture)
    for module, parameters in ((model, dict(model.named_parameters())), (net.subnet(architecture), net.tensors)):
        module(IDS).square().mean().backward()
        descend(parameters, None)
    again = net.extract(architecture)
    for (key, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["hybrid", "lora", "sparse", "macros"])
def test_masks_are_the_union_of_what_subnets_touch(name):
    space = ALL[name]
    net = bp.Supernet(space)
    for first in range(4):
        subnets = [net.subnet(space.sample(seed)) for seed in range(first, first + 3)]
        wanted = {}
        for subnet in subnets:
            for address, index in subnet.touched().items():
                wanted.setdefault(address, torch.zeros(net.held[address].numel, dtype=torch.bool))[index] = True
        for _ in range(2):                                          # made, and remembered
            masks = touch_masks(subnets)
            assert masks.keys() == wanted.keys()
            for address, mask in masks.items():
                assert bool(wanted[address].all()) if mask is None else torch.equal(mask.flatten(), wanted[address])


@pytest.mark.parametrize("name", ["hybrid", "lora", "sparse", "macros"])
def test_a_subnets_module_has_the_names_of_the_standalone_one_and_keeps_nothing_else(name):
    space = ALL[name]
    net = bp.Supernet(space)
    for seed in range(4):
        architecture = space.sample(seed)
        alone, subnet = net.extract(architecture), net.subnet(architecture)
        assert set(subnet.module.state_dict()) == set(alone.state_dict()) == set(architecture.parameters)
        assert list(alone.state_dict()) == list(architecture.build().state_dict())
        assert not list(subnet.module.buffers()) and not list(alone.buffers()) and not subnet.state_dict()


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


# -- skeletons --------------------------------------------------------------------------------------------------------

def test_subnets_that_share_leaves_compute_what_their_own_modules_do():
    """Interleaved, so that a weight left behind in a shared leaf would show."""
    space = ALL["sparse"]
    net = bp.Supernet(space, seed=1)
    subnets = [net.subnet(space.sample(seed)) for seed in range(8)]
    leaves = [id(m) for subnet in subnets for m in subnet.module.modules() if isinstance(m, torch.nn.Linear)]
    assert len(set(leaves)) < len(leaves), "no leaf is shared"
    for subnet in [*subnets, *subnets[::-1]]:
        torch.testing.assert_close(subnet(IDS), net.extract(subnet.architecture)(IDS), rtol=1e-5, atol=1e-5)


def test_equal_layers_of_one_network_have_a_leaf_each():
    space = make(width=32, body=bp.repeat(bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(1)), times=3))
    net = bp.Supernet(space, seed=1)
    subnet = net.subnet(space.sample(0))
    modules = [m for m in subnet.module.modules() if not isinstance(m, torch.nn.ModuleList)]
    assert len({id(m) for m in modules}) == len(modules) == len(list(space.sample(0).build().modules())) - 1
    torch.testing.assert_close(subnet(IDS), net.extract(space.sample(0))(IDS), rtol=1e-5, atol=1e-5)


def test_a_skeleton_keeps_no_weights_even_when_it_fails():
    space = ALL["lora"]
    subnet = bp.Supernet(space).subnet(space.sample(4))
    subnet(IDS)
    assert all(p.is_meta for p in subnet.module.parameters())
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        subnet(IDS + 256)
    assert all(p.is_meta for p in subnet.module.parameters())
    assert set(dict(subnet.module.named_parameters())) == set(subnet.architecture.parameters)


def test_skeletons_are_remembered_up_to_a_number():
    from bodyplan.space.elastic.skeletons import Skeletons

    space = ALL["sparse"]
    held = Skeletons(most=3, most_leaves=20)
    architectures = [space.sample(seed) for seed in range(12)]
    first = held.of(architectures[0])
    assert held.of(space.architecture(architectures[0].genome)) is first
    for architecture in architectures:
        assert set(held.of(architecture).slots) == set(architecture.parameters)
    assert len(held.networks) == 3 and held.num_leaves < 40


def test_building_a_model_lends_nothing():
    space = ALL["hybrid"]
    net, architecture = bp.Supernet(space), ALL["hybrid"].sample(2)
    leaf = net.subnet(architecture).module.embed
    assert architecture.build(device="meta").embed is not leaf
    assert net.extract(architecture).embed is not leaf


def test_evaluation_mode_reaches_the_operators():
    from bodyplan.space.operators.batchnorm import BatchNorm

    space = make(width=32, body=bp.Block(channel=bp.MLP(1), norm=BatchNorm()))
    net = bp.Supernet(space, seed=1)
    statistics = [a for a in net.tensors if "running" in a]
    assert statistics and not any(net.tensors[a].requires_grad for a in statistics)
    before = {a: net.tensors[a].clone() for a in statistics}
    net.eval()
    out = net.subnet(space.sample(0))(IDS)
    assert all(torch.equal(net.tensors[a], before[a]) for a in statistics)
    assert torch.equal(out, net.extract(space.sample(0)).eval()(IDS))
    net.train()
    net.subnet(space.sample(0))(IDS)
    assert not any(torch.equal(net.tensors[a], before[a]) for a in statistics), "training measures the batch"


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
