"""Series as tokens and their forecasts: against their formula, and what must not matter to them."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.testing import built

SERIES = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tokens_of(weights, series, norm):
    """Variate by variate: the dot products of its steps, after its mean is taken off and it is divided by its spread."""
    rows = []
    for window in series:
        for variate in window.T:
            steps = list(variate)
            if norm:
                mean = sum(steps) / len(steps)
                spread = (sum((s - mean) ** 2 for s in steps) / len(steps) + 1e-5).sqrt()
                steps = [(s - mean) / spread for s in steps]
            rows.append(weights["projection.bias"] + sum(s * w for s, w in zip(
                steps, weights["projection.weight"].T, strict=True)))
    return torch.stack(rows).view(len(series), series.shape[2], -1)


@pytest.mark.parametrize("norm", [True, False])
def test_a_token_is_the_projection_of_a_variates_series(norm):
    module, series = built(bp.VariateEmbedding(steps=12, norm=norm), 7, dtype=torch.float64), SERIES.clone().requires_grad_()
    weights = dict(module.named_parameters())
    wanted = tokens_of(weights, series, norm)
    torch.testing.assert_close(module(series), wanted)
    inputs = [series, *weights.values()]
    torch.testing.assert_close(torch.autograd.grad(module(series).square().sum(), inputs),
                               torch.autograd.grad(wanted.square().sum(), inputs))


@torch.no_grad()
def test_a_normalised_series_has_no_level_and_no_unit():
    module = built(bp.VariateEmbedding(steps=12), 7, dtype=torch.float64)
    torch.testing.assert_close(module(1000 * SERIES + 5), module(1000 * SERIES), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(module(300 * SERIES), module(100 * SERIES), rtol=1e-6, atol=1e-7)
    assert module(torch.full_like(SERIES, 3.0)).isfinite().all()


@torch.no_grad()
def test_variates_are_forecast_alike_in_any_order_and_any_number():
    space = bp.Space(embed=bp.VariateEmbedding(steps=12), width=16, norm=bp.LayerNorm(), head=bp.ForecastHead(horizon=3),
                     body=bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), channel=bp.MLP(),
                                   norm=bp.LayerNorm(), placement="post"))
    model = space.sample(0).build().double().eval()
    torch.nn.init.normal_(model.head.projection.weight)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert model(SERIES).shape == (2, 3, 5)
    torch.testing.assert_close(model(SERIES[..., order]), model(SERIES)[..., order])
    assert model(SERIES[..., :2]).shape == (2, 3, 2)
    assert not torch.allclose(model(SERIES[..., :2]), model(SERIES)[..., :2])


@torch.no_grad()
def test_a_shorter_look_back_has_the_weights_of_the_newest_steps():
    space = bp.Space(embed=bp.VariateEmbedding(steps=bp.choice(8, 12)), width=16, head=bp.ForecastHead(horizon=3),
                     body=bp.Block(channel=bp.MLP()))
    net = bp.Supernet(space, seed=0)
    weights = {}
    for genome in space.enumerate():
        model = net.extract(space.architecture(genome))
        weights[model.plan.embed.steps] = model.embed.projection.weight
    assert torch.equal(weights[8], weights[12][:, 4:])


@torch.no_grad()
def test_a_head_forecasts_from_each_variate_or_from_the_newest_step():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each, newest = (built(bp.ForecastHead(horizon=3, variates=variates), 8, dtype=torch.float64) for variates in (None, 4))
    wanted = torch.einsum("bvd,sd->bsv", x, each.projection.weight) + each.projection.bias[:, None]
    torch.testing.assert_close(each(x), wanted)
    weight = newest.projection.weight.view(3, 4, 8)
    torch.testing.assert_close(newest(x), torch.einsum("bd,svd->bsv", x[:, -1], weight) + newest.projection.bias.view(3, 4))


@pytest.mark.parametrize(("embed", "head", "tokens"), [
    (bp.VariateEmbedding(steps=12), bp.ForecastHead(horizon=3), 5),
    (bp.FrameEmbedding(features=5, stack=1), bp.ForecastHead(horizon=3, variates=5), 12)])
def test_costs_are_of_the_tokens_there_are(embed, head, tokens):
    from bodyplan.evaluators.cost import macs_flop_counter

    space = bp.Space(embed=embed, width=16, head=head, body=bp.Block(channel=bp.MLP(ratio=1)))
    architecture = space.sample(0)
    model = architecture.build().eval()
    assert model(SERIES.float()).shape == (2, 3, 5)
    assert macs_flop_counter(model, SERIES[:1].float()) == architecture.cost(tokens).macs


@pytest.mark.parametrize(("config", "text"), [
    (bp.VariateEmbedding(steps=0), "steps must be a whole number of at least 1 at embed: got 0"),
    (bp.ForecastHead(horizon=0), "horizon must be a whole number of at least 1 at embed: got 0"),
    (bp.ForecastHead(variates=0), "variates must be a whole number of at least 1 at embed: got 0; use None")])
def test_numbers_that_cannot_be_built_are_refused(config, text):
    with pytest.raises(ValueError, match=text):
        config.check(8, "embed")


def test_normal_numbers_start_it():
    weight = bp.VariateEmbedding(steps=400).axes(64)["projection.weight"]
    assert weight.shape == (64, 400) and weight.init.kind == "linear" and math.isclose(weight.init.gain, 1.0)
