"""Moves along the posterior: they change the moments of wrong draws, and not those of posterior draws."""

from dataclasses import replace

import pytest
import torch
from problems import demo

from guides import Global, Local, MeanField, Posterior
from inference.diagnostics import change, drift, importance
from models import GaussianMean, LocalGaussian

SEEDS = 12


def calibrated(drifts):
    """Whether the mean square of the z-scores is 1 within 5 standard errors."""
    z = torch.cat([torch.cat([d.mean_z, d.sd_z]) for d in drifts])
    return abs(float((z**2).mean()) - 1) < 5 * (2 / len(z)) ** 0.5


def test_the_posteriors_own_draws_do_not_drift():
    model, x = demo(GaussianMean)
    weighted = importance(model, Posterior(model), x)
    before = torch.get_rng_state()
    drifts = [drift(model, x, weighted, chains=500, moves=3, seed=seed) for seed in range(SEEDS)]
    assert torch.equal(before, torch.get_rng_state())
    assert calibrated(drifts)
    assert all(d.worst(field, 0.0) is None for d in drifts for field in ("mean", "sd"))


def test_two_proposals_that_cover_the_posterior_agree_within_their_standard_errors():
    model, x = demo(GaussianMean)
    exact, guide = model.posterior(x), Global(model, MeanField())
    guide.setup(x)
    with torch.no_grad():
        guide.lam.copy_(torch.cat([exact.mean, (1.3 * exact.stddev).expm1().log()]))
    pairs = [
        (
            importance(model, guide, x, draws=2000, seed=seed),
            importance(model, Posterior(model), x, draws=2000, seed=1000 + seed),
        )
        for seed in range(4 * SEEDS)
    ]
    assert calibrated([change(*pair) for pair in pairs])
    assert not calibrated([change(replace(a, smoothed=torch.full((2000,), -7.6, dtype=torch.float64)), b) for a, b in pairs])


def test_weighted_draws_of_a_wide_q_do_not_drift():
    model, x = demo(GaussianMean)
    exact, guide = model.posterior(x), Global(model, MeanField())
    guide.setup(x)
    with torch.no_grad():
        guide.lam.copy_(torch.cat([exact.mean, (1.5 * exact.stddev).expm1().log()]))
    drifts = []
    for seed in range(SEEDS // 2):
        weighted = importance(model, guide, x, draws=1000, seed=seed)
        drifts.append(drift(model, x, weighted, chains=500, moves=3, seed=seed))
        unweighted = drift(model, x, replace(weighted, smoothed=torch.zeros(1000)), chains=500, moves=3, seed=seed)
        assert unweighted.worst("sd", 0.1) is not None
    assert all(d.worst(field, 0.0) is None for d in drifts for field in ("mean", "sd"))


@pytest.mark.parametrize("moves", [1, 20])
def test_half_of_a_posterior_drifts_into_the_other_half(moves):
    """All weights are equal, so k̂ cannot detect that half of the posterior has no draws. Few moves find the size too."""
    model, x = demo(GaussianMean)
    weighted, again = (importance(model, Posterior(model), x, seed=seed) for seed in (0, 1))
    half = weighted.scalars.draws[:, 0] < model.posterior(x).mean[0]
    draws = weighted.scalars._replace(draws=weighted.scalars.draws[half])
    count = int(half.sum())
    cut = replace(
        weighted,
        scalars=draws,
        h={name: value[half] for name, value in weighted.h.items()},
        log_weights=weighted.log_weights[half],
        smoothed=torch.full((count,), 1 / count, dtype=torch.float64).log(),
    )
    assert [change(cut, again).worst(field, 0.1) for field in ("mean", "sd")] == [0, 0]
    found = drift(model, x, cut, moves=moves, leapfrog=2)
    assert found.worst("mean", 0.1) == 0
    assert found.worst("sd", 0.1) == 0
    if moves > 1:  # the mean of a half-normal, and its standard deviation
        assert abs(float(found.mean[0]) - 0.798) < 5 * float(found.mean[0] / found.mean_z[0])
        assert abs(float(found.sd[0]) + torch.tensor(0.6028).log()) < 5 * float(found.sd[0] / found.sd_z[0])
    assert found.mean_z[1:].abs().max() < 5


def test_each_datum_is_moved_by_its_own_weights():
    model = LocalGaussian(1).double()
    x = model.simulate(20, seed=1)[1]
    exact, guide = model.posterior(x), Local(model, MeanField())
    guide.setup(x)
    scale = exact.stddev.clone()
    scale[3] *= 1.5
    with torch.no_grad():
        guide.table.copy_(torch.cat([exact.mean, scale.expm1().log()], -1))
    weighted = importance(model, guide, x, draws=2000)
    assert all(drift(model, x, weighted, moves=3).worst(field, 0.0) is None for field in ("mean", "sd"))
    unweighted = replace(weighted, smoothed=torch.zeros_like(weighted.smoothed))
    assert drift(model, x, unweighted, moves=3).worst("sd", 0.1) == 3


def test_bad_input():
    model, x = demo(GaussianMean)
    weighted = importance(model, Posterior(model), x, draws=100)
    with pytest.raises(ValueError, match="chains must be at least 100"):
        drift(model, x, weighted, chains=10)
    with pytest.raises(ValueError, match="moves must be"):
        drift(model, x, weighted, moves=0)
