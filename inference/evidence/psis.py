"""Pareto-smoothed importance sampling and leave-one-out, by whichever ArviZ is installed."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

__all__ = ["leave_one_out", "psis"]

CONSTANT = 1e-3
"""Log weights that differ by no more than this count as equal: wherever q draws, it is the posterior up to a factor. Their
tail may have any index, and means nothing."""


def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Smooths the largest weights and says how heavy their tail is.

    Args:
        log_weights: log p(x, h) − log q(h) of K draws, shape (K, *batch).

    Returns:
        The normalised smoothed log weights, shape (K, *batch), and Pareto's k̂, shape batch. Weights have finite variance
        below ½; up to 0.7 smoothed estimates are dependable, above they are not. −inf where all weights are equal.

    Reference: Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance sampling" (2024).
    """
    columns = log_weights.detach().double().flatten(1) if log_weights.dim() > 1 else log_weights.detach().double().unsqueeze(1)
    centred = columns - columns.max(0).values
    flat = -centred.min(0).values <= CONSTANT
    lw, k = centred - centred.logsumexp(0), torch.full_like(centred[0], -torch.inf)
    if not flat.all():
        smoothed, khat = _arviz(centred[:, ~flat].mT.numpy().copy())
        lw[:, ~flat] = torch.from_numpy(np.asarray(smoothed)).mT
        k[~flat] = torch.from_numpy(np.asarray(khat, dtype=np.float64)).reshape(-1)
    return lw.reshape(log_weights.shape), k.reshape(log_weights.shape[1:])


def leave_one_out(log_p: Tensor, log_q: Tensor, pointwise: Tensor) -> tuple[Tensor, Tensor]:
    """Log predictive density of each datum given the others, by draws from an approximate posterior.

    ArviZ's `loo_approximate_posterior` where there is one (ArviZ ≥ 1), else the same by `psis`.

    Args:
        log_p: log p(x, h) of K draws, shape (K,).
        log_q: log q(h | x), shape (K,).
        pointwise: log p(x_i | h), shape (K, N).

    Returns:
        The densities, and Pareto's k̂ of the weights that they rest on; both of shape (N,).
    """
    if _major() < 1:
        log_weights, khat = psis((log_p - log_q).unsqueeze(-1) - pointwise)
        return (log_weights + pointwise).logsumexp(0), khat
    stats, base = import_module("arviz_stats"), import_module("arviz_base")
    data = base.from_dict({"log_likelihood": {"x": pointwise.unsqueeze(0).numpy()}})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # that a k̂ is large, which we return
        found = stats.loo_approximate_posterior(data, log_p.numpy(), log_q.numpy(), pointwise=True)
    return torch.from_numpy(found.elpd_i.values.copy()), torch.from_numpy(found.pareto_k.values.copy())


def _major() -> int:
    return int(version("arviz").split(".")[0])


def _arviz(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        if _major() >= 1:
            # It takes log likelihoods, whose leave-one-out weights are their inverse.
            result = import_module("arviz_stats.base").array_stats.psislw(-log_weights, axis=-1)
        else:
            result = import_module("arviz").psislw(log_weights)
    return result[0], result[1]
