"""Exact −ELBO of a Gaussian q, in closed form or by quadrature: the oracle of time_to_optimum.py."""

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
    """−ELBO of q = N(loc, root rootᵀ) over the weights, in nats.

    The expected log likelihood of a datum is an integral over its linear predictor, by Gauss–Hermite quadrature.
    """
    mean, scale = model.covariates @ loc, (model.covariates @ root).norm(dim=-1)
    expected = softplus(mean.unsqueeze(-1) + scale.unsqueeze(-1) * NODES) @ MASS
    likelihood = (x * mean - expected).sum()
    return -likelihood - _normal(0.0, model.prior_scale, loc, root) - _entropy(root)


def eight_schools_nelbo(model: EightSchools, x: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """−ELBO of q = N(loc, root rootᵀ) over (mu, log tau, theta or theta_trans), in nats.

    Uses E[exp(a log tau) f] = E[exp(a log tau)] E'[f], where E' shifts every mean by a Cov(·, log tau).
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


def sobol(draws: int, dim: int) -> Tensor:
    """Scrambled Sobol points for N(0, I) and their mirror images, shape (2 draws, dim)."""
    points = torch.from_numpy(norm.ppf(qmc.Sobol(dim, seed=0).random(draws)))
    return torch.cat([points, -points])


def vae_nelbo(model: VAE, x: Tensor, points: Tensor, loc: Tensor, root: Tensor) -> Tensor:
    """Mean −ELBO per datum of q = ∏_i N(loc_i, root_i root_iᵀ), in nats.

    The expected log likelihood is an average over `points`, shape (points, dim), the same for every datum. Also takes a mean
    field over all data packed into one vector: loc of shape (N dim,) and a diagonal root of shape (N dim, N dim).
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
    """E_q[log N(h; mean, scale²)], summed over the coordinates of h."""
    square = (loc - mean).square() + root.square().sum(-1)
    return -(0.5 * square / scale.square() + scale.log() + 0.5 * log(2 * pi)).expand(loc.shape).sum()


def _entropy(root: Tensor) -> Tensor:
    """Entropy of N(·, root rootᵀ), in nats."""
    return root.diagonal().abs().log().sum() + 0.5 * len(root) * (1 + log(2 * pi))
