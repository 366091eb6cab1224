"""Posterior means of a local guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guides import Guide

from .isolation import isolated
from .validation import naming

__all__ = ["posterior_means"]

DRAWS = 200
"""Their mean has a standard error of 7 % of the posterior standard deviation."""


def posterior_means(guide: Guide, x: Tensor, *, seed: int = 0) -> Tensor:
    """E_q[h_i | x_i] for each datum, shape (N, dim): in closed form, or from `DRAWS` draws of a family that has none."""
    with isolated(seed), torch.no_grad():
        guide.setup(x)
        with naming("guide", guide, (x,)):
            q: Any = guide.q(x)
        try:
            mean: Tensor = q.mean
        except NotImplementedError:
            mean = q.sample((DRAWS,)).mean(0)
    return mean
