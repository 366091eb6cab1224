"""Conversion of a fit to ArviZ, for the installed major version."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from problems import CONTINUOUS, demo
from pyro.infer.autoguide import AutoNormal

from guides import Delta, Global, MeanField
from inference import analytic_elbo, fit, to_arviz
from models import GaussianMean


@pytest.mark.parametrize("model_class", CONTINUOUS)
def test_groups(model_class):
    model, x = demo(model_class)
    done = fit(model, AutoNormal(model), x, steps=3)
    data = to_arviz(done, x, draws=11)
    h = model.simulate(len(x), seed=0)[0]
    assert data["posterior"]["h"].shape == (1, 11, *h.shape)
    assert data["posterior_predictive"]["x"].shape == (1, 11, *x.shape)
    assert data["log_likelihood"]["x"].shape == (1, 11, len(x))
    np.testing.assert_array_equal(data["observed_data"]["x"].values, x.numpy())
    assert data["sample_stats"]["log_p"].shape == data["sample_stats"]["log_q"].shape == (1, 11)


def test_numbers():
    model, x = demo(GaussianMean)
    guide = Global(model, MeanField())
    done = fit(model, guide, x, steps=50, lr=0.05)
    data = to_arviz(done, x, draws=4000)
    h = torch.from_numpy(data["posterior"]["h"].values[0])
    q = guide.q(x)
    z = (h.mean(0) - q.mean) / (q.stddev / 4000**0.5)
    assert z.abs().max() < 5
    log_q = torch.from_numpy(data["sample_stats"]["log_q"].values[0])
    torch.testing.assert_close(log_q, q.log_prob(h), atol=1e-10, rtol=0.0)
    log_ratio = torch.from_numpy(data["sample_stats"]["log_p"].values[0]) - log_q
    assert abs(log_ratio.mean() - analytic_elbo(model, q, x)) < 5 * log_ratio.std() / 4000**0.5
    pointwise = torch.from_numpy(data["log_likelihood"]["x"].values[0])
    exact = torch.distributions.Normal(h.unsqueeze(1), model.noise_scale).log_prob(x).sum(-1)
    torch.testing.assert_close(pointwise, exact, atol=1e-10, rtol=0.0)
    simulated = torch.from_numpy(data["posterior_predictive"]["x"].values[0]) - h.unsqueeze(1)
    spread = simulated.flatten(0, 1).std(0)
    assert ((spread / model.noise_scale - 1).abs() < 5 / (2 * 4000 * len(x)) ** 0.5).all()


def test_reads_back_and_seeds(tmp_path):
    model, x = demo(GaussianMean)
    done = fit(model, Global(model, MeanField()), x, steps=3)
    data, again, other = (to_arviz(done, x, draws=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(data["posterior"]["h"].values, again["posterior"]["h"].values)
    assert not np.array_equal(data["posterior"]["h"].values, other["posterior"]["h"].values)
    data.to_netcdf(str(tmp_path / "fit.nc"), engine="h5netcdf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import xarray
    with xarray.open_dataset(tmp_path / "fit.nc", group="posterior", engine="h5netcdf") as read:
        np.testing.assert_array_equal(read["h"].values, data["posterior"]["h"].values)


def test_a_point_mass_has_infinite_log_q():
    model, x = demo(GaussianMean)
    data = to_arviz(fit(model, Global(model, Delta()), x, steps=3), x, draws=3)
    assert np.isposinf(data["sample_stats"]["log_q"].values).all()


def test_bad_input():
    model, x = demo(GaussianMean)
    done = fit(model, Global(model, MeanField()), x, steps=3)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        to_arviz(done, x, draws=0)
    with pytest.raises(ValueError, match=r"x has shape \(20, 2\), but \(N, 3\) is expected"):
        to_arviz(done, x[:, :2])
