"""State spaces, long filters and memories that learn: identities with what is known, bad numbers, long and short numbers."""

from __future__ import annotations

from functools import partial

import bodyplan as bp
import pytest
import torch
from bodyplan.kernels.gated_delta import naive_gated_delta
from bodyplan.kernels.linear_recurrence import naive_linear_recurrence
from bodyplan.space.model import initialise
from bodyplan.space.operators.learning_memory import LearningMemory
from bodyplan.testing import built, example_inputs
from operator_examples import EXAMPLES

torch.set_num_threads(1)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module_of(config, width, **values):
    """In float64, with some parameters set."""
    module = built(config, width, dtype=torch.float64)
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name.replace("__", ".")).copy_(torch.as_tensor(value, dtype=torch.float64))
    return module


def same(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


# -- identities --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("head_dim", [None, 24, 64])
def test_delta_net_is_a_gated_delta_net_without_its_gates(head_dim):
    ours, theirs = bp.DeltaNet(heads=2, head_dim=head_dim), bp.GatedDeltaNet(2, head_dim, gate=False, decay=False)
    x = random(2, 63, 16)
    assert torch.equal(module_of(ours, 16)(x), module_of(theirs, 16)(x))
    assert ours.axes(16) == theirs.axes(16) and ours.macs(16, 63) == theirs.macs(16, 63)


def test_mamba_without_time_passes_the_skip_alone():
    module = module_of(bp.Mamba(state=4, conv=None), 16, ssm__dt_bias=[-80.0] * 32, ssm__dt__weight=torch.zeros(32, 1))
    x = random(2, 9, 16)
    u, z = module.input(x).chunk(2, -1)
    same(module(x), module.out(torch.nn.functional.silu(u) * module.ssm.D * torch.nn.functional.silu(z)))


def test_a_bidirectional_mamba_with_equal_halves_follows_a_reversal():
    module = module_of(bp.Mamba(state=4, bidirectional=True), 16)
    module.backward_ssm.load_state_dict(module.ssm.state_dict())
    x = random(2, 63, 16)
    same(module(x.flip(1)), module(x).flip(1))


def test_channels_of_a_token_know_no_other_token():
    module, x = module_of(bp.SelectiveChannelMixer(size=4, state=2), 16), random(2, 9, 16)
    same(module(x)[:, 3:4], module(x[:, 3:4]))
    changed = x.clone()
    changed[..., -1] += 1
    assert (module(changed)[..., 0] != module(x)[..., 0]).all(), "the first channels see the last"


def test_the_states_of_every_stage_have_class_scores_of_their_own_in_learned_shares():
    """A head over the fused token against the paper's four heads, summed in shares; a stage that tells is the same stage."""
    def stage(state, tells, *before):
        return (*before, bp.Block(mixer=bp.HiddenStateMixer(state=state, tells=tells), norm=bp.LayerNorm()))

    fusion = bp.StateFusion(stage(4, True), stage(3, True, bp.InvertedMerging(width=24)), (
        *stage(2, True, bp.InvertedMerging(width=8)), bp.StreamNorm(bp.LayerNorm())))
    found = bp.Space(embed=bp.PatchEmbedding(patch=4, image=28, grid=True), width=16, body=fusion, norm=bp.NoNorm(),
                     head=bp.ClassifierHead(classes=5)).sample(0)
    model = found.build(seed=1).double().eval()
    module, head = model.layers[0], model.head.scores
    with torch.no_grad():
        module.share.copy_(random(4))
        head.bias.copy_(random(5, seed=2))
    x, means = model.embed(random(2, 1, 28, 28, seed=3)), []
    for layers in (module.first, module.second, module.third):
        for layer in layers:
            if hasattr(layer, "mixer"):
                h = layer.mixer.op.mixed(layer.mixer.norm(x))[1]
                means.append(torch.nn.functional.layer_norm(h, h.shape[-1:]).mean(1))
            x = layer(x)
    means.append(x.mean((1, 2)))
    shares, at, scores = torch.softmax(module.share, 0), 0, head.bias
    for share, mean in zip(shares, means, strict=True):
        scores = scores + share * mean @ head.weight[:, at:at + mean.shape[1]].T
        at += mean.shape[1]
    assert at == head.weight.shape[1] == 16 + 24 + 8 + 8 == found.plan.out_width
    same(model(random(2, 1, 28, 28, seed=3)), scores)
    quiet = bp.HiddenStateMixer(state=4).build(16).double()
    quiet.load_state_dict({k: v for k, v in module.first[0].mixer.op.state_dict().items() if "told" not in k})
    y = random(2, 3, 5, 16)
    assert torch.equal(quiet(y), module.first[0].mixer.op(y))


@pytest.mark.parametrize("second", [(), (bp.Block(mixer=bp.HiddenStateMixer(state=2)),),
                                    (bp.Block(mixer=bp.HiddenStateMixer(tells=True)),) * 2])
def test_a_stage_that_does_not_tell_its_states_once_is_refused(second):
    told = (bp.Block(mixer=bp.HiddenStateMixer(state=2, tells=True)),)
    with pytest.raises(ValueError, match=r"the last HiddenStateMixer of a stage tells its states"):
        bp.Space(embed=bp.PatchEmbedding(patch=4, image=28, grid=True), width=8, body=bp.StateFusion(told, second, told),
                 head=bp.ClassifierHead(classes=5)).sample(0).cost()


def test_hidden_states_have_no_order_without_the_convolution():
    module, x = module_of(bp.HiddenStateMixer(state=5, kernel=1), 16), random(2, 5, 7, 16)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))

    def moved(y):
        return y.flatten(1, 2)[:, order].view_as(y)

    same(module(moved(x)), moved(module(x)))


