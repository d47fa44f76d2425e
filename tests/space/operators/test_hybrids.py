"""Convolutions, pooling and token MLPs beside attention: what they equal, where they look, what they refuse."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
import torch.nn.functional as F
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.space.model import initialise
from bodyplan.space.operators.ghost import GhostFeatures, in_fours
from bodyplan.space.operators.pooling import enlarged, mean_pooled
from bodyplan.space.operators.split_depthwise import fourier_places
from bodyplan.testing import built

torch.set_num_threads(1)


def grid(*size, width=16, dtype=torch.float64, seed=1):
    return torch.randn(2, *size, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(config, width=16):
    return built(config, width, dtype=torch.float64)


def close(ours, wanted):
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


def identity(taps):
    """Filters that give what they get: one at the centre."""
    with torch.no_grad():
        taps.zero_()
        taps[(..., *(size // 2 for size in taps.shape[-2:]))] = 1


# -- channels that weigh or attend -------------------------------------------------------------------------------------

def test_squeeze_and_excitation_gives_half_where_its_gate_is_at_rest():
    for gate in ("sigmoid", "hard"):
        ours = module(bp.SqueezeExcite(reduction=4, gate=gate))
        with torch.no_grad():
            ours.restore.weight.zero_()
            ours.restore.bias.zero_()
        close(ours(grid(5, 7)), grid(5, 7) / 2)


def test_squeeze_and_excitation_gives_every_place_the_same_weights():
    x = grid(5, 7)
    ratio = module(bp.SqueezeExcite(reduction=4))(x) / x
    close(ratio, ratio[:, :1, :1].expand_as(x))


@pytest.mark.parametrize("size", [(1,), (63,), (100,)], ids=str)
def test_cross_covariance_is_transposed_attention_without_filters(size):
    theirs = module(bp.TransposedAttention(heads=4, weights="softmax"))
    ours = module(bp.CrossCovarianceAttention(heads=4))
    for conv in (theirs.query_conv, theirs.key_conv, theirs.value_conv):
        identity(conv.taps)
    ours.load_state_dict({name: p for name, p in theirs.state_dict().items() if "taps" not in name})
    close(ours(grid(*size)), theirs(grid(*size)))


def test_cross_covariance_does_not_see_the_order_of_tokens():
    ours, x = module(bp.CrossCovarianceAttention(heads=2)), grid(63)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    close(ours(x[:, order]), ours(x)[:, order])


@pytest.mark.parametrize(("width", "splits"), [(16, 2), (24, 3), (16, 3), (10, 4)])
def test_splits_whose_filters_pass_everything_add_up_those_before_them(width, splits):
    ours = module(bp.SDTA(heads=2, splits=splits), width)
    for taps in ours.taps:
        identity(taps)
    x = grid(5, 7, width=width)
    parts = [F.pad(x, (0, -width % splits))[..., s::splits] for s in range(splits)]
    wanted = torch.stack([*(sum(parts[:s + 1]) for s in range(splits - 1)), parts[-1]], -1).flatten(-2)[..., :width]
    close(ours.split(x), wanted)


def test_places_are_described_by_one_turn_over_the_grid():
    places = fourier_places(grid(4, 6), 32)
    assert places.shape == (4, 6, 64)
    close(places[0, :, 0], torch.sin(torch.tensor(2 * torch.pi / 4, dtype=torch.float64)).expand(6))
    close(places[-1, -1, 0::32], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(places[1, :, :32], places[1, :1, :32].expand(6, 32))


def test_a_wider_sdta_has_the_channels_of_a_narrower_one_in_the_same_splits():
    narrow, wide = module(bp.SDTA(heads=2, splits=3), 12), module(bp.SDTA(heads=2, splits=3), 24)
    with torch.no_grad():
        narrow.taps.copy_(wide.taps[:, :4])
    close(narrow.split(grid(5, 7, width=24)[..., :12]), wide.split(grid(5, 7, width=24))[..., :12])


# -- branches side by side ---------------------------------------------------------------------------------------------

def test_an_inception_mixer_without_its_other_branches_is_attention_on_its_channels():
    ours, whole = module(bp.InceptionMixer(heads=2, head_dim=4, pool=1)), module(bp.ReducedAttention(heads=2, reduction=1), 8)
    with torch.no_grad():
        for weight in (ours.widen.weight, ours.maxima.weight, ours.fuse.taps):
            weight.zero_()
        ours.out.weight.copy_(torch.eye(16, 24, dtype=torch.float64))
        whole.out.weight.copy_(torch.eye(8, dtype=torch.float64))
        for name in ("query", "key", "value"):
            getattr(whole, name).weight.copy_(getattr(ours, name).weight)
    close(ours(grid(5, 7))[..., :8], whole(grid(5, 7)[..., :8]))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (9,)], ids=str)
def test_attention_among_squares_gives_every_token_of_a_square_the_same(size):
    ours = module(bp.InceptionMixer(heads=2, head_dim=4, pool=2))
    x = grid(*size, width=8)
    x = x[:, :, None] if x.ndim == 3 else x
    y = ours.attended(x)
    assert y.shape == x.shape
    close(y, enlarged(y[:, ::2, ::2], 2, *x.shape[1:3]))


def test_squares_at_the_edge_are_means_of_the_places_that_are_there():
    x = grid(5, 7)
    small = mean_pooled(x, 3)
    assert small.shape == (2, 2, 3, 16)
    close(small[:, 1, 2], x[:, 3:, 6:].mean((1, 2)))
    close(small[:, 0, 0], x[:, :3, :3].mean((1, 2)))


def test_one_head_of_all_channels_is_a_full_convolution():
    ours, x = module(bp.MultiHeadConv(head_dim=16)), grid(5, 7)
    h = F.conv2d(x.permute(0, 3, 1, 2), ours.weight, padding=1).permute(0, 2, 3, 1)
    close(ours(x), ours.out(F.relu(ours.norm(h))))


def test_heads_of_convolutions_do_not_see_each_other():
    ours, x = module(bp.MultiHeadConv(head_dim=4)).eval(), grid(5, 7)
    with torch.no_grad():
        ours.out.weight.copy_(torch.eye(16, dtype=torch.float64))
    changed = x.clone()
    changed[..., :4] += 1
    y, moved = ours(x), ours(changed)
    assert torch.equal(y[..., 4:], moved[..., 4:]) and not torch.equal(y[..., :4], moved[..., :4])


@pytest.mark.parametrize("head_dim", [None, 24, 64])
def test_pooled_attention_that_pools_nothing_is_attention_over_all_tokens(head_dim):
    ours = module(bp.PooledAttention(heads=2, reduction=1, head_dim=head_dim))
    whole = module(bp.ReducedAttention(heads=2, reduction=1, head_dim=head_dim))
    whole.load_state_dict(ours.state_dict())
    close(ours(grid(9, 7)), whole(grid(9, 7)))


def test_a_square_that_covers_the_grid_gives_every_token_the_same():
    y = module(bp.PooledAttention(heads=2, reduction=9))(grid(5, 7))
    close(y, y[:, :1, :1].expand_as(y))


def test_a_fused_convolution_of_one_tap_works_on_every_token_alone():
    ours, x = module(bp.FusedMobileConv(kernel=1, squeeze=False)).eval(), grid(63)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    close(ours(x[:, order]), ours(x)[:, order])


def test_a_depthwise_mlp_without_filters_is_a_feed_forward_layer_with_norms():
    ours, x = module(bp.DepthwiseMLP(reduction=None)).eval(), grid(5, 7)
    with torch.no_grad():
        ours.conv.taps.zero_()
        ours.conv_norm.weight.zero_()
        ours.conv_norm.bias.zero_()
    close(ours(x), ours.down_norm(ours.down(F.gelu(ours.up_norm(ours.up(x))))))


# -- ghosts and gates --------------------------------------------------------------------------------------------------

def test_ghosts_whose_filters_pass_everything_are_copies():
    features = GhostFeatures(16, 9, 3, True).double().eval()
    for parameter in features.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    identity(features.cheap.taps)
    y = features(grid(5, 7))
    assert y.shape[-1] == 9
    torch.testing.assert_close(y[..., 1::2], y[..., :8:2], rtol=1e-4, atol=1e-6)         # up to the norm's epsilon


def test_a_gate_at_rest_gives_half():
    ours = module(bp.DFCAttention())
    with torch.no_grad():
        ours.gate.along_norm.weight.zero_()
        ours.gate.along_norm.bias.zero_()
    close(ours(grid(5, 7)), grid(5, 7) / 2)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 6)], ids=str)
def test_a_gate_lies_between_zero_and_one_and_is_one_number_per_square(size):
    gate = module(bp.DFCAttention(kernel=3)).gate(grid(*size))
    assert gate.shape == (2, *size, 16) and gate.min() > 0 and gate.max() < 1
    close(gate, enlarged(gate[:, ::2, ::2], 2, *size))


def test_a_gate_reaches_along_its_row_and_column_and_diagonally_between():
    ours, x = module(bp.DFCAttention(kernel=5)).eval(), grid(20, 20)
    changed = x.clone()
    changed[:, 10, 10] += 1
    moved = (ours.gate(changed) != ours.gate(x)).any(-1).any(0)
    rows, columns = torch.where(moved)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 6, 15) and len(rows) == 100


def test_a_ghost_unit_at_rest_is_one_of_half_the_hidden_features_without_a_gate():
    gated, plain = module(bp.GhostUnit(gate=5)).eval(), module(bp.GhostUnit(gate=None)).eval()
    plain.load_state_dict({name: p for name, p in gated.state_dict().items() if not name.startswith("gate")})
    with torch.no_grad():
        gated.gate.along_norm.weight.zero_()
        gated.gate.along_norm.bias.zero_()
    half = plain.project(plain.expand(grid(5, 7)) / 2)
    close(gated(grid(5, 7)), half)


@pytest.mark.parametrize(("size", "wanted"), [(16 * 1.3, 20), (48 * 1.3, 64), (3, 4), (672, 672), (40 * 1.6, 64)])
def test_hidden_channels_come_in_fours(size, wanted):
    assert in_fours(size) == wanted


@pytest.mark.parametrize("size", [(5, 7), (63,)], ids=str)
def test_subspaces_that_prefer_no_place_add_an_equal_share(size):
    ours, x = module(bp.SubspaceAttention(groups=4)), grid(*size)
    with torch.no_grad():
        ours.point.zero_()
    close(ours(x), x / x[0, ..., 0].numel())


def test_channels_of_a_subspace_share_one_map_that_sums_to_one():
    ours = module(bp.SubspaceAttention(groups=4))
    x = grid(5, 7)
    maps = ours(x) / x
    close(maps.sum((1, 2)), torch.ones(2, 16, dtype=torch.float64))
    close(maps[..., 4:8], maps[..., :4])
    assert not torch.allclose(maps[..., 0], maps[..., 1])


# -- token MLPs --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("length", [1, 63, 100])
def test_rafts_of_one_channel_are_the_token_mlp_of_mlp_mixer(length):
    raft, tokens = module(bp.RaftMLP(side=length, raft=1)), module(bp.TokenMLP(max_len=length, hidden=2 * length))
    with torch.no_grad():
        tokens.up.copy_(raft.up[..., 0])
        tokens.down.copy_(raft.down[:, 0])
    close(raft(grid(length)), tokens(grid(length)))


def test_columns_are_rows_of_the_turned_grid():
    rows, columns = module(bp.RaftMLP(side=7)), module(bp.RaftMLP(side=7, along="columns"))
    columns.load_state_dict(rows.state_dict())
    close(columns(grid(5, 7)), rows(grid(5, 7).transpose(1, 2)).transpose(1, 2))


def test_a_raft_mlp_does_not_look_across_its_direction():
    ours, x = module(bp.RaftMLP(side=5)), grid(5, 7)
    changed = x.clone()
    changed[:, :, 3] += 1
    moved = (ours(changed) != ours(x)).any(-1).any(0)
    assert torch.equal(moved, torch.arange(7).expand(5, 7) == 3)


def test_a_raft_is_mixed_and_others_are_not_touched():
    ours, x = module(bp.RaftMLP(side=5, raft=4)), grid(5, 7)
    changed = x.clone()
    changed[..., 5] += 1
    moved = (ours(changed) != ours(x)).flatten(0, 2).any(0)
    assert moved.tolist() == [4 <= c < 8 for c in range(16)]


@pytest.mark.parametrize("size", [(3, 2), (12, 9), (1, 1)], ids=str)
def test_a_grid_of_another_size_with_equal_rows_acts_as_one_of_the_known_size(size):
    ours = module(bp.RaftMLP(side=6))
    line = grid(1, size[1])
    with torch.no_grad():
        ours.down.copy_(ours.down.mean(0, keepdim=True).expand_as(ours.down))       # the same for every place
    known = ours(line.expand(2, 6, size[1], 16))
    close(ours(line.expand(2, *size, 16)), known[:, :1].expand(2, *size, 16))


def test_fewer_tokens_leave_out_the_last_weights():
    for config in (bp.TokenMLP(max_len=20, hidden=9), bp.NiNGate(max_len=20, hidden=9)):
        ours, shorter = module(config), module(type(config)(max_len=12, hidden=9))
        names = dict(shorter.named_parameters())
        shorter.load_state_dict({name: p[tuple(map(slice, names[name].shape))] for name, p in ours.state_dict().items()})
        close(ours(grid(12)), shorter(grid(12)))
        with pytest.raises(ValueError, match="at most max_len tokens: got 21 and 20; use a larger max_len"):
            ours(grid(21))


def test_a_gate_whose_mixer_passes_its_input_on_is_a_product_of_the_input_with_its_projection():
    ours, x = module(bp.NiNGate(max_len=63, hidden=9)), grid(63)
    with torch.no_grad():
        ours.token_down.zero_()
        ours.down.weight.zero_()
    close(ours(x), ours.project(x) * x)


# -- filters that are not trained --------------------------------------------------------------------------------------

def test_random_filters_are_filters_that_no_gradient_reaches_and_nobody_counts():
    trained, random = module(bp.DepthwiseConv2d(kernel=5)), module(bp.DepthwiseConv2d(kernel=5, trainable=False))
    random.load_state_dict({"random_taps": trained.taps.detach()})
    close(random(grid(5, 7)), trained(grid(5, 7)))
    assert not random.random_taps.requires_grad and trained.taps.requires_grad


def test_training_combines_random_filters_and_leaves_them_as_they_were_drawn():
    body = bp.Block(mixer=bp.DepthwiseConv2d(kernel=5, trainable=False), channel=bp.MLP(ratio=2))
    architecture = bp.Space(embed=bp.PatchEmbedding(patch=4, image=28, grid=True), width=16, body=body,
                            head=bp.ClassifierHead(classes=5)).sample(0)
    model = architecture.build(seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pixels, labels = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 5
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert len(still) == 1 and still[0].endswith("random_taps") and losses[-1] < 0.8 * losses[0]
    assert architecture.cost((7, 7)).parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


# -- stems and speech --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("patch", "image", "shape"), [(2, 28, (14, 14)), (4, (8, 12), (2, 3)), (16, 32, (2, 2))])
def test_a_stem_of_convolutions_gives_a_token_per_patch(patch, image, shape):
    config = bp.ConvStem(patch=patch, image=image)
    pixels = torch.randn(2, 3, *config.sides, dtype=torch.float64)
    assert module(config)(pixels).shape == (2, *shape, 16) and config.length == shape


def test_a_stem_ends_with_an_activation_only_where_it_is_asked_to():
    pixels = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with_last, without = (module(bp.ConvStem(image=16, activation="relu", last=last)) for last in (True, False))
    close(with_last(pixels), F.relu(without(pixels)))
    assert without(pixels).min() < 0


@pytest.mark.parametrize(("frames", "tokens"), [(4, 1), (63, 15), (64, 16), (100, 25)])
def test_subsampling_gives_a_token_for_four_frames(frames, tokens):
    assert module(bp.FrameConvEmbedding(features=8))(torch.randn(2, frames, 8, dtype=torch.float64)).shape == (2, tokens, 16)


def test_a_u_with_separable_resampling_adds_what_stands_for_two_tokens_to_both():
    shape = bp.UShape(inner=bp.Block(channel=bp.MLP()), resample="separable")
    ours = shape.build(16).double()
    x = grid(13)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    added = ours(x) - x
    close(added[:, 1::2], added[:, 0:12:2])
    assert not torch.allclose(added[:, 0], added[:, 2])


@pytest.mark.parametrize("size", [(16,), (13,), (8, 8), (5, 7)], ids=str)
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_a_separable_u_costs_what_it_declares(size, kernel):
    length = size[0] if len(size) == 1 else size
    shape = bp.UShape(inner=(), stride=2 if len(size) == 1 else (2, 2), width=24, resample="separable", kernel=kernel)
    ours = shape.build(16).float()
    x = torch.randn(1, *size, 16)
    assert shape.macs(16, length) == macs_flop_counter(ours, x) == macs_thop(ours, x)


# -- transitions -------------------------------------------------------------------------------------------------------

TRANSITIONS = [
    bp.PooledMerging(width=12), bp.PooledMerging(stride=3, activation="gelu"), bp.PooledMerging(width=24, stride=1),
    bp.NextTransformer(width=24, head_dim=4), bp.NextTransformer(width=32, head_dim=8, reduction=2, ratio=3, kernel=5),
    bp.GhostTransition(width=24), bp.GhostTransition(width=9, stride=1, gate=None, squeeze=True),
    bp.GhostTransition(stride=3, thin=5, expand=1.5),
    bp.InvertedMerging(width=24), bp.InvertedMerging(width=12, expand=1, of="out", squeeze=None, activation="gelu"),
    bp.InvertedMerging(stride=1, kernel=5, expand=3)]


def transition(config, width=16):
    made = config.build(width).double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        initialise(parameter.data, config.axes(width)[name], generator)
    return made


@pytest.mark.parametrize("config", TRANSITIONS, ids=repr)
def test_a_transition_declares_its_parameters_its_output_and_its_cost(config):
    made = transition(config)
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        name: declared.shape for name, declared in config.axes(16).items()}
    for length in ((5, 7), (8, 8), 13):
        x = grid(*(length if isinstance(length, tuple) else (length,)))
        out, after = config.out(16, length)
        assert made(x).shape == (2, *(after if isinstance(after, tuple) else (after,)), out)
        one = made.eval().float()
        assert config.macs(16, length) == macs_flop_counter(one, x[:1].float()) == macs_thop(one, x[:1].float())
        made = made.double().train()


@pytest.mark.parametrize("config", TRANSITIONS, ids=repr)
def test_a_sequence_is_a_grid_of_one_column(config):
    made = transition(config).eval()
    close(made(grid(13)), made(grid(13)[:, :, None])[:, :, 0])


def test_the_next_transformer_carries_on_what_attended_beside_convolutions_of_it():
    config = bp.NextTransformer(width=24, head_dim=4)
    made, x = transition(config).eval(), grid(5, 7)
    with torch.no_grad():
        made.mlp.down.weight.zero_()
        made.attention.out.weight.zero_()
    y = made(x)
    close(y[..., :16], x)
    p = made.project_norm(made.project(x))
    close(y[..., 16:], p + made.conv(p))


@pytest.mark.parametrize("config", [bp.InvertedMerging(width=24, expand=3), bp.InvertedMerging(
    width=12, of="out", squeeze=None, activation="gelu", stride=3, kernel=5, expand=1)], ids=repr)
def test_a_bottleneck_between_stages_is_the_convolutions_of_its_paper(config):
    """Against torch's own modules in training mode, where norms look at the batch; gradients as well."""
    made, x = transition(config), grid(5, 7).requires_grad_()
    act = torch.nn.GELU() if config.activation == "gelu" else torch.nn.ReLU()
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), made.up.weight[..., None, None])
    y = act(torch.nn.functional.batch_norm(y, None, None, training=True))
    y = torch.nn.functional.conv2d(y, made.thin.taps[:, None], stride=config.stride, padding=config.kernel // 2, groups=len(
        made.thin.taps))
    y = act(torch.nn.functional.batch_norm(y, None, None, training=True))
    if config.squeeze is not None:
        mean = y.mean((2, 3))
        weights = made.weigh.restore.weight @ (made.weigh.squeeze.weight @ mean.T).relu()
        assert made.weigh.squeeze.weight.shape == (16, 48)                   # 48 / 4, rounded to a multiple of 8
        y = y * torch.sigmoid(weights.T)[..., None, None]
    y = torch.nn.functional.conv2d(y, made.down.weight[..., None, None])
    y = torch.nn.functional.batch_norm(y, None, None, training=True).permute(0, 2, 3, 1)
    close(made(x), y)
    ours, theirs = (torch.autograd.grad(out.square().sum(), [x, made.up.weight], retain_graph=True) for out in (made(x), y))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


