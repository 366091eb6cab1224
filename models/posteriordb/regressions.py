"""posteriordb's linear regressions with an unknown noise scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..base import RegressionModel
from .flat import flat, flat_positive
from .port import Port

__all__ = ["BLR", "NES", "KidScore", "LogMesquite"]


class _Regression(RegressionModel, Port):
    """x_i ~ Normal(covariates_i · beta, sigma), sigma a standard deviation; both have flat priors unless overridden."""

    proper: ClassVar[bool] = False

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        """30 rows with three weights of 1 and noise of standard deviation ½."""
        generator = torch.Generator().manual_seed(seed)
        covariates = torch.randn(30, 3, generator=generator, dtype=torch.float64)
        return cls(covariates), covariates.sum(-1) + 0.5 * torch.randn(30, generator=generator, dtype=torch.float64)

    def prior(self) -> dict[str, Tensor]:
        return {"beta": pyro.sample("beta", self._beta()), "sigma": pyro.sample("sigma", self._sigma())}

    def likelihood(self, h: dict[str, Tensor], x: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(self.predictor(h["beta"], index), h["sigma"]), obs=x)

    def _beta(self) -> TorchDistribution:
        return flat(self.covariates[0])

    def _sigma(self) -> TorchDistribution:
        return flat_positive(self.covariates)

    def _scalar(self, value: float) -> Tensor:
        return self.covariates.new_tensor(value)


class BLR(_Regression):
    r"""sblri-blr: regression of 100 simulated responses.

    beta  ~ Normal(0, 10)                     in each of the 5 coordinates
    sigma ~ HalfNormal(10)
    x_i   ~ Normal(covariates_i · beta, sigma)
    """

    entry = "sblri-blr"
    proper = True

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        return cls(cls.column(data, "X", (-1, -1))), cls.column(data, "y")

    def _beta(self) -> TorchDistribution:
        return dist.Normal(torch.zeros_like(self.covariates[0]), 10.0).to_event(1)

    def _sigma(self) -> TorchDistribution:
        return dist.HalfNormal(self._scalar(10.0))


class KidScore(_Regression):
    r"""kidiq-kidscore_momiq: children's test scores from their mothers' IQ.

    beta  ~ flat on R²
    sigma ~ HalfCauchy(2.5)
    x_i   ~ Normal(beta_1 + beta_2 mom_iq_i, sigma)
    """

    entry = "kidiq-kidscore_momiq"

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        iq = cls.column(data, "mom_iq")
        return cls(torch.stack([torch.ones_like(iq), iq], -1)), cls.column(data, "kid_score")

    def _sigma(self) -> TorchDistribution:
        return dist.HalfCauchy(self._scalar(2.5))


class LogMesquite(_Regression):
    r"""mesquite-logmesquite_logvash: the weight of mesquite bushes from their dimensions.

        (beta, sigma) ~ flat on R⁶ × (0, ∞)
        x_i = log weight_i ~ Normal(covariates_i · beta, sigma)

    The covariates are 1, the logs of canopy volume, area, shape and total height, and group. There is no evidence.
    """

    entry = "mesquite-logmesquite_logvash"

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        diam1, diam2, canopy = (cls.column(data, key) for key in ("diam1", "diam2", "canopy_height"))
        height, group = cls.column(data, "total_height"), cls.column(data, "group")
        columns = [(diam1 * diam2 * canopy).log(), (diam1 * diam2).log(), (diam1 / diam2).log(), height.log(), group]
        return cls(torch.stack([torch.ones_like(group), *columns], -1)), cls.column(data, "weight").log()


class NES(_Regression):
    r"""nes1972-nes: party identification of 1330 voters.

        (beta, sigma) ~ flat on R⁹ × (0, ∞)
        x_i = partyid7_i ~ Normal(covariates_i · beta, sigma)

    The covariates are 1, ideology, race, three age groups, education, gender and income. There is no evidence.
    """

    entry = "nes1972-nes"

    @classmethod
    def from_posteriordb(cls, data: Mapping[str, Any]) -> tuple[Self, Tensor]:
        age = cls.column(data, "age_discrete")
        ages = [(age == group).double() for group in (2, 3, 4)]
        before, after = (
            [cls.column(data, k) for k in keys] for keys in (("real_ideo", "race_adj"), ("educ1", "gender", "income"))
        )
        return cls(torch.stack([torch.ones_like(age), *before, *ages, *after], -1)), cls.column(data, "partyid7")