def test_the_last_token_of_a_causal_virtual_node_reads_what_all_read_of_a_whole_one():
    x, whole = random(2, 63, 16), module_of(bp.VirtualNode(), 16)
    running = module_of(bp.VirtualNode(bidirectional=False), 16)
    assert (whole(x) == whole(x)[:, :1]).all()
    same(running(x)[:, -1], whole(x)[:, -1])


def test_extractors_contain_one_another():
    x, taps = random(2, 30, 8), random(9, seed=1)
    she = module_of(bp.Extractor("she", 9), 8, matrices=torch.eye(8)[:, :, None] * taps)
    he = module_of(bp.Extractor("he", 9), 8, channels=taps.expand(8, 9))
    we = module_of(bp.Extractor("we", 9), 8, numbers=taps)
    for other in (she, he):
        other.gate.load_state_dict(we.gate.state_dict())
        other.out.load_state_dict(we.out.state_dict())
        same(other(x), we(x))
    flat, me = module_of(bp.Extractor("we", 9), 8, numbers=[1.0] * 9), module_of(bp.Extractor("me", 9), 8)
    me.load_state_dict({name: part for name, part in flat.state_dict().items() if name != "numbers"})
    same(me(x), flat(x))


def test_an_extractor_forgets_what_is_out_of_reach():
    module, x = module_of(bp.Extractor("she", 5), 8), random(1, 20, 8)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (module(changed) != module(x)).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [4, 5, 6, 7, 8]


def test_one_direction_of_a_hyena_looks_up_and_left_alone():
    module, x = module_of(bp.HyenaND(directions=1, conv=1, filter_dim=4, bands=2), 8), random(1, 5, 7, 8)
    changed = x.clone()
    changed[:, 2, 3] += 1
    moved = ((module(changed) - module(x)).abs().amax(-1)[0] > 1e-9).nonzero().tolist()
    assert moved == [[r, c] for r in range(2, 5) for c in range(3, 7)]


@pytest.mark.parametrize("flip", [(1, 2), (1,), (2,)])
def test_four_directions_with_equal_filters_follow_a_reflection(flip):
    module = module_of(bp.HyenaND(conv=1, filter_dim=4, bands=2), 8)
    with torch.no_grad():
        for part in (module.filter.response.weight, module.filter.skip, module.mix):
            part.copy_(part.unflatten(0, (4, -1))[:1].expand(4, *[-1] * part.ndim).flatten(0, 1))
        module.filter.log_rate.copy_(module.filter.log_rate[:, :1].expand(-1, 4, -1))
    x = random(2, 5, 7, 8)
    same(module(x.flip(flip)), module(x).flip(flip))


@pytest.mark.parametrize("condition", ["magnitude", "correlation"])
@pytest.mark.parametrize("length", [1, 63, 100])
def test_orchid_follows_a_shift_around_the_circle(condition, length):
    module = module_of(bp.Orchid(condition=condition, kernel=1, conv=1, filter_dim=4, bands=2), 8)
    x = random(2, length, 8)
    same(module(x.roll(17, 1)), module(x).roll(17, 1), 1e-9)


