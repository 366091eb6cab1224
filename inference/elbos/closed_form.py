"""ELBOs in closed form, and the best ELBO of a family."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, kl_divergence

from guides import Family
from models import Tractable
from models.gaussian import mean_and_covariance
from models.precision import widened

from ..programs.arguments import checked
from ..programs.isolation import param_store

__all__ = ["analytic_elbo", "analytic_terms", "best_elbo", "evidence_minus_kl", "kl"]


@checked
def analytic_elbo(model: Any, q: Distribution, x: Tensor) -> Tensor:
    """E_q[log p(x | h)] − KL(q ‖ p(h)) in closed form, in nats: reconstruction minus complexity.

    Args:
        model: a Tractable model.
        q: a Gaussian over h, such as ``guide.q(x)``; batch shape (N,) for a local model, () for a global one.
        x: the data, shape (N, *data_shape).

    Returns:
        Shape (N,) for a local model, () for a global one; float64. Differentiable in the parameters of q and of the model.

    Raises:
        TypeError: if the model is not Tractable, or q has no closed form with it.
    """
    reconstruction, complexity = analytic_terms(model, q, x)
    return reconstruction - complexity


def analytic_terms(model: Any, q: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """E_q[log p(x | h)] and KL(q ‖ p(h)), the two terms of `analytic_elbo`, each of its shape."""
    _require_tractable(model)
    return model.expected_log_likelihood(q, x), kl(widened(q), widened(_prior(model)))


@checked
def evidence_minus_kl(model: Any, q: Distribution, x: Tensor) -> Tensor:
    """log p(x) − KL(q ‖ p(h | x)) in closed form: the ELBO by a second route. Arguments and result as for `analytic_elbo`."""
    _require_tractable(model)
    evidence: Tensor = model.log_evidence(x)
    return evidence - kl(widened(q), widened(model.posterior(x)))


@checked
def best_elbo(model: Any, family: Family, x: Tensor) -> Tensor:
    r"""The highest ELBO that a Gaussian family can reach on a linear-Gaussian model, in closed form.

    The posterior is N(m, P⁻¹). The closest Gaussian with correlations only inside blocks is N(m, blockdiag(P_bb)⁻¹), with
    KL = ½ (Σ_b log det P_bb − log det P). So a mean field keeps the diagonal of the posterior's *precision*.

    Args:
        model: a Tractable model with a Gaussian posterior.
        family: MeanField, Blocks, FullRank, or LowRank of rank ≥ dim − 1 (the families with `Family.blocks`).
        x: the data.

    Returns:
        Shape (N,) for a local model, () for a global one.

    Raises:
        TypeError: if the model is not Tractable.
        ValueError: if the family has no closed-form optimum on this model.

    Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), section 10.1.2; Turner & Sahani (2011).
    """
    _require_tractable(model)
    _, covariance = mean_and_covariance(widened(model.posterior(x)))
    family = family.over(covariance.shape[-1])
    blocks = family.blocks()
    if blocks is None:
        raise ValueError(
            f"{type(family).__name__} has no closed-form optimum over R^{family.dim}: use MeanField, Blocks, FullRank, or "
            "LowRank of rank dim − 1."
        )
    precision = torch.linalg.inv(covariance)
    within = sum(torch.logdet(precision[..., block, :][..., block]) for block in blocks)
    evidence: Tensor = model.log_evidence(x)
    return evidence - 0.5 * (within - torch.logdet(precision))


@checked
def kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) in nats: torch's closed form if it has one, else that of two Gaussians with these means and covariances.

    It is infinite if q has mass where p has none.
    """
    if p.event_shape != q.event_shape:
        raise ValueError(f"q and p must be over one space, but are over {tuple(q.event_shape)} and {tuple(p.event_shape)}.")
    if p.batch_shape != q.batch_shape:
        p = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))  # torch's KL of Bernoullis does not broadcast
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return kl_divergence(*(MultivariateNormal(*mean_and_covariance(r)) for r in (q, p)))


def _prior(model: Any) -> Distribution:
    with param_store({"params": {}, "constraints": {}}), poutine.block(), _Undrawn():
        prior: Distribution = poutine.trace(model.prior).get_trace().nodes["h"]["fn"]
    return prior


class _Undrawn(Messenger):
    """Gives latents the value zero. A draw would move the random state, and become a part of a captured step."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True


def _require_tractable(model: Any) -> None:
    if not isinstance(model, Tractable):
        raise TypeError(
            f"{type(model).__name__} has no closed-form posterior, evidence and expected log likelihood (models.Tractable): "
            "use inference.elbo, which needs only draws."
        )
