"""A Gaussian with unknown mean and precision: conjugate, and the textbook case of mean-field coordinate ascent."""

from __future__ import annotations

from math import log, pi
from typing import Any, ClassVar, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, register_kl
from torch.distributions.constraints import cat, independent

from .arguments import positive, real
from .base import Model
from .datasets import Dataset
from .precision import cast, widened

__all__ = ["IndependentNormalGamma", "NormalGamma", "NormalGammaDistribution"]


class NormalGamma(Model):
    r"""The mean h_0 and the precision h_1 (one over the variance) of N real numbers.

        h_1 ~ Gamma(shape, rate)
        h_0 ~ Normal(loc, 1 / √(count h_1))
        x_i ~ Normal(h_0, 1 / √h_1)                 i = 1 … N

    Prior and posterior are each a `NormalGammaDistribution`, in which h_0 depends on h_1. The best q with h_0 and h_1
    independent is known too (`mean_field`).

    Args:
        loc: prior mean of h_0, a number.
        count: the number of data that the prior is worth for h_0, a positive number.
        shape, rate: of the prior of h_1, positive numbers.

    References: Murphy, "Conjugate Bayesian analysis of the Gaussian distribution" (2007), section 3; Bishop, "Pattern
    Recognition and Machine Learning" (2006), section 10.1.3.
    """

    loc: Tensor
    count: Tensor
    shape: Tensor
    rate: Tensor

    def __init__(
        self,
        *,
        loc: Tensor | float = 0.0,
        count: Tensor | float = 1.0,
        shape: Tensor | float = 1.0,
        rate: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        self.declare("loc", real("loc", loc, ()))
        self.declare("count", positive("count", count, ()), constraints.positive)
        self.declare("shape", positive("shape", shape, ()), constraints.positive)
        self.declare("rate", positive("rate", rate, ()), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(count=0.5, shape=2.0, rate=1.0)
        return model, model.simulate(12, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """x is the targets, or without targets the mean of each row; the prior is worth one datum."""
        x = (data.x.mean(-1) if data.y is None else data.y).to(data.x.dtype)
        return cls(loc=x.mean(), rate=x.var()), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return ()

    def prior(self) -> Tensor:
        return pyro.sample("h", NormalGammaDistribution(self.loc, self.count, self.shape, self.rate))

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h[..., 0], h[..., 1] ** -0.5), obs=x)

    def posterior(self, x: Tensor) -> NormalGammaDistribution:
        self.check_data(x)
        return cast(self._posterior(x), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), as log p(x | m) + log p(m) − log p(m | x) at the posterior mean m."""
        self.check_data(x)
        posterior = self._posterior(x)
        h = posterior.mean
        log_prior = widened(NormalGammaDistribution(self.loc, self.count, self.shape, self.rate)).log_prob(h)
        return dist.Normal(h[0], h[1] ** -0.5).log_prob(x.double()).sum() + log_prior - posterior.log_prob(h)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for q a `NormalGammaDistribution` or an `IndependentNormalGamma`."""
        self.check_data(x)
        if not isinstance(q, _MeanAndPrecision):
            raise TypeError(
                f"NormalGamma: q must be a NormalGammaDistribution or an IndependentNormalGamma for a closed form, but is {q}."
            )
        q, x = widened(q), x.double()
        squares = ((x - q.loc) ** 2).sum() * q.concentration / q.rate + len(x) * q.scaled_variance
        log_precision = torch.digamma(q.concentration) - q.rate.log()
        return 0.5 * (len(x) * (log_precision - log(2 * pi)) - squares)

    def mean_field(self, x: Tensor) -> IndependentNormalGamma:
        r"""The q = q(h_0) q(h_1) with the highest ELBO: the fixed point of coordinate ascent, in closed form.

        Coordinate ascent sets q(h_1) = Gamma(a, b) with a = shape + (N + 1)/2 and b = rate + S/2 + b/(2a), where S is the sum
        of squares about the posterior mean, including the prior's term count (posterior mean − loc)². The solution is
        b = (rate + S/2) / (1 − 1/(2a)), and q(h_0) = Normal(posterior mean, 1/√((count + N) a/b)).
        """
        self.check_data(x)
        posterior = self._posterior(x)
        shape = self.shape.double() + (len(x) + 1) / 2
        rate = posterior.rate / (1 - 0.5 / shape)
        return cast(IndependentNormalGamma(posterior.loc, (posterior.count * shape / rate) ** -0.5, shape, rate), x.dtype)

    def _posterior(self, x: Tensor) -> NormalGammaDistribution:
        """The posterior in float64."""
        x = x.double()
        prior_count = self.count.double()
        count = prior_count + len(x)
        loc = (prior_count * self.loc.double() + x.sum()) / count
        shape, rate = self.shape.double() + len(x) / 2, self.rate.double() + self._squares(x, loc) / 2
        return NormalGammaDistribution(loc, count, shape, rate)

    def _squares(self, x: Tensor, loc: Tensor) -> Tensor:
        return ((x - loc) ** 2).sum() + self.count.double() * (loc - self.loc.double()) ** 2


class _MeanAndPrecision(TorchDistribution):
    """h = (mean, precision): h_1 ~ Gamma(concentration, rate), h_0 | h_1 ~ Normal(loc, scale) with the subclass's scale."""

    support: ClassVar[constraints.Constraint] = independent(cat([constraints.real, constraints.positive], -1), 1)
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    loc: Tensor
    concentration: Tensor
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        return torch.stack(torch.broadcast_tensors(self.loc, self.concentration / self.rate), -1)

    @property
    def scaled_variance(self) -> Tensor:
        """E[h_1 (h_0 − loc)²]."""
        raise NotImplementedError

    def _scale(self, precision: Tensor) -> Tensor:
        """Standard deviation of h_0 given h_1."""
        raise NotImplementedError

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = torch.Size(sample_shape) + self.batch_shape
        precision = dist.Gamma(self.concentration, self.rate).expand(self.batch_shape).rsample(torch.Size(sample_shape))
        mean = self.loc + self._scale(precision) * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.stack([mean.expand(shape), precision], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        mean, precision = value.unbind(-1)
        log_precision: Tensor = dist.Gamma(self.concentration, self.rate).log_prob(precision)
        return log_precision + dist.Normal(self.loc, self._scale(precision)).log_prob(mean)


class NormalGammaDistribution(_MeanAndPrecision):
    """h_1 ~ Gamma(concentration, rate), h_0 | h_1 ~ Normal(loc, 1/√(count h_1)); all arguments broadcast."""

    def __init__(self, loc: Tensor, count: Tensor, concentration: Tensor, rate: Tensor) -> None:
        self.loc, self.count, self.concentration, self.rate = torch.broadcast_tensors(loc, count, concentration, rate)
        super().__init__(self.loc.shape, torch.Size([2]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalGammaDistribution:
        return NormalGammaDistribution(*(t.expand(batch_shape) for t in (self.loc, self.count, self.concentration, self.rate)))

    @property
    def scaled_variance(self) -> Tensor:
        return 1 / self.count

    def _scale(self, precision: Tensor) -> Tensor:
        return (self.count * precision) ** -0.5


class IndependentNormalGamma(_MeanAndPrecision):
    """h_1 ~ Gamma(concentration, rate) and h_0 ~ Normal(loc, scale), independent; all arguments broadcast."""

    def __init__(self, loc: Tensor, scale: Tensor, concentration: Tensor, rate: Tensor) -> None:
        self.loc, self.scale, self.concentration, self.rate = torch.broadcast_tensors(loc, scale, concentration, rate)
        super().__init__(self.loc.shape, torch.Size([2]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> IndependentNormalGamma:
        return IndependentNormalGamma(*(t.expand(batch_shape) for t in (self.loc, self.scale, self.concentration, self.rate)))

    @property
    def scaled_variance(self) -> Tensor:
        return self.scale**2 * self.concentration / self.rate

    def _scale(self, precision: Tensor) -> Tensor:
        return self.scale


@register_kl(NormalGammaDistribution, NormalGammaDistribution)  # type: ignore[untyped-decorator]
def _kl_same(q: NormalGammaDistribution, p: NormalGammaDistribution) -> Tensor:
    ratio = p.count / q.count
    return _kl_gamma(q, p) + 0.5 * (ratio - 1 - ratio.log() + p.count * (q.loc - p.loc) ** 2 * q.concentration / q.rate)


@register_kl(IndependentNormalGamma, NormalGammaDistribution)  # type: ignore[untyped-decorator]
def _kl_independent(q: IndependentNormalGamma, p: NormalGammaDistribution) -> Tensor:
    log_precision = torch.digamma(q.concentration) - q.rate.log()
    squares = p.count * q.concentration / q.rate * (q.scale**2 + (q.loc - p.loc) ** 2)
    return _kl_gamma(q, p) + 0.5 * (squares - 1 - 2 * q.scale.log() - p.count.log() - log_precision)


def _kl_gamma(q: _MeanAndPrecision, p: _MeanAndPrecision) -> Tensor:
    return torch.distributions.kl_divergence(dist.Gamma(q.concentration, q.rate), dist.Gamma(p.concentration, p.rate))
