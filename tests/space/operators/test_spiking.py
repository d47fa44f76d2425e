"""Neurons that fire, what they make of the Legendre memory and of frames, and LMUFormer as published."""

from __future__ import annotations

from dataclasses import replace

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.kernels.legendre import naive_legendre, naive_legendre_system
from bodyplan.space.operators.spiking import SpikingNorm, leaky_integrate_fire
from bodyplan.testing import built, count_macs
from operator_examples.neurons import frame_tokenizer, normed_mlp, spiked
from operator_examples.state_space import spiking_lmu

torch.set_num_threads(1)


def random(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fired(x, threshold=1.0):
    return leaky_integrate_fire(x, torch.zeros(len(x), x.shape[-1], dtype=x.dtype), threshold)[0]


def lively(module, gain=3.0, seed=3):
    """With gains, shifts and statistics at which neurons fire often, but not always."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if name.endswith("norm.weight") and "spikes" in name:
            tensor.data.uniform_(0.5 * gain, gain, generator=generator)
        elif name.endswith("norm.bias") and "spikes" in name:
            tensor.data.uniform_(0.0, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            tensor.data.uniform_(-0.3, 0.3, generator=generator)
        elif name.endswith("running_var"):
            tensor.data.uniform_(0.3, 1.0, generator=generator)
    return module


# -- one neuron --------------------------------------------------------------------------------------------------------

def test_a_neuron_halves_the_way_to_its_input_fires_and_starts_again():
    """By hand, threshold 1: 0.75 | 0.875 | 1.4375 fires | 0.75 | 1.375 fires | -1 | 0.5 | exactly 1 fires."""
    x = torch.tensor([1.5, 1.0, 2.0, 1.5, 2.0, -2.0, 2.0, 1.5, 0.0])[None, :, None]
    spikes, voltage = leaky_integrate_fire(x, torch.zeros(1, 1), 1.0)
    assert spikes.flatten().tolist() == [0, 0, 1, 0, 1, 0, 0, 1, 0] and voltage.item() == 0


def test_the_gradient_of_a_spike_is_that_of_a_sigmoid_and_none_flows_through_the_reset():
    x = torch.tensor([[[2.5], [0.5], [0.25]]], dtype=torch.float64, requires_grad=True)     # 1.25 fires | 0.25 | 0.25
    soft = [torch.sigmoid(torch.tensor(4 * (v - 1.0), dtype=torch.float64)) for v in (1.25, 0.25, 0.25)]
    slope = [4 * float(s * (1 - s)) for s in soft]
    weights = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad((fired(x)[0, :, 0] * weights).sum(), x)
    wanted = [slope[0] / 2, 10 * slope[1] / 2 + 100 * slope[2] / 4, 100 * slope[2] / 2]
    torch.testing.assert_close(grad.flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("length", [1, 2, 63])
def test_neurons_are_those_of_a_plain_loop_with_gradients(length):
    weights = {"norm.weight": torch.ones(5, dtype=torch.float64), "norm.bias": torch.zeros(5, dtype=torch.float64)}
    x = random(3, length, 5, scale=2.5).requires_grad_()
    ours, theirs, weight = fired(x, 0.7), spiked(weights, x, "", 0.7), random(3, length, 5, seed=1)
    assert torch.equal(ours, theirs) and (length == 1 or 0.1 < ours.mean() < 0.6)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), x) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_where_every_input_stays_below_or_fires_a_neuron_is_a_step_function():
    """An input of at least twice the threshold fires at once; one below it never does, from rest."""
    high = torch.where(random(2, 40, 7) > 0, 2.0, 0.0)
    assert torch.equal(fired(high), (high > 0).to(high.dtype))
    assert not fired(random(2, 40, 7).clamp(max=0.999)).any()


def test_a_constant_input_fires_at_the_rate_of_the_formula():
    """From 0 the voltage is (1 - 2^-n) x after n steps: a spike every n steps, n the first with (1 - 2^-n) x >= 1."""
    for x, n in ((2.0, 1), (1.5, 2), (1.2, 3), (1.1, 4), (1.05, 5)):
        spikes = fired(torch.full((1, 60, 1), x, dtype=torch.float64)).flatten()
        assert spikes.nonzero().flatten().tolist() == list(range(n - 1, 60, n))


def test_spikes_are_exact_in_half_precision_and_keep_its_type():
    for dtype in (torch.float16, torch.bfloat16):
        y = SpikingNorm(6, "affine").to(dtype)(random(2, 50, 6, scale=3).to(dtype))
        assert y.dtype == dtype and set(y.unique().tolist()) == {0.0, 1.0}


# -- operators ---------------------------------------------------------------------------------------------------------

OPERATORS = {"LMU": bp.LMU(order=6, theta=9.0, signals=2, spiking=True), "order of the paper": bp.LMU(spiking=True),
             "NormedMLP": bp.NormedMLP(ratio=3, activation="spike", bias=True),
             "FrameTokenizer": bp.FrameTokenizer(features=5, layers=2, spiking=True)}
MIXERS = ["LMU", "order of the paper", "NormedMLP"]
CALLS = {"LMU": spiking_lmu, "NormedMLP": normed_mlp, "FrameTokenizer": frame_tokenizer}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("length", [2, 63])
def test_operators_of_neurons_behind_batch_norms_are_their_formulas(name, length):
    config = OPERATORS[name]
    module = lively(built(config, 9, dtype=torch.float64))
    x = random(3, length, 5 if name == "FrameTokenizer" else 9, seed=1).requires_grad_()
    leaves = {n: p for n, p in module.named_parameters() if p.requires_grad} | {"x": x}
    ours, theirs = module(x), CALLS[type(config).__name__](dict(module.named_parameters()), config, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    weight = random(*ours.shape, seed=2)
    for key, a, b in zip(leaves, *(torch.autograd.grad((y * weight).sum(), list(leaves.values())) for y in (ours, theirs)),
                         strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MIXERS)
def test_a_trained_batch_norm_is_a_gain_and_a_shift_and_streams(name):
    """In evaluation: "batch" equals "affine" of its statistics, no output looks ahead, and steps equal the whole pass."""
    config, width = OPERATORS[name], 8
    module = lively(built(config, width, dtype=torch.float64)).eval()
    other = replace(config, norm="affine")
    weights = module.state_dict()
    for place in [key.removesuffix(".running_var") for key in weights if key.endswith("running_var")]:
        mean, var = (weights.pop(f"{place}.running_{part}") for part in ("mean", "var"))
        weights[f"{place}.weight"] = weights[f"{place}.weight"] / torch.sqrt(var + 1e-5)
        weights[f"{place}.bias"] = weights[f"{place}.bias"] - mean * weights[f"{place}.weight"]
    affine = other.build(width).double()
    affine.load_state_dict(weights)
    x = random(2, 37, width, seed=4)
    whole = module(x)
    torch.testing.assert_close(whole, affine(x), rtol=1e-9, atol=1e-10)
    changed = torch.cat([x[:, :20], random(2, 17, width, seed=5)], 1)
    torch.testing.assert_close(module(changed)[:, :20], whole[:, :20], rtol=1e-9, atol=1e-10)
    assert not torch.allclose(module(changed)[:, 20:], whole[:, 20:])
    for cuts in ([37], [1] * 37, [20, 17], [36, 1]):
        state, pieces = module.init_state(2, torch.float64), []
        for piece in x.split(cuts, 1):
            y, state = module.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-10)


def test_a_memory_that_is_always_spoken_to_is_the_memory_of_a_constant():
    """Neurons that always fire give ones: what reaches the memory's neurons is the naive memory of a signal of ones."""
    config, width = bp.LMU(order=5, theta=11.0, spiking=True, norm="affine"), 4
    module = built(config, width, dtype=torch.float64)
    for name, value in (("input", (0.0, 9.0)), ("signal", (0.0, 9.0)), ("hidden", (1.0, 0.0))):
        norm = getattr(module, f"{name}_spikes").norm
        norm.weight.data.fill_(value[0])
        norm.bias.data.fill_(value[1])
    seen = []
    module.memory_spikes.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(random(2, 30, width))
    memory, _ = naive_legendre(torch.ones(2, 30, 1, dtype=torch.float64), naive_legendre_system(5, 11.0))
    torch.testing.assert_close(seen[0], memory.flatten(2), rtol=1e-9, atol=1e-10)


def test_neurons_that_never_fire_leave_the_biases():
    module = built(bp.LMU(spiking=True, norm="affine"), 6, dtype=torch.float64)
    for place in ("input", "signal", "memory", "hidden"):
        getattr(module, f"{place}_spikes").norm.bias.data.fill_(-1e3)
    torch.testing.assert_close(module(random(2, 9, 6)), module.out.bias.expand(2, 9, 6))


def test_a_head_of_spikes_scores_how_often_channels_fire():
    head = lively(built(bp.PooledHead(4, spiking=True), 6, dtype=torch.float64)).eval()
    x = random(3, 21, 6, seed=7)
    counts = head.spikes(x).sum(1)
    assert torch.equal(counts, counts.round()) and counts.unique().numel() > 3
    torch.testing.assert_close(head(x), counts / 21 @ head.scores.weight.T + head.scores.bias)
    torch.testing.assert_close(head(x), head.scores(head.spikes(x)).mean(1))                # the paper averages scores


def test_frames_are_seen_one_ahead_by_every_convolution():
    for layers in (1, 4):
        module = built(bp.FrameTokenizer(features=3, layers=layers), 32, dtype=torch.float64).eval()
        x = random(1, 30, 3)
        moved = (module(torch.cat([x[:, :15], x[:, 15:16] + 1, x[:, 16:]], 1)) != module(x)).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == list(range(15 - layers - 1, 15 + layers + 2))


def test_frames_through_convolutions_of_only_a_middle_tap_are_a_token_each():
    module = built(bp.FrameTokenizer(features=4, layers=1), 4, dtype=torch.float64).eval()
    module.convs[0].weight.data.copy_(F.pad(torch.eye(4)[..., None], (1, 1)))
    module.position.weight.data.zero_()
    norm, x = module.norms[0], random(2, 9, 4)
    scaled = (x.clamp(min=0) - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(module(x), norm.weight * scaled + norm.bias)


# -- the published networks --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("size", "published"), [("speech", 1_621_796), ("spiking", 1_689_894)])
def test_lmuformer_has_the_weights_of_the_authors_code(size, published):
    """Counted by hand over the authors' layers for 128 bands, width 256, ratio 4 and 35 words."""
    d, bands, order = 256, 128, 512 if size == "spiking" else 256
    norm, position = 2 * d, 3 * d * d
    embedding = 3 * bands * d + 3 * 3 * d * d + position + 4 * norm
    memory = (d + 1) + (order + d + 1) * d + (d + 1) * d + norm                        # u, h, the projection and its norm
    memory += norm + 2 * 1 + 2 * order + norm if size == "spiking" else 0              # of input, u, m and h
    channel = (d + 1) * 4 * d + (4 * d + 1) * d + norm + 4 * norm
    head = (d + 1) * 35 + (norm if size == "spiking" else 0)
    assert embedding + memory + channel + head == published
    assert bp.presets.lmuformer.fixed(size).cost(128).parameters == published


def test_multiply_adds_of_lmuformer_are_those_it_runs():
    architecture = bp.presets.lmuformer.fixed("tiny-spiking")
    model, declared = architecture.build(seed=0).eval(), architecture.cost(64).macs
    executed = count_macs(model, torch.randn(1, 64, 128))
    assert 0.6 * executed <= declared <= 1.1 * executed


@pytest.mark.parametrize("size", ["tiny", "tiny-spiking"])
def test_lmuformer_is_exported_and_stands_alone(size, tmp_path):
    model, x = bp.presets.lmuformer.fixed(size).build(seed=0), random(4, 40, 128, dtype=torch.float32)
    model.train()
    model(x)                                                            # moves the statistics
    bp.export(model.eval(), tmp_path / size)                            # compares outputs, bit for bit
    assert "bodyplan" not in (tmp_path / size / "model.py").read_text()


@pytest.mark.parametrize("spiking", [False, True])
def test_networks_of_a_searched_lmuformer_are_parts_of_one_supernet(spiking):
    space = bp.presets.lmuformer.space(features=6, classes=3, spiking=spiking)
    net, x = bp.Supernet(space, seed=0), random(2, 12, 6, dtype=torch.float32)
    lively(net)
    for seed in range(4):
        architecture = space.sample(seed)
        part, alone = net.subnet(architecture).eval(), net.extract(architecture).eval()
        assert torch.equal(part(x), alone(x))


@pytest.mark.parametrize("size", ["tiny", "tiny-spiking"])
def test_lmuformer_learns_which_half_of_the_bands_is_loud(size):
    model = bp.presets.lmuformer.fixed(size, features=8, classes=2).build(seed=0).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    label = torch.arange(32) % 2
    x = random(32, 16, 8, dtype=torch.float32, scale=0.3)
    x[label == 0, :, :4] += 1
    x[label == 1, :, 4:] += 1
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    with torch.no_grad():
        for _ in range(40):
            model(x)                                                    # statistics of the weights as they are now
    assert (model.eval()(x).argmax(-1) == label).float().mean() > 0.9


def test_every_weight_of_spiking_lmuformer_gets_a_gradient():
    model = bp.presets.lmuformer.fixed("tiny-spiking").build(seed=0).train()
    model(random(4, 20, 128, dtype=torch.float32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters()
               if p.requires_grad and not name.endswith("hidden.bias"))


# -- refusals ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.LMU(norm="affine"), "a norm is of neurons at here: got norm='affine' with spiking=False"),
    (bp.LMU(spiking=True, norm="layer"), "unknown norm 'layer'"),
    (bp.NormedMLP(activation="spike", norm="layer"), "unknown norm 'layer'"),
    (bp.NormedMLP(activation="spike", last=True), "got last=True with activation='spike'; leave it out"),
    (bp.PooledHead(3, pool="max", spiking=True), "spikes are counted by pool='mean' at here: got 'max'"),
    (bp.FrameTokenizer(features=0), "features must be a whole number of at least 1 at here: got 0"),
    (bp.FrameTokenizer(layers=1.5), "layers must be a whole number"),
])
def test_numbers_that_cannot_be_built_are_named(config, text):
    with pytest.raises(ValueError, match=text):
        config.check(16, "here")


def test_a_layer_of_neurons_decodes_in_a_model_of_tokens():
    """Whole networks of spikes with trained norms decode token by token as they read."""
    body = (bp.Block(mixer=bp.LMU(order=6, theta=16, spiking=True, norm="affine"), norm=bp.NoNorm()),
            bp.Block(channel=bp.NormedMLP(ratio=2, activation="spike", norm="affine"), mixer=bp.Identity(), norm=bp.NoNorm()))
    model = lively(bp.Space(embed=bp.TokenEmbedding(vocab=11), width=16, body=body,
                            head=bp.LanguageHead()).sample(0).build(seed=0).double())
    ids = torch.randint(11, (2, 23), generator=torch.Generator().manual_seed(0))
    state, pieces = model.init_state(2, torch.float64), []
    for t in range(23):
        y, state = model.step(ids[:, t:t + 1], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-9, atol=1e-9)
