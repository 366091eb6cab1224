"""Pareto-smoothed importance sampling and leave-one-out densities, by ArviZ 0.x or 1.x."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from ..programs.arguments import checked

__all__ = ["MAX_KHAT", "MAX_KHAT_OF_FINITE_VARIANCE", "leave_one_out_density", "psis"]

MAX_KHAT = 0.7
"""Smoothed estimates are reliable up to this k̂."""
MAX_KHAT_OF_FINITE_VARIANCE = 0.5
"""Weights have finite variance below this k̂."""
MAX_CONSTANT_RANGE = 1e-3
"""Log weights within this range count as equal: q is proportional to the posterior wherever it draws, and the index of the
tail is meaningless."""
MIN_TIES = 10
"""Draws that share the largest weight if weights are bounded: few distinct weights, as of a discrete latent, are no tail."""
MAX_TIE_RANGE = 1e-9
"""Log weights within this range are the same one."""


@checked
def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smooths the largest weights and estimates the index of their tail, k̂.

    Args:
        log_weights: log p(x, h) − log q(h) of K draws, shape (K, *batch).

    Returns:
        The normalised smoothed log weights, shape (K, *batch), and Pareto's k̂, shape batch. Weights have finite variance
        below ½. Smoothed estimates are reliable up to 0.7 and unreliable above. −inf if all weights are equal, or if at
        least ten draws share the largest weight: then there is no tail.

    Reference: Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance sampling" (2024).
    """
    if log_weights.dim() == 0 or len(log_weights) < 2:
        raise ValueError(f"psis: log_weights needs at least two draws, but has shape {tuple(log_weights.shape)}.")
    if bool((log_weights.isnan() | (log_weights == torch.inf)).any()) or not bool((log_weights > -torch.inf).any(0).all()):
        raise ValueError("psis: log_weights must be numbers or −inf, and finite for at least one draw of each column.")
    columns = log_weights.detach().double().flatten(1) if log_weights.dim() > 1 else log_weights.detach().double().unsqueeze(1)
    centred = columns - columns.max(0).values
    constant = -centred.min(0).values <= MAX_CONSTANT_RANGE
    smoothed, khat = centred - centred.logsumexp(0), torch.full_like(centred[0], -torch.inf)
    if not constant.all():
        found, index = _arviz(centred[:, ~constant].mT.numpy().copy())
        smoothed[:, ~constant] = torch.from_numpy(np.asarray(found)).mT
        khat[~constant] = torch.from_numpy(np.asarray(index, dtype=np.float64)).reshape(-1)
        bounded = (centred >= -MAX_TIE_RANGE).sum(0) >= MIN_TIES
        smoothed = torch.where(bounded, centred - centred.logsumexp(0), smoothed)
        khat[bounded] = -torch.inf
    return smoothed.reshape(log_weights.shape), khat.reshape(log_weights.shape[1:])


def leave_one_out_density(log_p: Tensor, log_q: Tensor, pointwise: Tensor) -> tuple[Tensor, Tensor]:
    """Log predictive density of each datum given the others, from draws of an approximate posterior.

    By `loo_approximate_posterior` on ArviZ ≥ 1, by the same formula through `psis` on ArviZ 0.x.

    Args:
        log_p: log p(x, h) of K draws, shape (K,).
        log_q: log q(h | x), shape (K,).
        pointwise: log p(x_i | h), shape (K, N).

    Returns:
        The densities in nats, and Pareto's k̂ of the weights behind each; both of shape (N,).
    """
    if _major() < 1:
        log_weights, khat = psis((log_p - log_q).unsqueeze(-1) - pointwise)
        return (log_weights + pointwise).logsumexp(0), khat
    stats, base = import_module("arviz_stats"), import_module("arviz_base")
    data = base.from_dict({"log_likelihood": {"x": pointwise.unsqueeze(0).numpy()}})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # ArviZ warns of a large k̂, which is returned here
        found = stats.loo_approximate_posterior(data, log_p.numpy(), log_q.numpy(), pointwise=True)
    return torch.from_numpy(found.elpd_i.values.copy()), torch.from_numpy(found.pareto_k.values.copy())


def _major() -> int:
    return int(version("arviz").split(".")[0])


def _arviz(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        if _major() >= 1:
            # psislw of ArviZ 1.x takes log likelihoods, the negatives of leave-one-out log weights.
            result = import_module("arviz_stats.base").array_stats.psislw(-log_weights, axis=-1)
        else:
            result = import_module("arviz").psislw(log_weights)
    return result[0], result[1]
