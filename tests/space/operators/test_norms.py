"""Norms and joins: what ties each to something known, and what is refused."""

import math

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.testing import built, check_operator

SIZES = [(1, 24), (63, 64), (100, 15)]
sizes = pytest.mark.parametrize(("length", "width"), SIZES)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(config, width):
    return built(config, width, dtype=torch.float64).eval()


# -- norms -------------------------------------------------------------------------------------------------------------

@sizes
def test_a_layer_norm_is_its_projection_and_then_its_scaling(length, width):
    x, plain = drawn(2, length, width), {"bias": False, "eps": 0.0}
    whole, projects, scales = (bp.LayerNorm(**plain, **parts).build(width).double()
                               for parts in ({}, {"scale": False}, {"project": False}))
    torch.testing.assert_close(scales(projects(x)), whole(x))
    assert projects(x).sum(-1).abs().max() < 1e-10
    torch.testing.assert_close(scales(x).norm(dim=-1), torch.full((2, length), math.sqrt(width), dtype=torch.float64))


def test_a_layer_norm_without_either_part_is_refused():
    with pytest.raises(ValueError, match="projects or scales at here"):
        bp.LayerNorm(project=False, scale=False).check(8, "here")


@sizes
def test_the_compressed_norm_is_the_layer_norm_of_the_vector_with_its_last_entry(length, width):
    x = drawn(2, length, width)
    whole = torch.cat([x, -x.sum(-1, keepdim=True)], -1)
    ours = bp.CRMSNorm(eps=1e-5).build(width).double()(x)
    torch.testing.assert_close(ours, F.layer_norm(whole, (width + 1,), eps=1e-5)[..., :-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_compressed_norm_is_finite_in_half_precision_where_squares_are_not(dtype):
    assert bp.CRMSNorm().build(64).to(dtype)(torch.full((1, 3, 64), 3e3, dtype=dtype)).isfinite().all()


def test_a_progressive_norm_starts_as_a_layer_norm_and_ends_as_a_scale_and_a_shift():
    x, norm = drawn(2, 63, 24), made(bp.PRepBN(steps=4, warmup=2), 24)
    norm.trained.data.zero_()
    layer = F.layer_norm(x, (24,), norm.layer_weight, norm.layer_bias, 1e-5)
    torch.testing.assert_close(norm(x), layer)
    norm.train()
    for _ in range(2):
        torch.testing.assert_close(norm(x), layer)
    shares = [norm.gamma().item()]
    for _ in range(4):
        norm(x)
        shares.append(norm.gamma().item())
    assert shares == [1.0, 0.75, 0.5, 0.25, 0.0]
    gain = norm.weight / (norm.running_var + 1e-5).sqrt() + norm.eta
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + 1e-5).sqrt()
    torch.testing.assert_close(norm.eval()(x), gain * x + shift)


def test_a_progressive_norm_between_its_ends_is_their_mixture():
    x, norm = drawn(2, 9, 8), made(bp.PRepBN(steps=4), 8)
    norm.trained.data.fill_(1.0)
    batch = F.batch_norm(x.flatten(0, 1), norm.running_mean, norm.running_var, norm.weight, norm.bias).view(x.shape)
    layer = F.layer_norm(x, (8,), norm.layer_weight, norm.layer_bias, 1e-5)
    torch.testing.assert_close(norm(x), 0.75 * layer + 0.25 * (batch + norm.eta * x))


@pytest.mark.parametrize("config", [bp.PRepBN(steps=0), bp.PRepBN(warmup=-1), bp.PRepBN(momentum=0.0)])
def test_bad_numbers_of_a_progressive_norm_are_refused(config):
    with pytest.raises(ValueError, match="at here: got"):
        config.check(8, "here")


def test_an_adaptive_norm_starts_as_a_layer_norm_without_gain_and_then_follows_its_condition():
    x, c = drawn(2, 63, 24), drawn(2, 1, 24, seed=1)
    norm = bp.AdaNorm().build(24).double()
    torch.nn.init.zeros_(norm.modulate.weight)
    torch.nn.init.zeros_(norm.modulate.bias)
    plain = F.layer_norm(x, (24,), eps=1e-6)
    torch.testing.assert_close(norm(x, {"condition": c}), plain)
    norm.modulate.bias.data.copy_(torch.cat([torch.full((24,), 2.0), torch.full((24,), 0.5)]))
    torch.testing.assert_close(norm(x, {"condition": c}), 1.5 * plain + 2)


def test_a_time_dependent_norm_at_either_end_is_a_layer_norm():
    x, norm = drawn(2, 7, 8), made(bp.TimeDependentNorm(), 8)
    norm.gain.data.copy_(drawn(2, 8, seed=2))
    for end, far in ((0, 1e3), (1, -1e3)):
        norm.position.bias.data.fill_(far)
        ours = norm(x, {"condition": torch.zeros(2, 1, 8, dtype=torch.float64)})
        torch.testing.assert_close(ours, F.layer_norm(x, (8,), norm.gain[end], norm.shift[end], 1e-6))


def test_a_time_dependent_norm_with_its_time_in_one_entry_is_the_papers():
    x, t, norm = drawn(3, 7, 8), drawn(3, 1, 1, seed=3), made(bp.TimeDependentNorm(), 8)
    w, b = norm.position.weight[0, 0], norm.position.bias[0]
    s = torch.sigmoid(w * t + b)
    condition = torch.cat([t, torch.zeros(3, 1, 7, dtype=torch.float64)], -1)
    wanted = F.layer_norm(x, (8,), eps=1e-6) * (s * norm.gain[0] + (1 - s) * norm.gain[1])
    wanted = wanted + s * norm.shift[0] + (1 - s) * norm.shift[1]
    torch.testing.assert_close(norm(x, {"condition": condition}), wanted)


@pytest.mark.parametrize("config", [bp.AdaNorm(), bp.TimeDependentNorm()])
def test_a_conditioned_norm_without_a_condition_says_where_one_comes_from(config):
    with pytest.raises(ValueError, match=r"put its blocks into Conditioned\(layers\)"):
        config.build(8)(torch.zeros(1, 2, 8), {})


# -- joins -------------------------------------------------------------------------------------------------------------

@sizes
def test_layer_scale_at_one_and_a_plain_sum_agree(length, width):
    x, y = drawn(2, length, width), drawn(2, length, width, seed=1)
    for join in (bp.LayerScale(init=1.0), bp.LayerScale(init=1.0, per_channel=False)):
        assert torch.equal(join.build(width).double()(x, y), bp.Add().build(width)(x, y))


@pytest.mark.parametrize("gate", ["gru", "input", "output", "highway", "sigtanh"])
@sizes
def test_a_gate_far_from_its_bias_leaves_the_stream_as_it_is(gate, length, width):
    x, y = drawn(2, length, width), drawn(2, length, width, seed=1)
    join = made(bp.GatedResidual(gate, rectified=False), width)
    if gate == "input":                                   # it gates the stream: without a bias it opens with its weights
        wide = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        join = made(bp.GatedResidual(gate, rectified=False), width + 1)
        join.gate.weight.data.zero_()
        join.gate.weight.data[:, -1] = 1e3
        torch.testing.assert_close(join(wide, F.pad(y, (0, 1)))[..., :-1], x + y)
        return
    join.bias.data.fill_(1e3)
    assert torch.equal(join(x, y), x)


def test_an_output_gate_that_is_open_is_the_plain_sum():
    x, y, join = drawn(2, 63, 24), drawn(2, 63, 24, seed=1), made(bp.GatedResidual("output", rectified=False), 24)
    join.bias.data.fill_(-1e3)
    assert torch.equal(join(x, y), x + y)


def test_the_gated_recurrent_unit_is_the_papers():
    x, y, join = drawn(2, 5, 8), drawn(2, 5, 8, seed=1), made(bp.GatedResidual(), 8)
    w_r, w_z, w_h = join.from_output.weight.chunk(3)
    u_r, u_z = join.from_stream.weight.chunk(2)
    for b in range(2):
        for t in range(5):
            stream, given = x[b, t], y[b, t].clamp(min=0)
            r = torch.sigmoid(w_r @ given + u_r @ stream)
            z = torch.sigmoid(w_z @ given + u_z @ stream - join.bias)
            h = torch.tanh(w_h @ given + join.candidate.weight @ (r * stream))
            torch.testing.assert_close(join(x, y)[b, t], (1 - z) * stream + z * h)


@pytest.mark.parametrize(("config", "words"), [
    (bp.GatedResidual("lstm"), "gate"), (bp.GatedResidual(start=math.inf), "start is the number"),
    (bp.LayerScale(init=math.nan), "init is the number"), (bp.Add(skip="two"), "skip is a number"),
    (bp.AugmentedShortcut(block=5), "block must divide width"), (bp.AugmentedShortcut(paths=0), "paths must be a whole")])
def test_bad_numbers_of_a_join_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        config.check(8, "here")


@pytest.mark.parametrize(("width", "block"), [(24, 6), (64, 16), (15, 15), (9, 1)])
def test_a_circulant_path_is_a_circular_convolution_of_every_block(width, block):
    x, join = drawn(1, 5, width), made(bp.AugmentedShortcut(paths=2, block=block), width)
    total = x.clone()
    columns = width // block
    for p in range(2):
        rows = []
        for i in range(columns):
            row = torch.zeros(1, 5, block, dtype=torch.float64)
            for j in range(columns):
                row += torch.fft.irfft(torch.fft.rfft(x[..., j * block:(j + 1) * block]) * torch.fft.rfft(
                    join.weight[p, i, j]), n=block)
            rows.append(row)
        total += F.gelu(torch.cat(rows, -1) + join.bias[p])
    torch.testing.assert_close(join(x, torch.zeros_like(x)), total)


def test_an_augmented_shortcut_holds_fewer_numbers_than_a_matrix_by_the_size_of_its_blocks():
    held = bp.AugmentedShortcut(paths=1, block=16).axes(64)["weight"].numel
    assert held == 64 * 64 // 16


def test_an_adaptive_gate_that_starts_at_zero_leaves_the_stream_alone():
    block = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(), norm=bp.AdaNorm(), join=bp.AdaGate())
    model = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=16, head=bp.LanguageHead(tied=True),
                     body=bp.Conditioned((block, block))).sample(0).build()
    ids = torch.randint(16, (2, 9))
    assert torch.equal(model.run(model.embed(ids)), model.embed(ids))