@pytest.mark.parametrize("config", [bp.NormedMLP(ratio=1), bp.NormedMLP(2, "silu", True, "layer")], ids=repr)
def test_a_feed_forward_layer_of_normed_matrices_is_its_formula(config):
    made, x = transition(config), grid(5, 7)
    def norm(y):
        if config.norm == "layer":
            return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        flat = y.flatten(0, -2)
        return (y - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
    h = norm(x @ made.up.weight.T)
    y = norm((h.clamp(min=0) if config.activation == "relu" else h / (1 + (-h).exp())) @ made.down.weight.T)
    close(made(x), y.clamp(min=0) if config.last else y)


def test_weights_of_channels_that_stay_in_place_are_not_put_in_another_order():
    """Every operator that reads ranges of the stream holds its order, on both sides of a block that widens it."""
    body = (bp.Block(mixer=bp.MultiHeadConv(head_dim=8), norm=bp.NoNorm()), bp.NextTransformer(width=24, head_dim=8),
            bp.Block(channel=bp.MLP(ratio=1)), bp.GhostTransition(width=32), bp.Block(channel=bp.MLP(ratio=1)))
    model = bp.Space(embed=bp.PatchEmbedding(patch=4, image=28, grid=True), width=16, body=body,
                     head=bp.ClassifierHead(classes=5)).sample(0).build(seed=0).eval()
    pixels = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = model(pixels)
    bp.order_axes(model)
    torch.testing.assert_close(model(pixels), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ghostnetv2", "squeezeformer", "shvit", "efficientvim", "fcaformer", "slab",
                                  "mambamixer"])
