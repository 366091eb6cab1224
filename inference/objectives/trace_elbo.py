"""The plain ELBO, by Pyro's Trace_ELBO estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r

from .base import Loss

__all__ = ["TraceELBO"]


class TraceELBO:
    """−ELBO from `particles` draws: Σ log q(h) − log p(x, h). Unbiased, value and gradient.

    Reparameterised draws are differentiated through, others by score function with Rao-Blackwellisation over plates. At the
    exact posterior the value has no variance, but the gradient has. The same numbers as `pyro.infer.Trace_ELBO`.

    Args:
        particles: draws averaged over.

    Reference: Ranganath, Gerrish & Blei, "Black box variational inference" (2014); Kingma & Welling (2013).
    """

    def __init__(self, particles: int = 1) -> None:
        if particles < 1:
            raise ValueError(f"TraceELBO: particles must be at least 1, but is {particles}.")
        self.particles = particles
        self._pyro = Trace_ELBO(num_particles=particles)

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any) -> Loss:
        value = surrogate = torch.zeros(())
        for model_trace, guide_trace in self._pyro._get_traces(model, guide, args, kwargs):
            log_ratio = None
            for site in model_trace.nodes.values():
                if site["type"] == "sample":
                    value = value - site["log_prob_sum"]
                    surrogate = surrogate - site["log_prob_sum"]
            for site in guide_trace.nodes.values():
                if site["type"] != "sample":
                    continue
                _, score, entropy = site["score_parts"]
                value = value + site["log_prob_sum"]
                if not is_identically_zero(entropy):
                    surrogate = surrogate + entropy.sum()
                if not is_identically_zero(score):
                    if log_ratio is None:
                        log_ratio = _compute_log_r(model_trace, guide_trace)
                    surrogate = surrogate - (log_ratio.sum_to(site["cond_indep_stack"]) * score).sum()
        return Loss(value / self.particles, surrogate / self.particles)
