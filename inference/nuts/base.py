"""The contract of a sampler: draws from the unconstrained log joint of any Pyro model."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..programs.log_joint import LogJoint

__all__ = ["MAX_DENSE_DIM", "Chains", "Length", "Sampler", "package", "start"]

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


def package(name: str) -> Any:
    """The module of an optional package.

    Raises:
        ModuleNotFoundError: if it is not installed; the message says how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this sampler needs the package {error.name}: install taut with the extra bench, or use pyro_nuts."
        ) from None


def start(joint: LogJoint, chains: int) -> Tensor:
    """Starting points, uniform between −1 and 1 in unconstrained space, shape (chains, dim)."""
    return torch.empty(chains, joint.dim, dtype=joint.latents.dtype).uniform_(-1.0, 1.0)
