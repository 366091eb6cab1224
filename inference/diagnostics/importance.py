"""Importance weights of a guide's draws, and moments and evidence corrected by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evidence.psis import psis
from ..programs.arguments import checked
from ..programs.draws import draw_all
from ..programs.free_coordinates import free_scalars
from ..programs.isolation import isolated
from ..programs.quantities import Scalars
from ..programs.validation import as_args, check_count, check_data, check_pair
from .propriety import improper_latents

__all__ = ["Importance", "ImportanceEvidence", "Moments", "importance"]

MIN_DRAWS = 100
MIN_SHARE_OF_TAIL = 0.1
"""Share of a sum that its largest terms, one in 500, must hold for their k̂ to count."""


class Moments(NamedTuple):
    """Mean and standard deviation of each scalar, shape (D,)."""

    mean: Tensor
    sd: Tensor


class ImportanceEvidence(NamedTuple):
    """An estimate of log p(x) for all data together, in nats, and its standard error by the delta method."""

    value: float
    se: float


@dataclass(frozen=True)
class Importance:
    """K draws from a guide with their weights p(x, h) / q(h | x)."""

    scalars: Scalars
    """The quantities of interest at each draw."""
    h: dict[str, Tensor] = field(repr=False)
    """Each latent, shape (K, *shape)."""
    log_weights: Tensor = field(repr=False)
    """log p(x, h) − log q(h | x), shape (K,)."""
    log_weights_per_datum: Tensor | None = field(repr=False)
    """The same for each datum, shape (K, N), if every latent is local."""
    smoothed: Tensor = field(repr=False)
    """Normalised Pareto-smoothed log weights: (K,), or (K, N) if every latent is local."""
    khat: float
    """Pareto k̂ of the joint weights. It grows with the number of data, even if every datum's q is equally good."""
    khat_per_datum: Tensor | None
    """Pareto k̂ of each datum's own weights, shape (N,), if every latent is local."""
    proper: bool
    """Whether the model's prior is proper."""

    @property
    def worst(self) -> float:
        """The k̂ that decides on the corrected moments: the largest over the data if every latent is local, else `khat`."""
        return self.khat if self.khat_per_datum is None else float(self.khat_per_datum.max())

    @property
    def ess(self) -> float:
        """Effective number of draws: 1 / Σ w² for smoothed weights w; the smallest over the data if every latent is local."""
        return float((-(2 * self.smoothed).logsumexp(0)).exp().min())

    @property
    def log_evidence(self) -> ImportanceEvidence:
        """log p(x) by importance sampling: biased low by about half the squared standard error.

        Raises:
            ValueError: if the model's prior is improper, so that the evidence does not exist.
        """
        if not self.proper:
            raise ValueError("this model has an improper prior, so its evidence does not exist: compare moments instead.")
        log_weights = self.log_weights.unsqueeze(-1) if self.log_weights_per_datum is None else self.log_weights_per_datum
        centre = log_weights.max(0).values
        weights = (log_weights - centre).exp()
        mean = weights.mean(0)
        se = weights.std(0) / mean / len(log_weights) ** 0.5
        return ImportanceEvidence(float((mean.log() + centre).sum()), float(se.square().sum().sqrt()))

    def moments(self) -> Moments:
        """Mean and standard deviation under q."""
        return Moments(self.scalars.draws.mean(0), self.scalars.draws.std(0))

    def corrected(self) -> Moments:
        """Mean and standard deviation under the posterior, by the smoothed weights: reliable if k̂ < 0.7."""
        weights, draws = self.weights(), self.scalars.draws
        mean = (weights * draws).sum(0)
        return Moments(mean, (weights * (draws - mean) ** 2).sum(0).sqrt())

    def corrected_errors(self) -> Moments:
        """Standard errors of `corrected` by the delta method: of each mean, and of the logarithm of each sd."""
        weights, (mean, sd) = self.weights(), self.corrected()
        off = (self.scalars.draws - mean) / sd
        first, second = ((weights**2 * part**2).sum(0).sqrt() for part in (off, 0.5 * (off**2 - 1)))
        return Moments(sd * first, second)

    def moment_khat(self, power: int) -> tuple[float, str]:
        """The largest k̂ of the weighted |h − mean|^power over the scalars, and its scalar: above 1 it may have no mean."""
        weights = self.weights().log()
        off = (self.scalars.draws - self.corrected().mean).abs().clamp(min=1e-300).log()
        terms = weights + power * off
        khat = psis(terms)[1]
        # k̂ is the shape of a tail, without its size: one that holds little of the sum can do no harm.
        top = terms.topk(max(1, len(terms) // 500), 0).values.logsumexp(0) - terms.logsumexp(0)
        khat = khat.where(top.exp() > MIN_SHARE_OF_TAIL, -torch.inf)
        worst = int(khat.argmax())
        return float(khat[worst]), self.scalars.names[worst]

    def weights(self) -> Tensor:
        """Normalised weights of the draws of each scalar: shape (K, 1) or (K, D)."""
        weights = self.smoothed.exp()
        return weights.unsqueeze(-1) if weights.dim() == 1 else weights[:, list(self.scalars.datum)]


@checked
def importance(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor | tuple[Any, ...],
    *,
    draws: int = 4000,
    seed: int = 0,
) -> Importance:
    """Draws from a guide and weights the draws by the posterior.

    Args:
        model, guide: after a fit, its `model` and `guide`.
        x: the data, or a tuple of the model's arguments.
        draws: K, at least 100.
        seed: fixes the draws.

    Raises:
        TypeError, ValueError: for bad input; also for a point mass, which has no importance weights.

    References: Yao, Vehtari, Simpson & Gelman, "Yes, but did it work?: evaluating variational inference" (2018).
    """
    args = as_args(x)
    check_count(least=MIN_DRAWS, draws=draws)
    check_data(model, args)
    with isolated(seed), torch.no_grad():
        check_pair(model, guide, args, {}, enumerated=True)
        improper = improper_latents(model, guide, args)
        found = draw_all(model, guide, args, draws=draws)
    log_weights = (found.log_likelihood + found.log_prior - found.log_q).double()
    if not log_weights.isfinite().all():
        if bool((log_weights == -torch.inf).all()):
            raise ValueError(
                "importance: every weight is zero, because this guide is a point mass or lies outside the posterior; use "
                "another family."
            )
        log_weights = log_weights.nan_to_num(nan=-1e300, neginf=-1e300)
    smoothed, khat = psis(log_weights)
    local = found.per_datum
    joint = log_weights.sum(-1) if local else log_weights
    return Importance(
        scalars=free_scalars(model, args, found.h),
        h=found.h,
        log_weights=joint,
        log_weights_per_datum=log_weights if local else None,
        smoothed=smoothed,
        khat=float(psis(joint)[1]) if local else float(khat),
        khat_per_datum=khat if local else None,
        proper=not improper,
    )
