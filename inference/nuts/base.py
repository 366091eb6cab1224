"""The contract of a sampler: draws from the unconstrained log joint of any Pyro model."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..programs.log_joint import LogJoint

__all__ = ["MAX_DENSE_DIM", "Chains", "Length", "Sampler", "start"]

MAX_DENSE_DIM = 50
"""Dimensions up to which a full mass matrix is adapted; above, only its diagonal."""


class Chains(NamedTuple):
    """The draws of a sampler."""

    u: Tensor
    """Shape (chains, draws, dim), float64."""
    divergences: int


class Length(NamedTuple):
    """Length and settings of a run."""

    chains: int
    draws: int
    """Draws of each chain."""
    warmup: int
    """Warmup steps of each chain."""
    target_accept: float
    seed: int
    progress: bool


class Sampler(Protocol):
    """Draws from the density of a `LogJoint`. Called inside `isolated`."""

    def __call__(self, joint: LogJoint, length: Length, /) -> Chains: ...


def start(joint: LogJoint, chains: int) -> Tensor:
    """Starting points, uniform between −1 and 1 in unconstrained space, shape (chains, dim)."""
    return torch.empty(chains, joint.dim, dtype=joint.latents.dtype).uniform_(-1.0, 1.0)
