"""Convolutions side by side: one convolution after training, what ties them to known ones, and errors."""

from __future__ import annotations

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.cost import macs_flop_counter, macs_thop
from bodyplan.testing import built
from exported_folders import assert_equal_to_the_module, export_all, judged

torch.set_num_threads(1)
CONV = bp.MultiGroupConv(branches=((3, 4), (1, 2), (5, 8)))


def pixels(batch=3, seed=0):
    return torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def network(mixer, channel=None):
    return bp.Space(embed=bp.PatchEmbedding(patch=4, image=28, grid=True), width=16, head=bp.ClassifierHead(classes=5), body=(
        bp.Block(mixer=mixer, channel=channel or bp.MLP(ratio=1)),)).sample(0)


def trained(architecture):
    """Statistics and gains that are nobody's first ones."""
    model = architecture.build(seed=0).train()
    for seed in range(3):
        model(pixels(seed=seed))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (".norm." in name or ".norms." in name) and name.endswith(("weight", "bias")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 3)
    return model.eval()


@pytest.mark.parametrize("mixer", [
    CONV, bp.MultiGroupConv(branches=((1, 1),), identity=False),
    bp.MultiGroupConv(branches=((3, 16), (3, 4)), activation=None),
    bp.MultiGroupConv(branches=((3, 1), (5, 16)), activation="gelu")], ids=repr)
def test_a_trained_network_folds_into_one_convolution(mixer):
    model = trained(network(mixer, mixer))
    ours = bp.folded(model)
    torch.testing.assert_close(ours(pixels()), model(pixels()), rtol=1e-4, atol=1e-4)
    made = ours.architecture.plan.layers[0].mixer
    assert made.folded and made.kernel == mixer.kernel and made.groups == mixer.groups
    assert bp.folded(ours).architecture.hash == ours.architecture.hash


def test_many_branches_multiply_less_when_folded():
    branches = bp.MultiGroupConv(branches=((3, 4), (3, 8), (3, 4)))
    before, after = (network(bp.MultiGroupConv(branches=branches.branches, folded=way)).cost().macs for way in (False, True))
    assert after < before


def test_one_branch_without_identity_is_the_convolution_with_a_norm():
    ours = built(bp.MultiGroupConv(branches=((3, 1),), identity=False, activation=None), 8, dtype=torch.float64)
    known = built(bp.Conv2d(kernel=3, activation=None), 8, dtype=torch.float64)
    known.load_state_dict({"weight": ours.weights[0], **{f"norm.{n}": p for n, p in ours.norms[0].state_dict().items()}})
    x = torch.randn(2, 5, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ours(x), known(x))


def test_it_mixes_high_frequencies_beside_attention_of_low_ones(tmp_path):
    mixed = network(bp.Parallel(branches=(bp.PooledAttention(heads=2), CONV), merge="concat"))
    folded = bp.folded(trained(network(CONV))).architecture
    cases = {"branches": mixed, "one": folded}
    root = export_all(tmp_path, cases)
    verdicts = judged(root, list(cases))
    for case in cases:
        assert_equal_to_the_module(verdicts[case], root, case)


@pytest.mark.parametrize("folded", [True, False])
def test_two_counters_of_multiply_adds_agree(folded):
    config = bp.MultiGroupConv(branches=((3, 4), (1, 2)), folded=folded)
    module, x = built(config, 16).eval(), torch.randn(2, 5, 4, 16)
    assert macs_thop(module, x) == pytest.approx(macs_flop_counter(module, x), rel=1e-9) == 2 * config.macs(16, (5, 4))


@pytest.mark.parametrize(("fields", "text"), [
    ({"branches": ()}, "branches are pairs"), ({"branches": (3, 4)}, "branches are pairs"),
    ({"branches": ((3, 0),)}, "branches are pairs"), ({"branches": ((2, 4),)}, "kernel must be odd"),
    ({"branches": ((3, 5),)}, "groups must divide"), ({"activation": "tanh"}, "unknown activation")])
def test_numbers_that_cannot_be_built_are_named(fields, text):
    with pytest.raises(ValueError, match=f"{text}.*here"):
        bp.MultiGroupConv(**fields).check(16, "here")