def test_orchids_filter_depends_on_the_sequence():
    module, x = module_of(bp.Orchid(kernel=1, conv=1, filter_dim=4, bands=2), 8), random(1, 12, 8)
    linear = torch.autograd.functional.jacobian(lambda y: module(y)[0, 0, 0], x)
    assert not torch.allclose((linear * x).sum(), module(x)[0, 0, 0])
    with torch.no_grad():
        module.first.zero_()
    x1, x2 = random(1, 12, 8, seed=1), random(1, 12, 8, seed=2)
    gates = [module.input(y)[..., :16] for y in (x1, x2)]
    assert not torch.allclose(*gates), "an output is a product of gates even without a condition"
    assert module.adapted(module.input(x1)[..., -8:]).abs().max() == 0


def test_a_fast_fading_past_leaves_rwkv_the_token_and_the_one_before():
    module, x = module_of(bp.RWKV(), 8, decay=[9.0] * 8), random(1, 20, 8)
    changed = x.clone()
    changed[:, 5] += 1
    moved = ((module(changed) - module(x)).abs().amax(-1)[0] > 1e-9).nonzero().flatten().tolist()
    assert moved == [5, 6, 7], "a token, its shift, and the value kept for one more"


def test_a_vision_rwkv_without_decay_or_bonus_is_a_softmax_over_all_places():
    module, x = module_of(bp.VisionRWKV(), 8, decay=[0.0] * 8, bonus=[0.0] * 8, mix=torch.ones(3, 8)), random(2, 5, 7, 8)
    k, v = module.key(x).flatten(1, 2), module.value(x).flatten(1, 2)
    mean = (k.softmax(1) * v).sum(1)[:, None, None]
    same(module(x), module.out(torch.sigmoid(module.receptance(x)) * mean))


# -- memories that learn -----------------------------------------------------------------------------------------------

DELTA = partial(bp.NeuralMemory, depth=1, chunk=1, inner="gd")


@pytest.mark.parametrize("length", [1, 63, 100])
def test_one_layer_and_one_token_at_a_time_are_the_gated_delta_rule(length):
    module = module_of(DELTA(heads=2), 16)
    assert isinstance(module, LearningMemory) and module.is_delta
    x = random(2, length, 16)
    by_kernel = module(x)
    module.is_delta = False
    same(module(x), by_kernel, 1e-9)


def test_the_gated_delta_kernel_writes_what_titans_formula_writes():
    k, v = torch.nn.functional.normalize(random(1, 30, 1, 4), dim=-1), random(1, 30, 1, 3, seed=1)
    keep, theta = torch.sigmoid(random(1, 30, 1, seed=2)), torch.sigmoid(random(1, 30, 1, seed=3))
    memory = random(4, 3, seed=4)
    _, end = naive_gated_delta(k, k, keep[..., None] * v, log_decay_BTH=keep.log(), beta_BTH=theta / keep,
                               state_BHKV=memory[None, None])
    for t in range(30):
        error = k[0, t, 0] @ memory - v[0, t, 0]
        memory = keep[0, t, 0] * memory - theta[0, t, 0] * k[0, t, 0][:, None] * error
    same(end[0, 0], memory, 1e-9)


@pytest.mark.parametrize("inner", ["gd", "momentum"])
@pytest.mark.parametrize("depth", [1, 2])
def test_atlas_with_a_window_of_one_and_plain_keys_is_titans(inner, depth):
    numbers = dict(heads=2, depth=depth, inner=inner, chunk=7)
    ours, theirs = bp.Atlas(window=1, degree=1, **numbers), bp.NeuralMemory(**numbers)
    x = random(2, 63, 16)
    assert torch.equal(module_of(ours, 16)(x), module_of(theirs, 16)(x))


def test_a_momentum_that_is_off_is_gradient_descent():
    x = random(2, 30, 8)
    with_momentum = module_of(bp.NeuralMemory(chunk=4), 8, momentum_bias=[-60.0] * 2)
    plain = module_of(bp.NeuralMemory(chunk=4, inner="gd"), 8)
    weights = with_momentum.state_dict()
    weights["input.weight"] = weights["input.weight"][:len(plain.input.weight)]
    plain.load_state_dict({name: part for name, part in weights.items() if name != "momentum_bias"})
    with torch.no_grad():
        with_momentum.input.weight[len(plain.input.weight):] = 0
    same(with_momentum(x), plain(x), 1e-9)


