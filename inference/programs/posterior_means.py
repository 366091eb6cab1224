"""Posterior means of a local guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guides import Guide

from .isolation import isolated

__all__ = ["posterior_means"]


def posterior_means(guide: Guide, x: Tensor, *, seed: int = 0) -> Tensor:
    """E_q[h_i | x_i] for each datum, shape (N, k); from 200 draws if the family has no closed form."""
    with isolated(seed), torch.no_grad():
        guide.setup(x)
        q: Any = guide.q(x)
        try:
            mean: Tensor = q.mean
        except NotImplementedError:
            mean = q.sample((200,)).mean(0)
    return mean
