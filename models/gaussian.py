"""Gaussian algebra of the conjugate models, and the dense linear-Gaussian solver that they are tested against."""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from .arguments import check_event
from .precision import widened

__all__ = ["LinearGaussian", "mean_and_covariance", "reconstruction"]


def mean_and_covariance(q: Distribution) -> tuple[Tensor, Tensor]:
    """Mean (..., k) and covariance (..., k, k) of a Gaussian over R^k.

    Raises:
        TypeError: if `q` is not a Gaussian with one event dimension.
    """
    if isinstance(q, (MultivariateNormal, LowRankMultivariateNormal)):
        return q.mean, q.covariance_matrix
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal) and len(q.event_shape) == 1:
        return q.mean, q.variance.diag_embed()
    raise TypeError(f"a Gaussian over R^k is needed for a closed form, but q is {q}.")


def reconstruction(q: Distribution, x: Tensor, noise_scale: Tensor) -> Tensor:
    """E_q[log N(x; h, noise_scale²)] for each entry of x, where q is a Gaussian over h like a row of x; in float64.

    Raises:
        TypeError, ValueError: if q is no Gaussian, or over vectors of another length.
    """
    mean, covariance = mean_and_covariance(widened(q))
    check_event(q, tuple(x.shape[-1:]), owner="expected_log_likelihood")
    return _expected_log_normal(x.double(), mean, covariance.diagonal(dim1=-2, dim2=-1), noise_scale.double())


class LinearGaussian(NamedTuple):
    r"""h ~ N(prior_loc, diag prior_scale²), x | h ~ N(loading h + offset, diag noise_scale²), with h in R^k, x in R^d.

    The posterior is N(m, P⁻¹) with precision P = diag(prior_scale⁻²) + Wᵀ diag(noise_scale⁻²) W, where W is the loading, and
    m = prior_loc + P⁻¹ Wᵀ diag(noise_scale⁻²) (x − offset − W prior_loc) (Bishop 2006, equations 2.113–2.117). It costs
    O(dk² + k³) once and O(dk) for each x.
    """

    prior_loc: Tensor
    prior_scale: Tensor
    loading: Tensor
    offset: Tensor
    noise_scale: Tensor

    def double(self) -> LinearGaussian:
        """The same in float64."""
        return LinearGaussian(*(part.double() for part in self))

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(h | x): batch shape x.shape[:-1], event shape (k,)."""
        weighted = self.loading / self.noise_scale.unsqueeze(-1) ** 2
        precision = (self.prior_scale**-2).diag_embed() + self.loading.mT @ weighted
        scale_tril = dist.MultivariateNormal(self.prior_loc, precision_matrix=precision).scale_tril
        residual = x - self.offset - self.loading @ self.prior_loc
        loc = self.prior_loc + residual @ weighted @ scale_tril @ scale_tril.mT
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), shape x.shape[:-1], as log p(x | m) + log p(m) − log p(m | x) at the posterior mean m."""
        posterior = self.posterior(x)
        h = posterior.mean
        log_prior = dist.Normal(self.prior_loc, self.prior_scale).log_prob(h).sum(-1)
        log_likelihood = dist.Normal(self._mean(h), self.noise_scale).log_prob(x).sum(-1)
        log_posterior: Tensor = posterior.log_prob(h)
        return log_likelihood + log_prior - log_posterior

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for Gaussian q, shape x.shape[:-1]."""
        mean, covariance = mean_and_covariance(q)
        check_event(q, tuple(self.prior_loc.shape), owner="expected_log_likelihood")
        variance = torch.einsum("dk,...kl,dl->...d", self.loading, covariance, self.loading)
        return _expected_log_normal(x, self._mean(mean), variance, self.noise_scale).sum(-1)

    def _mean(self, h: Tensor) -> Tensor:
        return h @ self.loading.mT + self.offset


def _expected_log_normal(x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor) -> Tensor:
    """E[log N(x; m, scale²)] for each entry, where m is Gaussian with the given mean and variance."""
    return dist.Normal(mean, scale).log_prob(x) - 0.5 * variance / scale**2
