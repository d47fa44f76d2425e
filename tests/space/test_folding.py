"""Batch norms of trained networks inside the weights before them: the same function, less to run, and exported so."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.batchnorm import BatchNormalisation

STEMS = {"stem": bp.ConvStem(patch=4, channels=3, image=16), "last": bp.ConvStem(patch=4, channels=3, image=16, last=True)}
MIXERS = {
    "Conv2d": bp.Conv2d(kernel=3), "MobileConv": bp.MobileConv(kernel=3, expand=2),
    "FusedMobileConv": bp.FusedMobileConv(kernel=3, expand=2), "MultiHeadConv": bp.MultiHeadConv(head_dim=4),
    "GhostUnit": bp.GhostUnit(), "GhostNet": bp.GhostUnit(gate=None, squeeze=True), "DFCAttention": bp.DFCAttention(),
    "SqueezeformerConv": bp.SqueezeformerConv(kernel=3), "ConformerConv": bp.ConformerConv(kernel=3),
}
PIXELS = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def network(mixer, embed=None, norm=None, channel=None, width=16, **more):
    layer = bp.Block(mixer=mixer, channel=channel or bp.DepthwiseMLP(ratio=2), norm=norm or bp.NoNorm())
    return bp.Space(embed=embed or STEMS["stem"], width=width, norm=bp.LayerNorm(), body=(layer, layer),
                    head=bp.ClassifierHead(classes=3), **more).sample(0).build(2)


def shaken(model, batches=3):
    """Other gains and shifts than the usual, and statistics of some batches."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "running" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        for seed in range(batches):
            model.train()(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 1.5 + 0.3)
    return model.eval()


def norms(model):
    return [m for m in model.modules() if isinstance(m, BatchNormalisation)]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("embed", STEMS)
def test_batch_norms_inside_operators_fold_into_the_weights_before_them(mixer, embed):
    model = shaken(network(MIXERS[mixer], STEMS[embed]))
    ours = bp.folded(model)
    assert norms(model) and not norms(ours)
    assert bp.difference(model, ours, PIXELS) < 1e-6                       # of weights that were rounded to float32
    assert bp.difference(model.double(), bp.folded(model), PIXELS) < 1e-12
    assert ours.architecture.cost().parameters < model.architecture.cost().parameters
    assert bp.folded(ours).architecture == ours.architecture


@pytest.mark.parametrize("norm", [bp.BatchNorm(), bp.BatchNorm(eps=1e-2), bp.PRepBN(steps=2)])
def test_batch_norms_before_operators_are_scales_and_shifts(norm):
    mixer = bp.Attention(heads=2, bidirectional=True, rotary=False)
    model = shaken(network(mixer, norm=norm, channel=bp.MLP(ratio=2)))
    ours = bp.folded(model)
    assert not norms(ours) and bp.difference(model, ours, PIXELS) < 1e-6
    assert bp.difference(model.double(), bp.folded(model), PIXELS) < 1e-12
    linear, affine = ours.layers[1].channel.op.up, ours.layers[1].channel.norm
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bp.folded_into(affine, linear)(x), linear(affine(x)), rtol=1e-4, atol=1e-5)


def test_folding_reaches_into_stages():
    space = bp.Space(embed=STEMS["stem"], width=8, norm=bp.LayerNorm(), head=bp.ClassifierHead(classes=3), body=(
        bp.Stage(bp.repeat(bp.Block(mixer=bp.MobileConv(expand=2), norm=bp.BatchNorm()), 2)),
        bp.Stage(bp.repeat(bp.Block(mixer=bp.Conv2d(), norm=bp.NoNorm()), 1), width=16)))
    model = shaken(space.sample(0).build(1))
    ours = bp.folded(model)
    assert norms(model) and not norms(ours)
    assert bp.difference(model, ours, PIXELS) < 1e-6


def test_a_folded_network_is_exported_as_it_computes(tmp_path):
    model = shaken(network(bp.MobileConv(kernel=3, expand=2)))
    folder = bp.export(bp.folded(model), tmp_path / "folded")
    source = (folder / "model.py").read_text()
    assert "batch_norm" not in source and "running_mean" not in source and "ChannelShift" in source


def test_norms_that_stay_are_left_as_they_are():
    model = shaken(network(bp.PooledAttention(heads=2)))
    ours = bp.folded(model)
    assert 0 < len(norms(ours)) < len(norms(model))
    assert bp.difference(model, ours, PIXELS) < 1e-6


@pytest.mark.parametrize(("convert", "words"), [
    (lambda: bp.folded(network(bp.Conv2d(), recursion=bp.Loop(2, lora_rank=1))), "got lora_rank"),
    (lambda: network(bp.Conv2d(norm=False, folded=True)), "a norm is folded where there is one"),
    (lambda: network(bp.ConformerConv(norm="layer", folded=True)), "a batch norm is folded")])
def test_what_has_no_norm_to_fold_is_refused(convert, words):
    with pytest.raises(ValueError, match=words):
        convert()
