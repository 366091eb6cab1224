"""A mixture of a fitted guide and the prior: a proposal with bounded importance weights."""

from __future__ import annotations

from collections.abc import Callable
from math import log, log1p, prod
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from ..arguments import number
from ..naming import own_name
from .global_ import Global

__all__ = ["Defensive"]


class Defensive(PyroModule):
    """(1 − share) q_λ(h) + share p(h): a fitted guide made safe for importance sampling.

    If q has thinner tails than the posterior, the weights p(x, h) / q(h) can have infinite variance, and the standard error
    of their mean is too small. Here every weight is at most p(x, h) / (share p(h)) = p(x | h) / share, so the central limit
    theorem holds if the likelihood is bounded. Every weight is also at most 1 / (1 − share) times q's own, so the variance of
    the mean is larger than q's by at most that factor. Fit the guide first, then wrap it: the ELBO of the mixture is not
    meant to be maximised.

    Args:
        guide: a fitted `Global` guide of a model with a proper prior.
        share: weight of the prior in the mixture, between 0 and 1.

    Raises:
        TypeError: if the guide is not a `Global`.
        ValueError: if the prior is improper or the share is not inside (0, 1).

    Reference: Hesterberg, "Weighted average importance sampling and defensive mixture distributions" (1995); Owen & Zhou,
    "Safe and effective importance sampling" (2000).
    """

    def __init__(self, guide: Global, *, share: float = 0.25) -> None:
        super().__init__(name=own_name(type(self)))
        if not isinstance(guide, Global):
            raise TypeError(f"Defensive takes a Global guide, with one q over all latents, but got {guide!r}.")
        share = number("Defensive: share", share, above=0, below=1)
        if not getattr(guide.model, "proper", True):
            raise ValueError("Defensive: the model has an improper prior, which cannot be drawn from: use the guide itself.")
        self.guide = guide
        self.share = share

    @property
    def model(self) -> Callable[..., Any]:
        """The model that this guide was built for."""
        return self.guide.model

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples h from the mixture at the model's sites. Takes the model's arguments for all the data."""
        if kwargs.get("index") is not None:
            raise ValueError("Defensive has one q for all the data: call it without index.")
        self.guide.setup(*args, **kwargs)
        assert self.guide.latents is not None
        return self.guide.latents.sample(_Mixture(self.guide, self.guide.q(), args, self.share), None)[0]


class _Mixture(TorchDistribution):
    """The mixture over the packed unconstrained latents."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch declares it so
    has_rsample = False

    def __init__(self, guide: Global, q: TorchDistribution, args: tuple[Any, ...], share: float) -> None:
        assert guide.latents is not None
        self.guide, self.component, self.args, self.share, self.latents = guide, q, args, share, guide.latents
        super().__init__(q.batch_shape, q.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.component.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Mixture:
        return _Mixture(self.guide, self.component.expand(torch.Size(batch_shape)), self.args, self.share)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            own = self.component.sample(torch.Size(sample_shape))
            prior = self._from_prior(prod(own.shape[:-1])).reshape(own.shape)
            return torch.where(torch.rand(own.shape[:-1]).to(own).unsqueeze(-1) < self.share, prior, own)

    def log_prob(self, value: Tensor) -> Tensor:
        flat = value.reshape(-1, value.shape[-1])
        prior = self.latents.log_factors(self.guide.model, flat, self.args)[0].reshape(value.shape[:-1])
        return torch.logaddexp(self.component.log_prob(value) + log1p(-self.share), prior + log(self.share))

    def _from_prior(self, draws: int) -> Tensor:
        """Packed draws from the prior, shape (draws, dim)."""
        # The caller may be drawing under a plate of its own, so this one is one dimension further left.
        with poutine.block(), pyro.plate("_defensive", draws, dim=-2 - self.latents.depth):
            nodes = poutine.trace(self.guide.model).get_trace(*self.args).nodes
        values = {s.name: nodes[s.name]["value"].reshape(draws, *s.batch_shape, *s.event_shape) for s in self.latents.sites}
        return self.latents.pack(values)
