"""A mixture of Gaussians: one discrete latent for each datum, exact by enumeration."""

from __future__ import annotations

from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Categorical, Distribution

from .arguments import matrix, positive
from .base import LocalModel
from .datasets import Dataset
from .precision import cast, widened

__all__ = ["GaussianMixture"]


class GaussianMixture(LocalModel):
    r"""The component h_i in {0 … k − 1} of each x_i in R^d.

        h_i ~ Categorical(weights)
        x_i ~ Normal(loc[h_i], scale[h_i])         in each of the d coordinates, i = 1 … N

    The posterior is exact, by a sum over the k components. h is discrete, so continuous families do not apply;
    `guides.Posterior` does, and so does Pyro's enumeration (`TraceEnum_ELBO`), which also learns parameters.

    Args:
        loc: means of the components, shape (k, d). A `torch.nn.Parameter` is learned.
        scale: their standard deviations, a number or shape (k, d).
        weights: their probabilities, shape (k,), normalised here; equal by default. A
            `torch.nn.Parameter` is learned on the simplex, and must sum to 1.

    Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), section 9.2.
    """

    loc: Tensor
    scale: Tensor
    weights: Tensor

    def __init__(self, loc: Tensor, scale: Tensor | float = 1.0, weights: Tensor | None = None) -> None:
        super().__init__()
        loc = matrix("loc", loc, "k", "d")
        self.declare("loc", loc)
        self.declare("scale", positive("scale", scale, tuple(loc.shape), like=loc), constraints.positive)
        weights = loc.detach().new_ones(len(loc)) if weights is None else weights
        weights = positive("weights", weights, (len(loc),), like=loc)
        if not isinstance(weights, torch.nn.Parameter):
            weights = weights / weights.sum()
        elif not torch.allclose(weights.sum(), torch.ones_like(weights.sum())):
            raise ValueError(f"weights is a Parameter, so it must sum to 1, but it sums to {weights.sum().item():g}.")
        self.declare("weights", weights, constraints.simplex)

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        model = cls(torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 2.0]]), 0.8, torch.tensor([0.5, 0.3, 0.2]))
        return model, model.simulate(60, seed=seed)[1]

    @classmethod
    def from_dataset(cls, data: Dataset, *, components: int = 10) -> tuple[Self, Tensor]:
        """The maximum-likelihood components of scikit-learn, with 1 % of the data's variance added to each variance."""
        from sklearn.mixture import GaussianMixture as MaximumLikelihood

        spread = float(data.x.var())
        best = MaximumLikelihood(components, covariance_type="diag", reg_covar=1e-2 * spread, random_state=0)
        best = best.fit(data.x.double().numpy())
        found = (torch.from_numpy(v).to(data.x.dtype) for v in (best.means_, best.covariances_**0.5, best.weights_))
        return cls(*found), data.x

    @property
    def data_shape(self) -> tuple[int, ...]:
        return tuple(self.loc.shape[1:])

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Categorical(self.weights), infer={"enumerate": "parallel"})

    def likelihood(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        return pyro.sample("x", dist.Normal(self.loc[h], self.scale[h]).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.Categorical:
        """p(h | x): the responsibilities, batch shape (N,)."""
        return cast(dist.Categorical(logits=self._log_joint(x)), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_i), shape (N,)."""
        return self._log_joint(x).logsumexp(-1)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """E_q[log p(x | h)] for q = Categorical, shape (N,)."""
        if not isinstance(q, Categorical):
            raise TypeError(f"GaussianMixture: q must be a Categorical for a closed form, but is {q}.")
        log_likelihoods = self._log_likelihoods(x)
        if q.probs.shape[-1] != len(self.loc):
            raise ValueError(f"GaussianMixture: q is over {q.probs.shape[-1]} components, but the model has {len(self.loc)}.")
        return (widened(q).probs * log_likelihoods).sum(-1)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Converts the model and normalises the weights again: rounded to float32 they do not sum to 1 in float64."""
        before = self.dtype
        super()._apply(fn, recurse)
        if "weights" in self._buffers and self.dtype != before:
            self.weights = self.weights / self.weights.sum()
        return self

    def _log_joint(self, x: Tensor) -> Tensor:
        """log p(x_i, h_i = j), shape (N, k)."""
        weights = self.weights.double()
        return (weights / weights.sum()).log() + self._log_likelihoods(x)

    def _log_likelihoods(self, x: Tensor) -> Tensor:
        """log p(x_i | h_i = j), shape (N, k), in float64."""
        self.check_data(x)
        log_density: Tensor = (
            dist.Normal(self.loc.double(), self.scale.double()).to_event(1).log_prob(x.double().unsqueeze(-2))
        )
        return log_density
