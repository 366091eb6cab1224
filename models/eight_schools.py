"""Eight schools: the smallest hierarchical model, and the best-known failure of mean field."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, pi
from typing import NamedTuple, Self

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .arguments import flag, positive, vector
from .base import HierarchicalModel
from .datasets import Dataset

__all__ = ["EightSchools", "Moments"]

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
"""Measured effects of 1981, in points of the SAT."""
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
"""Standard errors of the effects, in points of the SAT."""
NODES = 400
"""Nodes of the quadrature over tau: the evidence of the data of 1981 is then exact to 1e-8 nats."""
GRID = 32
"""Points that look for the part of the integral over tau that matters."""
MAX_DROP = 60.0
"""The integrand is cut off where its logarithm is this far below the maximum."""
MAX_TERMS = 2_000_000
"""Schools times values of tau that are scored at once: 16 MB for every intermediate result."""


class Moments(NamedTuple):
    """Posterior mean and standard deviation of each quantity."""

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


class EightSchools(HierarchicalModel):
    r"""The effects theta_j of coaching in J schools, each measured as x_j with a known error.

        mu        ~ Normal(0, 5)
        tau       ~ HalfCauchy(5)
        theta_j   ~ Normal(mu, tau)                                                    centered=True
        theta_trans_j ~ Normal(0, 1),  theta_j = mu + tau theta_trans_j                centered=False
        x_j       ~ Normal(theta_j, noise_scale_j)                                     j = 1 … J

    The priors are posteriordb's; the literature has two other models of this name. For the data of 1981,
    log p(x) = −31.311347. The schools are the data plate, so theta (or theta_trans) is local; mu and tau are shared.
    All latents but tau integrate in closed form, so evidence and moments are exact by quadrature over
    tau.

    Args:
        noise_scale: standard deviation of each measurement, shape (J,); by default those of the eight schools of 1981.
        centered: whether the local latent is theta or theta_trans; the posterior of theta is the same.

    References: Rubin, "Estimation in parallel randomized experiments" (1981); Gelman et al., "Bayesian Data Analysis" (2013),
    section 5.5; Betancourt & Girolami, "Hamiltonian Monte Carlo for hierarchical models" (2015).
    """

    noise_scale: Tensor
    mu_scale: Tensor
    tau_scale: Tensor

    def __init__(self, noise_scale: Tensor | None = None, *, centered: bool = True) -> None:
        super().__init__()
        noise_scale = torch.tensor(ERRORS) if noise_scale is None else vector("noise_scale", noise_scale, "N")
        self.declare("noise_scale", positive("noise_scale", noise_scale, (len(noise_scale),)), constraints.positive)
        self.register_buffer("mu_scale", torch.tensor(5.0, dtype=noise_scale.dtype))
        self.register_buffer("tau_scale", torch.tensor(5.0, dtype=noise_scale.dtype))
        self.centered = flag(f"{type(self).__name__}: centered", centered)

    @classmethod
    def demo(cls, *, seed: int = 0, centered: bool = False) -> tuple[Self, Tensor]:
        """The data of 1981, for every `seed`."""
        return cls(centered=centered), torch.tensor(EFFECTS)

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Each column is a school: x_j is its mean, noise_scale_j its standard deviation, in units that suit the priors."""
        spread = data.x.std(0)
        columns = ((data.x - data.x.mean()) / data.x.std())[:, spread > 0]
        return cls(10 * columns.std(0), centered=False), 10 * columns.mean(0)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def size(self) -> int:
        return len(self.noise_scale)

    def prior(self) -> dict[str, Tensor]:
        mu = pyro.sample("mu", dist.Normal(0.0, self.mu_scale))
        return {"mu": mu, "tau": pyro.sample("tau", dist.HalfCauchy(self.tau_scale))}

    def local_prior(self, h: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.centered:
            return {**h, "theta": pyro.sample("theta", dist.Normal(h["mu"], h["tau"]))}
        zero = torch.zeros_like(h["mu"])
        return {**h, "theta_trans": pyro.sample("theta_trans", dist.Normal(zero, 1.0))}

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        theta = h["theta"] if self.centered else h["mu"] + h["tau"] * h["theta_trans"]
        noise_scale = self.noise_scale if index is None else self.noise_scale[index]
        return pyro.sample("x", dist.Normal(theta, noise_scale), obs=x)

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """theta, shape (K, J), mu and tau, in both parametrisations."""
        mu, tau = h["mu"], h["tau"]
        theta = h["theta"] if self.centered else mu.unsqueeze(-1) + tau.unsqueeze(-1) * h["theta_trans"]
        return {"theta": theta, "mu": mu, "tau": tau}

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), shape (), by Gauss–Legendre quadrature; float64."""
        self.check_data(x)
        _, log_weight = self._quadrature(x)
        return log_weight.logsumexp(0)

    def moments(self, x: Tensor) -> Moments:
        """Exact posterior mean and standard deviation of theta, mu and tau, by Gauss–Legendre quadrature."""
        self.check_data(x)
        tau, log_weight = self._quadrature(x)
        weight = log_weight.softmax(0)
        mu, mu_variance = self._mu_given(tau, x)
        noise = self.noise_scale.double() ** 2
        shrink = noise / (noise + tau.unsqueeze(-1) ** 2)
        theta = shrink * mu.unsqueeze(-1) + (1 - shrink) * x.double()
        theta_variance = shrink**2 * mu_variance.unsqueeze(-1) + shrink * tau.unsqueeze(-1) ** 2
        first = {"theta": theta, "mu": mu, "tau": tau}
        second = {"theta": theta_variance + theta**2, "mu": mu_variance + mu**2, "tau": tau**2}
        mean = {name: torch.tensordot(weight, value, 1) for name, value in first.items()}
        sd = {name: (torch.tensordot(weight, value, 1) - mean[name] ** 2).sqrt() for name, value in second.items()}
        return Moments(*({name: v.to(x.dtype) for name, v in part.items()} for part in (mean, sd)))

    def _quadrature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes in tau and log weights with sum p(x). In u, where tau = tau_scale tan(π u / 2), the prior is uniform.

        Many schools tell tau so well that the nodes have to lie where the posterior is.
        """
        low, high = self._support(x)
        u, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(NODES))
        tau = self._tau((low + high + (high - low) * u) / 2)
        return tau, self._log_likelihood(tau, x) + (weight * (high - low) / 2).log()

    def _support(self, x: Tensor) -> tuple[float, float]:
        """The interval of u outside which the integrand is negligible."""
        low, high = 0.0, 1.0
        while True:
            edges = torch.linspace(low, high, GRID + 1, dtype=torch.float64)
            value = self._log_likelihood(self._tau((edges[1:] + edges[:-1]) / 2), x.detach()).detach()
            kept = (value > value.max() - MAX_DROP).nonzero().flatten()
            before = high - low
            low, high = float(edges[max(int(kept[0]) - 1, 0)]), float(edges[min(int(kept[-1]) + 2, GRID)])
            if high - low > before / 2:
                return low, high

    def _tau(self, u: Tensor) -> Tensor:
        return self.tau_scale.double() * torch.tan(pi * u / 2)

    def _log_likelihood(self, tau: Tensor, x: Tensor) -> Tensor:
        """log p(x | tau) at each tau, shape (len(tau),): x has covariance diag(noise_scale² + tau²) + mu_scale²."""
        return torch.cat([self._scored(part, x) for part in tau.split(max(1, MAX_TERMS // self.size))])

    def _scored(self, tau: Tensor, x: Tensor) -> Tensor:
        variance = self.noise_scale.double() ** 2 + tau.unsqueeze(-1) ** 2
        precision = 1 / variance
        total = precision.sum(-1)
        mean = (precision * x.double()).sum(-1) / total
        within = (precision * (x.double() - mean.unsqueeze(-1)) ** 2).sum(-1)
        spread = 1 + self.mu_scale.double() ** 2 * total
        terms = self.size * log(2 * pi) + variance.log().sum(-1) + spread.log() + within + mean**2 * total / spread
        return -0.5 * terms

    def _mu_given(self, tau: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of mu given tau."""
        precision = 1 / (self.noise_scale.double() ** 2 + tau.unsqueeze(-1) ** 2)
        variance = 1 / (self.mu_scale.double() ** -2 + precision.sum(-1))
        return variance * (precision * x.double()).sum(-1), variance
