"""A VAE with a binary latent, whose evidence is a sum over all its states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .decoders import MLP
from .observations import Observation
from .states import States, all_states
from .vae import VAE

__all__ = ["BinaryVAE"]

LIMIT = 2_000_000
"""How many numbers of x times states are scored at once: bounds the memory."""


class BinaryVAE(VAE):
    r"""A latent h_i of k zeros and ones behind each x_i, through a decoder net.

        h_i ~ Bernoulli(sigmoid(prior_logits))          in each of the k coordinates
        x_i ~ observation(decoder(h_i) + offset)        i = 1 … N, independent entries

    prior_logits are learned. With k ≤ 16 the posterior and log p(x) are sums over 2^k states, whatever the decoder is; they
    differentiate, so that small models can be trained on log p(x) itself.

    Arguments and errors: as for `VAE`.

    Reference: Mnih & Gregor, "Neural variational inference and learning in belief networks" (2014), one layer.
    """

    prior_logits: nn.Parameter

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latents: int,
        *,
        decoder: nn.Module | Callable[[int, tuple[int, ...]], nn.Module] | None = None,
        observation: Observation | None = None,
    ) -> None:
        super().__init__(data_shape, latents, decoder=decoder, observation=observation)
        self.prior_logits = nn.Parameter(torch.zeros(latents))

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

    def prior(self) -> Tensor:
        return pyro.sample("h", dist.Bernoulli(logits=self.prior_logits).to_event(1))

    def posterior(self, x: Tensor) -> States:
        """p(h | x), batch shape (N,)."""
        self.check_data(x)
        states, likelihood = self._scored(x)
        return States((self._log_prior(states) + likelihood).mT)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log Σ_h p(x, h), shape (N,)."""
        self.check_data(x)
        states, likelihood = self._scored(x)
        return (self._log_prior(states) + likelihood).logsumexp(0)

    def expected_log_likelihood(self, q: Distribution, x: Tensor) -> Tensor:
        """Σ_h q(h) log p(x | h), shape (N,), for any q over {0, 1}^k."""
        self.check_data(x)
        states, likelihood = self._scored(x)
        return (q.log_prob(states).exp() * likelihood).sum(0)

    def _log_prior(self, states: Tensor) -> Tensor:
        return dist.Bernoulli(logits=self.prior_logits).log_prob(states).sum(-1)

    def _scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All states, shape (2^k, 1, k), and log p(x | h) in each, shape (2^k, N)."""
        if self.latents > 16:
            raise ValueError(
                f"BinaryVAE: {self.latents} latents have too many states to sum; at most 16, or use inference.iwae."
            )
        states = all_states(self.latents, like=self.prior_logits).unsqueeze(1)
        chunk = max(1, LIMIT // x.numel())
        return states, torch.cat([self.decode(part).log_prob(x) for part in states.split(chunk)])
