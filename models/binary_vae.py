"""A VAE with a binary latent, whose evidence is a sum over all its states."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Distribution

from .arguments import check_event
from .decoders import MLP
from .precision import cast, widened
from .states import States, all_states
from .vae import VAE

__all__ = ["BinaryVAE"]

MAX_LATENTS = 16
"""Largest k whose 2^k states are summed: every further latent doubles a cost that is already seconds on 60 rows of x."""
MAX_SCORES = 2_000_000
"""Entries of x times states that are scored at once: at 8 bytes each, 16 MB for every intermediate result."""


class BinaryVAE(VAE):
    r"""A latent h_i of k zeros and ones behind each x_i, through a decoder net.

        h_i ~ Bernoulli(sigmoid(prior_logits))          in each of the k coordinates
        x_i ~ observation(decoder(h_i) + offset)        i = 1 … N, independent entries

    prior_logits are learned. For k ≤ 16 the posterior and log p(x) are sums over 2^k states, for every decoder; they are
    differentiable, so small models can be trained on log p(x) itself.

    Arguments and errors: as for `VAE`.

    Reference: Mnih & Gregor, "Neural variational inference and learning in belief networks" (2014), one layer.
    """

    prior_logits: nn.Parameter

    @classmethod
    def demo(cls, *, seed: int = 0) -> tuple[Self, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls((12,), 3, decoder=MLP((8,)))
        with torch.no_grad():
            model.prior_logits.copy_(torch.tensor([-0.5, 0.0, 1.0]))
            for parameter in model.decoder.parameters():
                parameter.mul_(3.0)
        return model, model.simulate(60, seed=seed)[1]

    def declare_prior(self, latents: int) -> None:
        super().declare_prior(latents)
        self.prior_logits = nn.Parameter(torch.zeros(latents))

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Bernoulli(logits=self.prior_logits).to_event(1))

    def posterior(self, x: Tensor) -> States:
        """p(h | x), batch shape (N,)."""
        states, log_likelihood = self._scored(x)
        return cast(States((self._log_prior(states) + log_likelihood).mT), x.dtype)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log Σ_h p(x, h), shape (N,)."""
        states, log_likelihood = self._scored(x)
        return (self._log_prior(states) + log_likelihood).logsumexp(0)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """Σ_h q(h) log p(x | h), shape (N,), for any q over {0, 1}^k."""
        support = getattr(q.support, "base_constraint", q.support)
        if support is not constraints.boolean:
            raise TypeError(
                f"BinaryVAE: q must be over zeros and ones, such as Bernoulli(...).to_event(1) or States, but is {q}."
            )
        check_event(q, (self.latents,), owner="BinaryVAE")
        states, log_likelihood = self._scored(x)
        return (widened(q).log_prob(states).exp() * log_likelihood).sum(0)

    def _log_prior(self, states: Tensor) -> Tensor:
        log_density: Tensor = dist.Bernoulli(logits=self.prior_logits.double()).log_prob(states).sum(-1)
        return log_density

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All states, shape (2^k, 1, k), and log p(x | h) at each, shape (2^k, N), both in float64."""
        self.check_data(x)
        if self.latents > MAX_LATENTS:
            raise ValueError(
                f"BinaryVAE: {self.latents} latents have too many states to sum: use at most {MAX_LATENTS}, or inference.iwae."
            )
        states = all_states(self.latents, like=self.prior_logits).unsqueeze(1)
        chunk = max(1, MAX_SCORES // x.numel())
        exact = x.double()
        return states.double(), torch.cat([widened(self.decode(part)).log_prob(exact) for part in states.split(chunk)])
