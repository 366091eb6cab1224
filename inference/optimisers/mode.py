"""A start at the mode of the posterior, for few gradients."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .base import SolverTask
from .gaussian_guides import GaussianGuide
from .gaussian_state import GaussianState
from .scores import Scores

__all__ = ["centred"]


def centred(task: SolverTask, start: GaussianState, target: GaussianGuide | None = None) -> tuple[GaussianState, float]:
    """Moves the mean of q to the mode of log p(x, h), as far as L-BFGS gets in about 2 dim + 1 scores.

    q stays at the start if log p rises by no more than half a nat for each coordinate: draws of the posterior itself lie that
    far below the mode on average.

    Returns:
        q, and an upper limit of −ELBO there, in nats, above which the start is the better q: −log p at the start less the
        entropy of q. By Jensen's inequality −ELBO at the start is at least that if the posterior is log-concave. The limit is
        infinite if q was not moved.
    """
    scores, root = Scores(task, 1, target), start.root

    def point(noise: Any) -> Tensor:
        return start.loc + (root @ torch.from_numpy(noise.copy()).reshape(start.loc.shape).unsqueeze(-1)).squeeze(-1)

    def value(noise: Any) -> tuple[float, Any]:
        log_p, score = scores(point(noise).unsqueeze(0))
        return -float(log_p.sum()), -(root.mT @ score[0].unsqueeze(-1)).squeeze(-1).numpy().ravel()

    origin = np.zeros(start.loc.numel())
    first = value(origin)[0]
    found = minimize(value, origin, jac=True, method="L-BFGS-B", options={"maxfun": 2 * start.loc.shape[-1] + 1})
    if not isfinite(found.fun) or first - found.fun < start.loc.numel() / 2:
        return start, inf
    return start._replace(loc=point(found.x)), first - start.entropy