def test_what_is_conditioned_depends_on_the_first_token_alone():
    model = bp.Space(embed=bp.TokenEmbedding(vocab=16), width=16, head=bp.LanguageHead(tied=True), body=bp.Conditioned(
        bp.Block(channel=bp.MLP(), norm=bp.TimeDependentNorm()))).sample(0).build()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("gain", "shift")):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    ids = torch.randint(16, (1, 9), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 16
    assert (model(ids) != model(other)).any(-1).all()
    later = ids.clone()
    later[0, 4] = (ids[0, 4] + 1) % 16
    assert [bool((model(ids) == model(later))[0, t].all()) for t in range(9)] == [t != 4 for t in range(9)]


@pytest.mark.parametrize("length", [1, 63, 100])
def test_joins_keep_the_contract_at_a_head_size_of_24(length):
    check_operator(bp.GatedResidual("sigtanh"), 24, smaller=[(bp.GatedResidual("sigtanh"), 15)])
    assert made(bp.AugmentedShortcut(), 24)(drawn(1, length, 24), drawn(1, length, 24)).shape == (1, length, 24)


# -- inside operators --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("operator", [bp.MLP(ratio=2, activation="abs", sub_norm=True), bp.SwiGLU(ratio=2, sub_norm=True),
                                      bp.Attention(heads=2, sub_norm=True)])