@pytest.mark.parametrize("inner", ["gd", "momentum", "muon"])
def test_a_memory_learns_what_it_reads_again_and_again(inner):
    """The error of the memory at a repeated key and value falls."""
    module = module_of(bp.Atlas(heads=1, chunk=2, conv=None, window=4, inner=inner, rate=0.05 if inner == "muon" else 0.5), 8,
                       keep_bias=[9.0])
    x = random(1, 1, 8).expand(1, 60, 8)
    mixed, _, *logits = module.input(x).split(module.sizes, -1)
    token = module.tokens(torch.nn.functional.silu(mixed), logits)
    asks_for_what_is_written = torch.cat([token[..., 8:16], token[..., 8:]], -1)
    read, _ = module.by_chunks(asks_for_what_is_written, None)
    errors = (read - token[..., 16:24]).square().mean((0, 2, 3))
    assert errors[-1] < 0.5 * errors[0]


def test_features_multiply_like_the_series_of_exp():
    module = module_of(bp.Atlas(heads=1), 8)
    a, b = random(5, 8), random(5, 8, seed=1)
    product = (a * b).sum(-1)
    same((module.features(a) * module.features(b)).sum(-1), (1 + product + product**2 / 2) / 2.5)
    unit = torch.nn.functional.normalize(a, dim=-1)
    same(module.features(unit).norm(dim=-1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 63, 100])
def test_in_one_chunk_a_linear_memory_from_zero_is_linear_attention_with_a_decay(length):
    """All gradients are those of a memory that knows nothing, so that none corrects another."""
    module = module_of(bp.NeuralMemory(heads=2, depth=1, inner="gd", chunk=128), 16, memory__only=torch.zeros(2, 8, 8))
    mixed, _, *logits = module.input(random(2, length, 16)).split(module.sizes, -1)
    token = module.tokens(mixed, logits)
    q, k, v, log_keep, step, _ = token.split([8, 8, 8, 1, 1, 2], -1)
    wanted, _ = naive_linear_recurrence(q, k, step * v, log_decay_BTH=log_keep[..., 0])
    same(module.by_chunks(token, None)[0], wanted)


# -- scans over grids --------------------------------------------------------------------------------------------------

MAMBA = bp.Mamba(state=3, expand=1)


def test_one_path_by_rows_is_the_mixer_itself():
    scanned, plain = module_of(bp.Scanned(MAMBA, paths=("rows",)), 8), module_of(MAMBA, 8)
    x = random(2, 5, 7, 8)
    same(scanned(x), plain(x.flatten(1, 2)).view_as(x))
    sequence = random(2, 63, 8)
    same(scanned(sequence), plain(sequence))


def test_columns_are_the_rows_of_the_transposed_grid():
    rows, columns = (module_of(bp.Scanned(MAMBA, paths=(path,)), 8) for path in ("rows_back", "columns_back"))
    x = random(2, 5, 7, 8)
    same(columns(x.transpose(1, 2)), rows(x).transpose(1, 2))


def test_groups_see_nothing_of_each_other():
    module, x = module_of(bp.Scanned(MAMBA, paths=("rows",), group=8), 8), random(1, 4, 8, 8)
    changed = x.clone()
    changed[:, 1] += 1
    assert ((module(changed) != module(x)).any(-1).any(-1)[0] == torch.tensor([False, True, False, False])).all()


def test_a_nested_path_keeps_squares_together():
    module, x = module_of(bp.Scanned(MAMBA, paths=("nested",), group=16), 8), random(1, 8, 8, 8)
    changed = x.clone()
    changed[:, 4, 0] += 1
    moved = (module(changed) != module(x)).any(-1)[0]
    assert moved[4:, :4].all() and moved.sum() == 16, "the lower left square of four by four, and nothing else"


@pytest.mark.parametrize("mixer", [bp.Mamba2(state=4, head_dim=4), bp.GatedDeltaNet(heads=2), bp.RWKV(), bp.DeltaNet()])
def test_any_linear_recurrence_runs_in_groups(mixer):
    config = bp.Scanned(mixer, paths=("rows", "columns_back"), group=6)
    config.check(8, "here")
    x = random(1, 4, 5, 8)
    assert module_of(config, 8)(x).shape == x.shape


def test_choices_inside_a_scanned_mixer_share_one_supernet():
    mixer = bp.Scanned(bp.Mamba(state=bp.choice(2, 4)), group=bp.choice(None, 4), shared=bp.choice(True, False))
    space = bp.Space(embed=bp.PatchEmbedding(patch=4, image=16, channels=1, grid=True), width=bp.choice(8, 16),
                     body=bp.Block(mixer=mixer), head=bp.ClassifierHead(classes=3))
    net, pixels = bp.Supernet(space, seed=0), torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert space.size() == 16
    for architecture in map(space.architecture, space.enumerate()):
        torch.testing.assert_close(net.subnet(architecture)(pixels), net.extract(architecture)(pixels), rtol=1e-5, atol=1e-5)


# -- numbers -----------------------------------------------------------------------------------------------------------

