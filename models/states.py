"""A distribution over all 2^k vectors of k zeros and ones, given as a table of their probabilities."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.kl import register_kl

__all__ = ["States", "all_states"]


def all_states(k: int, *, like: Tensor) -> Tensor:
    """Every vector of k zeros and ones, shape (2^k, k): row s holds the binary digits of s, lowest first."""
    states = torch.arange(2**k, device=like.device).unsqueeze(-1)
    return (states >> torch.arange(k, device=like.device) & 1).to(like.dtype)


class States(TorchDistribution):
    """Any distribution over {0, 1}^k.

    Args:
        logits: unnormalised log probability of each state, in the order of `all_states`, shape (*, 2^k).

    Raises:
        ValueError: if the last dimension of `logits` is not a power of 2.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 (torch reads it as it is)
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True

    def __init__(self, logits: Tensor) -> None:
        self.k = logits.shape[-1].bit_length() - 1
        if logits.shape[-1] != 2**self.k:
            raise ValueError(f"States: logits must have 2^k numbers in the last dimension, but have {logits.shape[-1]}.")
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], torch.Size((self.k,)), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.exp() @ self.enumerate_support(expand=False)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def expand(self, batch_shape: Any, _instance: Any = None) -> States:
        return States(self.logits.expand(*batch_shape, self.logits.shape[-1]))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            index = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
            return all_states(self.k, like=self.logits)[index]

    def log_prob(self, value: Tensor) -> Tensor:
        index = (value.long() << torch.arange(self.k, device=value.device)).sum(-1, keepdim=True)
        lead = torch.broadcast_shapes(index.shape[:-1], self.batch_shape)
        logits = self.logits.expand(*lead, self.logits.shape[-1])
        return logits.gather(-1, index.expand(*lead, 1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.logits.exp() * self.logits).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        states = all_states(self.k, like=self.logits)
        if not expand:
            return states
        return states.reshape(-1, *(1,) * len(self.batch_shape), self.k).expand(-1, *self.batch_shape, self.k)


def _kl(p: Any, q: Any) -> Tensor:
    """KL(p ‖ q), summed over all states."""
    states = next(r for r in (p, q) if isinstance(r, States)).enumerate_support(expand=False)
    states = states.reshape(-1, *(1,) * len(p.batch_shape), states.shape[-1])
    log_p, log_q = p.log_prob(states), q.log_prob(states)
    return (log_p.exp() * (log_p - log_q)).sum(0)


register_kl(Independent, States)(_kl)
register_kl(States, Independent)(_kl)
register_kl(States, States)(_kl)
