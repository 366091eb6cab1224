"""A start in the middle of the posterior, for few gradients."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from .base import Target
from .gaussian_state import GaussianState
from .scores import Scores

__all__ = ["centred"]


def centred(target: Target, at: GaussianState) -> tuple[GaussianState, float]:
    """The same q around the mode of log p(x, h), as far as L-BFGS comes in some 2 dim + 1 scores; what −ELBO has to beat.

    That is −log p at q's mean less the entropy of q: by Jensen's inequality −ELBO of a log-concave posterior is no less at
    the start, so that with less than that the mode is the better start. A mode no more than dim / 2 nats above the start is
    not worth a move, for that is what draws of the posterior itself lie below it on average.
    """
    scores, root = Scores(target, 1), at.root
    here = at.loc

    def value(flat: Any) -> tuple[float, Any]:
        point = here + (root @ torch.from_numpy(flat.copy()).reshape(here.shape).unsqueeze(-1)).squeeze(-1)
        log_p, score = scores(point.unsqueeze(0))
        return -float(log_p.sum()), -(root.mT @ score[0].unsqueeze(-1)).squeeze(-1).numpy().ravel()

    start = np.zeros(here.numel())
    first = value(start)[0]
    found = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxfun": 2 * here.shape[-1] + 1})
    if not isfinite(found.fun) or first - found.fun < here.numel() / 2:
        return at, inf
    moved = here + (root @ torch.from_numpy(found.x).reshape(here.shape).unsqueeze(-1)).squeeze(-1)
    return at._replace(loc=moved), first - at.entropy