def test_a_sub_norm_stands_before_the_last_matrix(operator):
    x, module = drawn(2, 9, 24), made(operator, 24)
    seen = []
    last = module.out if hasattr(module, "out") else module.down
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    module.sub_norm.weight.data.fill_(1.0)
    module.sub_norm.bias.data.zero_()
    module(x)
    torch.testing.assert_close(seen[0].mean(-1), torch.zeros(2, 9, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(seen[0].var(-1, unbiased=False), torch.ones(2, 9, dtype=torch.float64), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(24, 64), (63, 15), (1, 100), (64, 64)])
def test_the_spectral_norm_is_the_largest_singular_value_and_does_not_depend_on_the_order_of_entries(shape):
    from bodyplan.space.operators.spectral import spectral_norm

    weight = drawn(*shape)
    largest = torch.linalg.matrix_norm(weight, 2)
    torch.testing.assert_close(spectral_norm(weight, 300), largest, rtol=1e-6, atol=0)
    assert spectral_norm(weight, 8) <= largest * (1 + 1e-12)
    rows, columns = torch.randperm(shape[0]), torch.randperm(shape[1])
    torch.testing.assert_close(spectral_norm(weight[rows][:, columns], 8), spectral_norm(weight, 8))


def test_a_spectral_operator_is_the_operator_with_matrices_of_the_norms_it_says():
    config, x = bp.Spectral(bp.MLP(ratio=2), iterations=300), drawn(2, 9, 24)
    module = made(config, 24)
    module.gamma.data.copy_(torch.tensor([2.0, 0.5]))
    plain = bp.MLP(ratio=2).build(24).double()
    for number, name in ((2.0, "up"), (0.5, "down")):
        weight = getattr(module.op, name).weight
        getattr(plain, name).weight.data.copy_(number * weight / torch.linalg.matrix_norm(weight, 2))
    torch.testing.assert_close(module(x), plain(x), rtol=1e-6, atol=1e-9)
    module.op.up.weight.data.mul_(7.0)                       # the size of a matrix no longer matters
    torch.testing.assert_close(module(x), plain(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("operator", "error"), [(bp.RMSNorm(), TypeError), (bp.CrossAttention(heads=2), ValueError),
                                                 (bp.Zero(), ValueError)])
def test_what_has_no_spectral_form_is_refused(operator, error):
    with pytest.raises(error, match="at here"):
        bp.Spectral(operator).check(8, "here")
