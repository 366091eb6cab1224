"""Ports of posteriordb's hierarchical models, which are also models of this suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ..eight_schools import EFFECTS, EightSchools
from ..radon import Radon
from .port import Port

__all__ = ["EightSchoolsCentered", "EightSchoolsNoncentered", "RadonHierarchical"]


class _EightSchools(EightSchools, Port):
    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(cls.column(data, "sigma")), cls.column(data, "y")

    @classmethod
    def demo(cls, *, seed: int = 0, centered: bool = True) -> tuple[Self, Tensor]:
        """The data of 1981, in the parametrisation of the class."""
        return cls().double(), torch.tensor(EFFECTS, dtype=torch.float64)


class EightSchoolsCentered(_EightSchools):
    """eight_schools-eight_schools_centered: `models.EightSchools`, centred."""

    entry = "eight_schools-eight_schools_centered"

    def __init__(self, noise_scale: Tensor | None = None) -> None:
        super().__init__(noise_scale, centered=True)


class EightSchoolsNoncentered(_EightSchools):
    """eight_schools-eight_schools_noncentered: `models.EightSchools`, not centred. The reference draws hold theta."""

    entry = "eight_schools-eight_schools_noncentered"

    def __init__(self, noise_scale: Tensor | None = None) -> None:
        super().__init__(noise_scale, centered=False)

    def latents(self, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mu, tau, theta = (quantities[name] for name in ("mu", "tau", "theta"))
        return {"mu": mu, "tau": tau, "theta_trans": (theta - mu.unsqueeze(-1)) / tau.unsqueeze(-1)}


class RadonHierarchical(Radon, Port):
    """radon_mn-radon_hierarchical_intercept: `models.Radon`, not centred, on 919 houses in 85 counties of Minnesota."""

    entry = "radon_mn-radon_hierarchical_intercept"

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        covariates = torch.stack([cls.column(data, "log_uppm"), cls.column(data, "floor_measure")], -1)
        return cls(covariates, cls.column(data, "county_idx").long() - 1), cls.column(data, "log_radon")

    def latents(self, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: quantities[name] for name in ("beta", "mu_alpha", "sigma_alpha", "sigma_y")}
        mu, sigma = found["mu_alpha"].unsqueeze(-1), found["sigma_alpha"].unsqueeze(-1)
        return {**found, "alpha_raw": (quantities["alpha"] - mu) / sigma}
