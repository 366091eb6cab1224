"""Radon: a regression with an intercept for each county."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .arguments import as_tensor, check_dense, flag
from .base import RegressionModel
from .datasets import Dataset

__all__ = ["Radon"]


class Radon(RegressionModel):
    r"""The log radon x_i of N houses in J counties, from covariates of the house and its county.

        sigma_alpha ~ HalfNormal(1)
        sigma_y     ~ HalfNormal(1)
        mu_alpha    ~ Normal(0, 10)
        beta        ~ Normal(0, 10)                                in each of the p coordinates
        alpha_j     ~ Normal(mu_alpha, sigma_alpha)                                          centered=True
        alpha_raw_j ~ Normal(0, 1),  alpha_j = mu_alpha + sigma_alpha alpha_raw_j            centered=False
        x_i         ~ Normal(alpha[county_i] + covariates_i · beta, sigma_y)                 i = 1 … N

    This is posteriordb's radon_hierarchical_intercept, whose covariates are the log uranium of the county and the floor of
    the measurement.

    Args:
        covariates: shape (N, p).
        county: integer county of each house, 0 … J − 1, shape (N,).
        centered: whether the latent of a county is alpha or alpha_raw; the posterior of alpha is the same.

    Reference: Gelman & Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models" (2006), chapter 12.
    """

    county: Tensor

    def __init__(self, covariates: Tensor, county: Tensor, *, centered: bool = False) -> None:
        super().__init__(covariates)
        covariates = self.covariates
        county = as_tensor("county", county, dtype=covariates.dtype)
        check_dense("county", county)
        integers = not (county.is_floating_point() or county.dtype is torch.bool)
        if not integers or county.shape != covariates.shape[:1] or county.min() < 0:
            raise ValueError(f"county must hold {len(covariates)} integers from 0, one for each row of the covariates.")
        self.register_buffer("county", county.clone())
        self.counties = int(county.max()) + 1
        self.centered = flag(f"{type(self).__name__}: centered", centered)

    @classmethod
    def demo(cls, *, seed: int = 0, centered: bool = False) -> tuple[Self, Tensor]:
        """Six counties with ten houses each, simulated with sigma_alpha = 0.5 and sigma_y = 0.7."""
        generator = torch.Generator().manual_seed(seed)
        covariates = torch.randn(60, 2, generator=generator)
        county = torch.arange(60) // 10
        alpha = 1.4 + 0.5 * torch.randn(6, generator=generator)
        mean = alpha[county] + covariates @ torch.tensor([0.8, -0.6])
        return cls(covariates, county, centered=centered), mean + 0.7 * torch.randn(60, generator=generator)

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Counties are the distinct values of the column with the fewest (but at least two); the rest is standardised."""
        distinct = torch.tensor([len(column.unique()) for column in data.x.mT])
        group = int(distinct.where(distinct > 1, distinct.max() + 1).argmin())
        county = data.x[:, group].unique(return_inverse=True)[1]
        covariates, x = cls.standardised(data._replace(x=data.x[:, torch.arange(len(distinct)) != group]))
        return cls(covariates, county), x

    def prior(self) -> dict[str, Tensor]:
        zero = self.covariates.new_zeros(())
        h: dict[str, Tensor] = {
            "sigma_alpha": pyro.sample("sigma_alpha", dist.HalfNormal(zero + 1)),
            "sigma_y": pyro.sample("sigma_y", dist.HalfNormal(zero + 1)),
            "mu_alpha": pyro.sample("mu_alpha", dist.Normal(zero, 10.0)),
            "beta": pyro.sample("beta", dist.Normal(torch.zeros_like(self.covariates[0]), 10.0).to_event(1)),
        }
        with pyro.plate("county", self.counties, dim=-1):
            if self.centered:
                return {**h, "alpha": pyro.sample("alpha", dist.Normal(h["mu_alpha"], h["sigma_alpha"]))}
            return {**h, "alpha_raw": pyro.sample("alpha_raw", dist.Normal(zero, 1.0))}

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        county = self.county if index is None else self.county[index]
        alpha = h["alpha"] if self.centered else h["mu_alpha"] + h["sigma_alpha"] * h["alpha_raw"]
        mean = alpha[..., county] + self.predictor(h["beta"], index)
        return pyro.sample("x", dist.Normal(mean, h["sigma_y"]), obs=x)

    def quantities(self, h: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """alpha, beta, mu_alpha, sigma_alpha and sigma_y, in both parametrisations."""
        found: dict[str, Any] = {name: h[name] for name in ("beta", "mu_alpha", "sigma_alpha", "sigma_y")}
        mu, sigma = h["mu_alpha"].unsqueeze(-1), h["sigma_alpha"].unsqueeze(-1)
        return {"alpha": h["alpha"] if self.centered else mu + sigma * h["alpha_raw"], **found}
