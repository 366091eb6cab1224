"""Objectives that are functions of the log weights of K draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ..programs.log_weights import LogWeights, pair_log_weights
from ..programs.traced_pairs import Program, require_reparameterised, traced_pairs
from .base import FromDraws, Loss

__all__ = ["Call", "Weighted"]

Call = tuple[Program, Program, tuple[Any, ...], dict[str, Any]]
"""The arguments of an objective: model, guide, args and kwargs."""


class Weighted(FromDraws, ABC):
    """A loss computed from the log weights log p(x, h) − log q(h | x) of `draws` draws."""

    reparameterised: ClassVar[bool] = True
    """Whether the gradient flows through the draws, which needs a guide that reparameterises them. If not, the draws are
    detached and latents of any kind will do."""

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        call = (model, guide, args, kwargs)
        pairs = traced_pairs(*call, draws=self.draws, hold=not self.reparameterised)
        if self.reparameterised:
            require_reparameterised(pairs[0], self)
        # The ELBO is linear in the log weights, all other bounds are not.
        minibatch = kwargs.get("index") is not None
        return self.loss(pair_log_weights(pairs, self, linear=self.estimates_elbo, minibatch=minibatch), call)

    @abstractmethod
    def loss(self, log_weights: LogWeights, call: Call) -> Loss:
        """The loss, from the log weights of draws made with the arguments `call`."""