LINEAR = {"Mamba": bp.Mamba(state=4), "DeltaNet": bp.DeltaNet(), "Extractor": bp.Extractor("he", 16), "LMU": bp.LMU(),
          "RWKV": bp.RWKV(decay_rank=2), "NeuralMemory": bp.NeuralMemory(chunk=64), "Orchid": bp.Orchid(filter_dim=4),
          "Atlas": bp.Atlas(chunk=128, inner="momentum"), "VirtualNode": bp.VirtualNode(bidirectional=False),
          "HiddenStateMixer": bp.HiddenStateMixer(state=4), "VisionRWKV": bp.VisionRWKV(),
          "HyenaND": bp.HyenaND(filter_dim=4, bands=2), "Scanned": bp.Scanned(bp.Mamba(state=2), paths=("nested",))}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_sixteen_thousand_tokens_stay_finite(name):
    config = LINEAR[name]
    x = example_inputs(config, 8, batch=1, length=(128, 128) if config.spatial else 16_384)[0]
    assert built(config, 8)(x).isfinite().all()


# Rounded weights move a network of sines of large angles a good deal, in bfloat16 most.
@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.2), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("name", sorted(LINEAR | {"SelectiveChannelMixer": None}))
@torch.no_grad()
def test_half_precision_stays_finite_and_near(name, dtype, share):
    config, width = EXAMPLES[name][0]
    module, x = built(config, width), example_inputs(config, width, length=(5, 7) if config.spatial else 63)[0]
    wanted, y = module(x), module.to(dtype)(x.to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    assert (y.float() - wanted).abs().mean() < share * wanted.abs().mean()


def test_a_memory_of_one_layer_starts_at_zero_and_deeper_ones_do_not():
    for depth, name in ((1, "memory.only"), (2, "memory.first")):
        declared = bp.NeuralMemory(depth=depth).axes(8)[name]
        tensor = torch.empty(declared.shape)
        initialise(tensor, declared, torch.Generator().manual_seed(0))
        assert bool(tensor.any()) == (depth > 1)


@pytest.mark.parametrize(("config", "text"), [
    (bp.Mamba(state=0), "state must be a whole number of at least 1 at here: got 0"),
    (bp.Mamba(conv=-1), "use 4, or None for no convolution"),
    (bp.Mamba(dt_rank=2.5), "dt_rank must be a whole number"),
    (bp.DeltaNet(heads=3), "heads must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.SelectiveChannelMixer(size=5), "size must divide width at here: got 5 and 16; use 2 or 4"),
    (bp.HiddenStateMixer(kernel=2), "kernel must be odd at here: got 2; use 1 or 3"),
    (bp.VirtualNode(pool="max"), "max.*here"),
    (bp.Extractor("hee"), "did you mean"),
    (bp.Extractor(reach=0), "reach must be a whole number"),
    (bp.LMU(theta=0), "theta must be a finite number of tokens above 0 at here: got 0; use 128"),
    (bp.LMU(order=2.5), "order must be a whole number"),
    (bp.HyenaND(directions=3), "directions must be 1, 2 or 4 at here: got 3"),
    (bp.HyenaND(order=1), "use DepthwiseConv2d for no long convolution"),
    (bp.Orchid(condition="corr"), "corr"),
    (bp.Orchid(conv=4), "conv must be odd"),
    (bp.RWKV(decay_rank=1.5), "use 32, or None for a decay per channel"),
    (bp.NeuralMemory(inner="muon"), r"use Atlas\(window=1, degree=1\)"),
    (bp.NeuralMemory(rate=-1.0), "rate must be a finite number above 0 at here: got -1.0"),
    (bp.Atlas(degree=3), "degree must be 1 or 2 at here: got 3"),
    (bp.Atlas(inner="moun"), "did you mean"),
    (bp.Atlas(window=0), "window must be a whole number"),
    (bp.Scanned(bp.SwiGLU()), "a scanned mixer is an operator that takes sequences at here"),
    (bp.Scanned(bp.Pooling()), "a scanned mixer is an operator that takes sequences at here"),
    (bp.Scanned(paths=("rows", "diagonal")), "diagonal"),
    (bp.Scanned(paths=()), "paths is a tuple of rows"),
    (bp.Scanned(group=0), "use 64, or None for one group"),
    (bp.Scanned(bp.Mamba(state=0)), "state must be a whole number of at least 1 at here.mixer"),
])
def test_numbers_that_cannot_be_built_are_named(config, text):
    with pytest.raises(ValueError, match=text):
        config.check(16, "here")
