"""Pyro's Trace_ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from torch import Tensor

from ..programs.log_weights import check_draws
from ..programs.traced_pairs import Pair, Program, traces
from .base import Loss

__all__ = ["TraceELBO"]


@dataclass(frozen=True)
class TraceELBO:
    """−ELBO from draws, for any guide: the estimator of Pyro's `Trace_ELBO`, draw by draw.

    Where a site is reparameterised the gradient is the plain reparameterised one, which keeps the score of q; where it is
    not (a discrete latent) the score function times the log weight of the plates that the site lies in.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. At the exact posterior the value is constant, its
    gradient is not: it vanishes in the mean only. Harmful: for discrete latents its variance is high (no baseline).

    Args:
        draws: draws, averaged.

    Reference: Wingate & Weber, "Automated variational inference in probabilistic programming" (2013); Ranganath, Gerrish &
    Blei, "Black box variational inference" (2014); Kingma & Welling, "Auto-encoding variational Bayes" (2014).
    """

    estimates_elbo: ClassVar[bool] = True
    draws: int = 1

    def __post_init__(self) -> None:
        check_draws(self, self.draws)

    def __call__(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Loss:
        pairs = traces(model, guide, args, kwargs, draws=self.draws)
        parts = [_particle(pair) for pair in pairs]
        value = torch.stack([part.value for part in parts]).sum() / self.draws
        return Loss(value, torch.stack([part.surrogate for part in parts]).sum() / self.draws)


def _particle(pair: Pair) -> Loss:
    elbo = surrogate = torch.zeros(())
    for site in pair.model.nodes.values():
        if site["type"] == "sample":
            elbo = elbo + site["log_prob_sum"].detach()
            surrogate = surrogate + site["log_prob_sum"]
    cost = None
    for site in pair.guide.nodes.values():
        if site["type"] != "sample":
            continue
        elbo = elbo - site["log_prob_sum"].detach()
        score, entropy = site["score_parts"].score_function, site["score_parts"].entropy_term
        if not is_identically_zero(entropy):
            surrogate = surrogate - entropy.sum()
        if not is_identically_zero(score):
            cost = _cost(pair) if cost is None else cost
            surrogate = surrogate + (cost.sum_to(site["cond_indep_stack"]) * score).sum()
    return Loss(-elbo, -surrogate)


def _cost(pair: Pair) -> Any:
    """The log weight, split by the plates that its terms lie in; auxiliary draws of the guide have a term of their own."""
    cost = MultiFrameTensor()
    for trace, sign in ((pair.model, 1.0), (pair.guide, -1.0)):
        stacks = get_plate_stacks(trace)
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                term: Tensor = sign * site["log_prob"].detach()
                cost.add((stacks[name], term))
    return cost