def test_a_network_behind_a_stem_of_its_own_is_exported_and_stands_alone(name, tmp_path):
    bp.export(getattr(bp.presets, name).fixed("tiny").build(seed=0).eval(), tmp_path / name)      # compares outputs
    assert "bodyplan" not in (tmp_path / name / "model.py").read_text()


# -- refusals ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("config", "text"), [
    (bp.SqueezeExcite(activation="tanh"), "unknown activation 'tanh'"),
    (bp.SqueezeExcite(gate="soft"), "unknown gate 'soft'"),
    (bp.FusedMobileConv(kernel=2), "kernel must be odd at here: got 2; use 1 or 3"),
    (bp.CrossCovarianceAttention(heads=3), "heads must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.SDTA(heads=2, splits=1), "splits must be a whole number of at least 2 at here: got 1"),
    (bp.SDTA(heads=2, splits=17), "splits must be at most the width at here: got 17 and 16"),
    (bp.SDTA(heads=2, layer_scale=-1), "layer_scale must be positive at here: got -1; use 1e-6, or None"),
    (bp.InceptionMixer(heads=4, head_dim=4), r"must leave an even number of channels, at least 2, at here: got 4 \* 4 of 16"),
    (bp.InceptionMixer(heads=1, head_dim=3), r"must leave an even number of channels, at least 2, at here: got 1 \* 3 of 16"),
    (bp.MultiHeadConv(head_dim=5), "head_dim must divide width at here: got 5 and 16; use 2 or 4"),
    (bp.PooledAttention(reduction=0), "reduction must be a whole number of at least 1 at here: got 0; use 1 for attention"),
    (bp.RaftMLP(raft=3), "raft must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.RaftMLP(along="diagonals"), "unknown along 'diagonals'"),
    (bp.TokenMLP(max_len=0), "max_len must be a whole number of at least 1 at here: got 0"),
    (bp.NiNGate(ratio=0), "ratio must be a positive number at here: got 0"),
    (bp.DFCAttention(kernel=4), "kernel must be odd at here: got 4; use 3 or 5"),
    (bp.GhostUnit(gate=4), "gate must be odd at here: got 4; use 3 or 5"),
    (bp.InvertedMerging(kernel=4), "kernel must be odd at here: got 4; use 3 or 5"),
    (bp.InvertedMerging(of="both"), "unknown of 'both'"),
    (bp.InvertedMerging(activation="silu"), "unknown activation 'silu'"),
    (bp.NormedMLP(norm="rms"), "unknown norm 'rms'"), (bp.NormedMLP(ratio=0), "ratio must be a positive number at here"),
    (bp.GhostTransition(thin=2), "thin must be odd at here: got 2; use 1 or 3"),
    (bp.SubspaceAttention(groups=3), "groups must divide width at here: got 3 and 16; use 2 or 4"),
    (bp.DepthwiseMLP(reduction=0), "reduction must be a whole number of at least 1 at here: got 0; use None"),
    (bp.SqueezeformerConv(kernel=30), "kernel must be odd at here: got 30; use 29 or 31"),
    (bp.ConvStem(patch=6), "patch must be a power of two at here: got 6; use 4"),
    (bp.ConvStem(patch=4, image=30), "patch must divide image at here: got 4 and 30"),
    (bp.ConvStem(patch=64, image=64), "patch / 2 must divide width at here: got 32 and 16"),
    (bp.FrameConvEmbedding(features=78), "features must be a multiple of 4 at here: got 78; use 76 or 80"),
    (bp.ClassifierHead(classes=3, hidden=0), "hidden must be a whole number of at least 1 at here: got 0; use None"),
    (bp.NextTransformer(width=16, head_dim=4), "width must be a whole number of at least 17 at here: got 16; the block adds"),
    (bp.NextTransformer(width=24, head_dim=5), "head_dim must divide what comes in at here: got 5 and 16"),
    (bp.PooledMerging(activation="tanh"), "unknown activation 'tanh'"),
    (bp.UShape(inner=(), resample="sparse"), "resample is one of full, separable at here: got 'sparse'"),
    (bp.UShape(inner=(), resample="separable", kernel=1), "kernel must be a whole number of at least 2 at here: got 1"),
], ids=str)
def test_numbers_that_cannot_be_built_are_refused_with_what_to_use(config, text):
    with pytest.raises(ValueError, match=text):
        config.check(16, "here")
