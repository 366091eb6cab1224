"""Pyro's Trace_ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from torch import Tensor

from ..programs.traced_pairs import Pair
from .averaged import Averaged
from .base import Loss

__all__ = ["TraceELBO"]


@dataclass(frozen=True)
class TraceELBO(Averaged):
    """−ELBO from draws, for any guide: the same estimator as Pyro's `Trace_ELBO`, draw by draw.

    A reparameterised site has the plain reparameterised gradient, which keeps the score of q. Any other site (a discrete
    latent) has the score function times the log weight of the plates that contain it.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. At the exact posterior the value is constant, but the
    gradient vanishes only in the mean. Harmful: for discrete latents its variance is high (no baseline).

    Args:
        draws: number K of draws, averaged.

    Reference: Wingate & Weber, "Automated variational inference in probabilistic programming" (2013); Ranganath, Gerrish &
    Blei, "Black box variational inference" (2014); Kingma & Welling, "Auto-encoding variational Bayes" (2014).
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def loss(self, pair: Pair) -> Loss:
        elbo = surrogate = torch.zeros(())
        for site in pair.model.nodes.values():
            if site["type"] == "sample":
                elbo = elbo + site["log_prob_sum"].detach()
                surrogate = surrogate + site["log_prob_sum"]
        log_weight = None
        for site in pair.guide.nodes.values():
            if site["type"] != "sample":
                continue
            elbo = elbo - site["log_prob_sum"].detach()
            score, entropy = site["score_parts"].score_function, site["score_parts"].entropy_term
            if not is_identically_zero(entropy):
                surrogate = surrogate - entropy.sum()
            if not is_identically_zero(score):
                log_weight = _log_weight(pair) if log_weight is None else log_weight
                surrogate = surrogate + (log_weight.sum_to(site["cond_indep_stack"]) * score).sum()
        return Loss(-elbo, -surrogate)


def _log_weight(pair: Pair) -> Any:
    """The log weight, detached, with its terms sorted by plates; includes the terms of the guide's auxiliary draws."""
    log_weight = MultiFrameTensor()
    for trace, sign in ((pair.model, 1.0), (pair.guide, -1.0)):
        stacks = get_plate_stacks(trace)
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                term: Tensor = sign * site["log_prob"].detach()
                log_weight.add((stacks[name], term))
    return log_weight
