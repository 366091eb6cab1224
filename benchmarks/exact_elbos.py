"""Exact −ELBO of Gaussian q, in closed form or by quadrature, where a benchmark needs an oracle."""

from __future__ import annotations

from math import log, pi

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor
from torch.nn.functional import softplus

from models import VAE, EightSchools, LogisticRegression

__all__ = ["eight_schools_nelbo", "logistic_nelbo", "sobol", "vae_nelbo"]

NODES, MASS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(80))
MASS = MASS / MASS.sum()


def logistic_nelbo(model: LogisticRegression, x: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """−ELBO of N(loc, root rootᵀ) over the weights: the expected log likelihood of a datum is over one linear predictor."""
    mean, scale = model.covariates @ loc, (model.covariates @ root).norm(dim=-1)
    expected = softplus(mean.unsqueeze(-1) + scale.unsqueeze(-1) * NODES) @ MASS
    likelihood = (x * mean - expected).sum()
    return -likelihood - _normal(0.0, model.prior_scale, loc, root) - _entropy(root)


def eight_schools_nelbo(model: EightSchools, x: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """−ELBO of N(loc, root rootᵀ) over (mu, log tau, theta or theta_trans).

    E[exp(a log tau) f] is E[exp(a log tau)] times the expectation of f with every mean moved by a Cov(·, log tau).
    """
    covariance = root @ root.mT
    total = _normal(0.0, model.mu_scale, loc[:1], root[:1]) + loc[1]
    tau = (loc[1] + root[1].norm() * NODES).exp()
    total = total + log(2 / pi) - model.tau_scale.log() - MASS @ (tau / model.tau_scale).square().log1p()

    def tilted(a: float) -> tuple[Tensor, Tensor]:
        return (a * loc[1] + a**2 / 2 * covariance[1, 1]).exp(), loc + a * covariance[1]

    rows = torch.arange(2, len(loc))
    own, cross = covariance[rows, rows], covariance[rows, 0]
    if model.centered:
        weight, mean = tilted(-2.0)
        square = (mean[2:] - mean[0]).square() + own + covariance[0, 0] - 2 * cross
        total = total - len(x) * (loc[1] + 0.5 * log(2 * pi)) - 0.5 * weight * square.sum()
        residual = (x - loc[2:]).square() + own
    else:
        total = total + _normal(0.0, torch.ones(()), loc[2:], root[2:])
        (first, once), (second, twice) = tilted(1.0), tilted(2.0)
        residual = (x - loc[0]).square() + covariance[0, 0] + second * (twice[2:].square() + own)
        residual = residual - 2 * first * ((x - once[0]) * once[2:] - cross)
    total = total - (0.5 * residual / model.noise_scale.square() + model.noise_scale.log() + 0.5 * log(2 * pi)).sum()
    return -total - _entropy(root)


def sobol(count: int, dim: int) -> Tensor:
    """Points for N(0, I), shape (2 count, dim): Sobol's, scrambled, with their mirror images."""
    points = torch.from_numpy(norm.ppf(qmc.Sobol(dim, seed=0).random(count)))
    return torch.cat([points, -points])


def vae_nelbo(model: VAE, x: Tensor, points: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """−ELBO of a datum, on average, of N(loc_i, root_i root_iᵀ) behind each: the decoder's part by the same points for all.

    A peer's mean field over all data, loc and root of one long vector, is taken apart.
    """
    if root.dim() == 2:
        loc, root = loc.reshape(len(x), -1), root.diagonal().reshape(len(x), -1).diag_embed()
    h = loc + (root @ points[:, None, :, None]).squeeze(-1)
    output = model.decoder(h) + model.offset
    likelihood = (x * output - softplus(output)).sum(-1).mean(0)
    scale = root.diagonal(dim1=-2, dim2=-1)
    kl = 0.5 * (loc.square() + root.square().sum(-1) - 1).sum(-1) - scale.log().sum(-1)
    return (kl - likelihood).mean()


def _normal(mean: float, scale: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """E[log N(h; mean, scale²)], summed."""
    square = (loc - mean).square() + root.square().sum(-1)
    return -(0.5 * square / scale.square() + scale.log() + 0.5 * log(2 * pi)).expand(loc.shape).sum()


def _entropy(root: Tensor) -> Tensor:
    return root.diagonal().abs().log().sum() + 0.5 * len(root) * (1 + log(2 * pi))
