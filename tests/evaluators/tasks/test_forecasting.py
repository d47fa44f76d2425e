"""Forecasts of series: windows, splits, what a model's outputs mean, and that variates are worth mixing."""

import pickle

import bodyplan as bp
import numpy as np
import pytest
import torch

TASK = bp.tasks.forecasting(length=24, horizon=6, variates=4, batch=8, held_out_batches=3)
SEES = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True, rotary=False), channel=bp.MLP(ratio=2),
                norm=bp.LayerNorm(), placement="post")
ALONE = bp.Block(channel=bp.MLP(ratio=2), norm=bp.LayerNorm(), placement="post")


def inverted(task, block=SEES, layers=1):
    space = bp.Space(embed=bp.VariateEmbedding(steps=task.length), width=32, norm=bp.LayerNorm(),
                     body=bp.repeat(block, layers), head=bp.ForecastHead(horizon=task.horizon))
    task.check(space)
    return space.sample(0).build()


def test_windows_go_on_where_they_end_and_stay_in_their_split():
    series = TASK._series()
    first, second = int(0.7 * len(series)), int(0.8 * len(series))
    bounds = {"train": (0, first), "validation": (first, second), "test": (second, len(series))}
    for split, (low, high) in bounds.items():
        for step in range(3):
            seen, ahead = TASK.batch(split, step, 1)
            assert seen.shape == (8, 24, 4) and ahead.shape == (8, 6, 4)
            for window in torch.cat([seen, ahead], 1).numpy():
                found = [n for n in range(low, high - 29) if np.array_equal(series[n], window[0])]
                assert any(np.array_equal(series[n:n + 30], window) for n in found)
    assert torch.equal(TASK.batch("test", 0, 1).inputs, TASK.batch("test", 0, 2).inputs)
    assert not torch.equal(TASK.batch("train", 0, 1).inputs, TASK.batch("train", 0, 2).inputs)


def test_training_has_mean_zero_and_variance_one_and_followers_lag_behind_their_leaders():
    series = TASK._series()
    train = series[:int(0.7 * len(series))]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-4)
    for leader in range(2):
        agree = [np.corrcoef(series[:-lag, leader], series[lag:, leader + 2])[0, 1] for lag in range(1, 12)]
        assert 3 <= int(np.argmax(agree)) + 1 <= 6 and max(agree) == pytest.approx(1, abs=1e-5)


def test_an_output_of_zero_is_the_mean_of_what_was_seen():
    batch = TASK.batch("validation", 0, 0)
    outputs = torch.randn(8, 6, 4)
    loops = torch.zeros(8, 6, 4)
    for b in range(8):
        for v in range(4):
            seen = batch.inputs[b, :, v].double()
            loops[b, :, v] = (seen.mean() + (seen.var(correction=0) + 1e-5).sqrt() * outputs[b, :, v]).float()
    torch.testing.assert_close(TASK.forecast(outputs, batch), loops)
    torch.testing.assert_close(TASK.loss_of(outputs, batch), (loops - batch.targets).square().mean())
    total, count = TASK.tally(torch.zeros(8, 6, 4), batch)
    wanted = (batch.inputs.mean(1, keepdim=True) - batch.targets).square().sum()
    assert count == 8 * 6 * 4 and total == pytest.approx(float(wanted), rel=1e-5)


def test_a_variate_is_forecast_better_where_its_leader_is_read():
    task = bp.tasks.forecasting(length=32, horizon=8, variates=4, batch=32, held_out_batches=4)
    errors = {}
    for name, block in (("sees", SEES), ("alone", ALONE)):
        model = inverted(task, block, layers=2)
        before = task.score(model)
        bp.train(model, task, steps=300, lr=5e-3)
        errors[name] = task.score(model)
        assert errors[name] < 0.5 * before
    assert errors["sees"] < 0.95 * errors["alone"], errors


def test_steps_can_be_the_tokens_as_well():
    space = bp.Space(embed=bp.FrameEmbedding(features=4, stack=1), width=16, body=bp.Block(mixer=bp.GatedDeltaNet(heads=2)),
                     head=bp.ForecastHead(horizon=6, variates=4))
    TASK.check(space)
    model = space.sample(0).build()
    bp.train(model, TASK, steps=5)
    assert model(TASK.batch("test", 0, 0).inputs).shape == (8, 6, 4)


def test_a_file_is_read_without_what_is_no_number(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "series.csv"
    values = rng.normal(3, 2, size=(400, 3))
    lines = ["date,a,b,c,note"] + [f"2020-01-{n},{','.join(map(str, row))},x" for n, row in enumerate(values)]
    path.write_text("\n".join(lines))
    task = bp.tasks.forecasting(path, length=16, horizon=4, batch=2)
    train = values[:280]
    np.testing.assert_allclose(task._series(), (values - train.mean(0)) / train.std(0), rtol=1e-5)
    assert task.variates == 3 and pickle.loads(pickle.dumps(task)).fingerprint == task.fingerprint
    assert "12 steps" not in task.describe() and "4 steps of 3 variates from 16" in task.describe()


def test_settings_tell_tasks_apart():
    settings = {"length": 24, "horizon": 6, "variates": 4, "batch": 8, "held_out_batches": 3}
    others = {bp.tasks.forecasting(**{**settings, **more}).fingerprint
              for more in ({"length": 25}, {"horizon": 5}, {"variates": 6}, {"batch": 9})}
    assert len(others | {TASK.fingerprint}) == 5


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leaders and as many followers at tasks.forecasting: got 5; use 6"):
        bp.tasks.forecasting(variates=5)
    with pytest.raises(ValueError, match="is missing; check the path"):
        bp.tasks.forecasting(tmp_path / "none.csv")
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    with pytest.raises(ValueError, match="reads columns of numbers"):
        bp.tasks.forecasting(tmp_path / "words.csv")
    with pytest.raises(ValueError, match="every split has a window at tasks.forecasting: got 600 steps for length"):
        bp.tasks.forecasting(length=590, horizon=30)
    with pytest.raises(ValueError, match="validation has 3 batches of this task: got number 3"):
        TASK.batch("validation", 3, 0)
    body = bp.Block(channel=bp.MLP())
    with pytest.raises(ValueError, match=r"24 steps of 4 variates at embed: .*; use VariateEmbedding\(steps=24\)"):
        TASK.check(bp.Space(embed=bp.VariateEmbedding(steps=23), width=8, body=body, head=bp.ForecastHead(horizon=6)))
    with pytest.raises(ValueError, match=r"asks for 6 steps at head: .*; use ForecastHead\(horizon=6, variates=None\)"):
        TASK.check(bp.Space(embed=bp.VariateEmbedding(steps=24), width=8, body=body,
                            head=bp.ForecastHead(horizon=6, variates=4)))
