"""Factor analysis: a few Gaussian factors behind each datum, and a noise scale for each coordinate."""

from __future__ import annotations

from typing import ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .arguments import matrix, positive, real
from .base import LocalModel
from .datasets import Dataset
from .gaussian import LinearGaussian
from .linear_gaussian import LinearGaussianModel

__all__ = ["FactorAnalysis"]


class FactorAnalysis(LinearGaussianModel, LocalModel):
    r"""Factors h_i in R^k behind each x_i in R^d.

        h_i ~ Normal(0, I_k)
        x_i ~ Normal(loading h_i + mean, noise_scale)       i = 1 … N

    An argument given as a `torch.nn.Parameter` is learned by a fit; a tensor or a number stays fixed. The posterior mean is
    linear in x_i and its covariance the same for every i, so a linear encoder with a full-rank family reaches it exactly.

    Args:
        loading: shape (d, k).
        mean: a number or shape (d,).
        noise_scale: standard deviation of each coordinate, a number or shape (d,).

    Reference: Bartholomew, Knott & Moustaki, "Latent Variable Models and Factor Analysis" (2011), chapter 3.
    """

    isotropic: ClassVar[bool] = False
    """Whether all coordinates share one noise_scale."""

    loading: Tensor
    mean: Tensor
    noise_scale: Tensor

    def __init__(self, loading: Tensor, mean: Tensor | float = 0.0, noise_scale: Tensor | float = 1.0) -> None:
        super().__init__()
        loading = matrix("loading", loading, "d", "k")
        self.declare("loading", loading)
        self.declare("mean", real("mean", mean, (len(loading),), like=loading))
        noise_shape = () if self.isotropic else (len(loading),)
        self.declare("noise_scale", positive("noise_scale", noise_scale, noise_shape, like=loading), constraints.positive)
        self.register_buffer("prior_scale", torch.ones_like(loading[0]).detach())

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        loading = torch.randn(6, 2, generator=generator)
        noise_scale = 0.5 + torch.rand(() if cls.isotropic else (6,), generator=generator)
        model = cls(loading, mean=torch.linspace(-1.0, 1.0, 6), noise_scale=noise_scale)
        return model, model.simulate(60, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset, *, factors: int | None = None) -> tuple[Self, Tensor]:
        """Loading, mean and noise by scikit-learn's maximum likelihood; `factors` is by default 8, or columns − 1 if fewer."""
        from sklearn.decomposition import FactorAnalysis as MaximumLikelihood

        factors = min(8, data.x.shape[-1] - 1) if factors is None else factors
        if not 1 <= factors < data.x.shape[-1]:
            raise ValueError(f"FactorAnalysis: factors must be from 1 to {data.x.shape[-1] - 1}, but is {factors}.")
        best = MaximumLikelihood(factors, svd_method="lapack").fit(data.x.double().numpy())
        noise = torch.from_numpy(best.noise_variance_).clamp(min=1e-6 * float(data.x.var())).sqrt()
        to = data.x.dtype
        loading = torch.from_numpy(best.components_.T.copy())
        return cls(loading.to(to), torch.from_numpy(best.mean_).to(to), noise.to(to)), data.x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (len(self.loading),)

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Normal(0.0, self.prior_scale).to_event(1))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        mean = h @ self.loading.mT + self.mean
        return pyro.sample("x", dist.Normal(mean, self.noise_scale).to_event(1), obs=x)

    def linear_gaussian(self) -> LinearGaussian:
        loading = self.loading
        return LinearGaussian(
            prior_loc=torch.zeros_like(loading[0]),
            prior_scale=torch.ones_like(loading[0]),
            loading=loading,
            offset=self.mean,
            noise_scale=self.noise_scale.expand(len(loading)),
        )
