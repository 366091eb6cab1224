"""Noisy series of a drifting state, for which an encoder that sees one step at a time keeps an amortization gap."""

from __future__ import annotations

from typing import NamedTuple, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution

from .arguments import count, positive, real
from .base import LocalModel
from .datasets import Dataset
from .gaussian import reconstruction
from .precision import cast

__all__ = ["Smoothed", "StateSpace"]


class Smoothed(NamedTuple):
    """Mean and standard deviation of p(h_it | x_i), each of shape (N, T)."""

    mean: Tensor
    scale: Tensor


class StateSpace(LocalModel):
    r"""The states h_i in R^T behind each of N series x_i in R^T.

        h_i1 ~ Normal(0, initial_scale)
        h_it ~ Normal(transition h_i,t−1, drift_scale)      t = 2 … T
        x_it ~ Normal(h_it, noise_scale)                    i = 1 … N

    The Kalman filter gives log p(x_i) and the Rauch–Tung–Striebel smoother the marginals of the posterior, both at a cost
    linear in T. The posterior mean of h_it depends on the whole series. An encoder whose λ_it sees only x_it therefore keeps
    an amortization gap, known in closed form (`per_step_gap`); an encoder of the whole series does not (Margossian & Blei
    2024).

    Args:
        steps: T.
        transition: a number; the state returns to zero if its absolute value is below 1.
        drift_scale, noise_scale, initial_scale: standard deviations, positive numbers.

    References: Särkkä, "Bayesian Filtering and Smoothing" (2013), theorems 4.2 and 8.2; Margossian & Blei, "Amortized
    variational inference: when and why?" (2024).
    """

    transition: Tensor
    drift_scale: Tensor
    noise_scale: Tensor
    initial_scale: Tensor

    def __init__(
        self,
        steps: int = 8,
        *,
        transition: Tensor | float = 0.9,
        drift_scale: Tensor | float = 1.0,
        noise_scale: Tensor | float = 1.0,
        initial_scale: Tensor | float = 1.0,
    ) -> None:
        super().__init__()
        self.steps = count("StateSpace: steps", steps)
        self.declare("transition", real("transition", transition, ()))
        self.declare("drift_scale", positive("drift_scale", drift_scale, ()), constraints.positive)
        self.declare("noise_scale", positive("noise_scale", noise_scale, ()), constraints.positive)
        self.declare("initial_scale", positive("initial_scale", initial_scale, ()), constraints.positive)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(3, transition=0.8, drift_scale=0.4, noise_scale=0.6, initial_scale=0.5)
        return model, model.simulate(60, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset) -> tuple[Self, Tensor]:
        """Each row is a series, centred; the state has half of the variance and the noise the other half."""
        x = data.x - data.x.mean()
        scale = float(x.std()) * 0.5**0.5
        drift = scale * (1 - 0.9**2) ** 0.5
        return cls(x.shape[-1], drift_scale=drift, noise_scale=scale, initial_scale=scale).to(x.dtype), x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.steps,)

    def prior(self) -> Tensor:
        return pyro.sample("h", self._prior())

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(h, self.noise_scale).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(h_i | x_i), dense: batch shape (N,), event shape (T,). `smooth` gives its marginals at a cost linear in T."""
        self.check_data(x)
        return cast(self._posterior(x), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_i) by the Kalman filter, shape (N,)."""
        self.check_data(x)
        return self._filter(x)[2]

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        self.check_data(x)
        return reconstruction(q, x, self.noise_scale).sum(-1)

    def smooth(self, x: Tensor) -> Smoothed:
        """The marginals of the posterior by the Rauch–Tung–Striebel smoother, at a cost linear in T."""
        self.check_data(x)
        transition, drift, _, _ = self._numbers()
        means, variances, _ = self._filter(x)
        mean, variance = means[-1], variances[-1]
        smoothed = [(mean, variance)]
        for m, v in zip(reversed(means[:-1]), reversed(variances[:-1]), strict=True):
            predicted = transition**2 * v + drift
            gain = v * transition / predicted
            mean = m + gain * (mean - transition * m)
            variance = v + gain**2 * (variance - predicted)
            smoothed.append((mean, variance))
        mean, variance = (torch.stack(part[::-1], -1) for part in zip(*smoothed, strict=True))
        return Smoothed(mean.to(x.dtype), variance.sqrt().expand_as(mean).to(x.dtype))

    def per_step_gap(self, x: Tensor) -> Tensor:
        r"""The amortization gap of the best affine encoder λ_it = f_t(x_it) on `x`, in nats per series, shape ();
        float64.

        With the posterior's mean m(x_i) and precision P, a mean field with means f and the best scales has an ELBO that is
        ½ (f − m)ᵀ P (f − m) below the one with means m. The mean of this loss over the series is a least-squares problem in
        the 2T coefficients of f. For Gaussian x and N → ∞ no other f_t does better, affine or not.
        """
        self.check_data(x)
        posterior, x = self._posterior(x), x.double()
        root = torch.linalg.cholesky(posterior.precision_matrix[0]).mT
        # (f − m)ᵀ P (f − m) = |root (f − m)|², linear in the slopes and offsets of f.
        design = torch.cat([x.unsqueeze(-2) * root, root.expand(len(x), -1, -1)], -1).flatten(0, 1)
        target = (posterior.mean @ root.mT).flatten()
        coefficients = torch.linalg.lstsq(design, target.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        return 0.5 * (design @ coefficients - target).square().sum() / len(x)

    def _prior(self) -> dist.MultivariateNormal:
        """h = A ε with A_ts = transition^(t − s) × the scale of the s-th innovation, for s ≤ t."""
        t = torch.arange(self.steps, device=self.transition.device)
        lag = (t.unsqueeze(-1) - t).clamp(min=0)
        scale = self.drift_scale.repeat(self.steps)
        scale = torch.where(t == 0, self.initial_scale, scale)
        scale_tril = (self.transition**lag * scale).tril()
        return dist.MultivariateNormal(torch.zeros_like(scale), scale_tril=scale_tril)

    def _posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """The posterior in float64.

        The precision of the states is tridiagonal and written down directly. To invert their covariance would lose all
        digits if the state grows.
        """
        transition, drift, noise, initial = self._numbers()
        innovation = torch.cat([initial.reshape(1), drift.expand(self.steps - 1)])
        later = transition / innovation[1:]
        diagonal = 1 / innovation + torch.nn.functional.pad(transition * later, (0, 1)) + 1 / noise
        precision = diagonal.diag() - later.diag(1) - later.diag(-1)
        zero = torch.zeros_like(diagonal)
        scale_tril = dist.MultivariateNormal(zero, precision_matrix=precision).scale_tril
        return dist.MultivariateNormal(x.double() @ scale_tril @ scale_tril.mT / noise, scale_tril=scale_tril)

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Transition, and the variances of drift, noise and initial state, in float64."""
        scales = (self.drift_scale, self.noise_scale, self.initial_scale)
        drift, noise, initial = (scale.double() ** 2 for scale in scales)
        return self.transition.double(), drift, noise, initial

    def _filter(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Filtered mean and variance of each step, and log p(x_i), shape (N,); in float64."""
        x = x.double()
        transition, drift, noise, initial = self._numbers()
        means, variances = [], []
        mean, variance = x.new_zeros(len(x)), initial
        total = x.new_zeros(len(x))
        for t in range(self.steps):
            if t:
                mean, variance = transition * mean, transition**2 * variance + drift
            spread = variance + noise
            total = total + dist.Normal(mean, spread.sqrt()).log_prob(x[:, t])
            gain = variance / spread
            mean, variance = mean + gain * (x[:, t] - mean), (1 - gain) * variance
            means.append(mean)
            variances.append(variance)
        return means, variances, total
