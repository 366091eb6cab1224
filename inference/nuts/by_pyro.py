"""Pyro's NUTS."""

from __future__ import annotations

import warnings

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ..programs.arguments import checked
from ..programs.isolation import seed_all, without_validation
from ..programs.log_joint import LogJoint
from .base import MAX_DENSE_DIM, Chains, Length, start

__all__ = ["pyro_nuts"]


@checked
def pyro_nuts(joint: LogJoint, length: Length) -> Chains:
    """Pyro's NUTS, one chain after the other."""
    runs = []
    divergences = 0

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        return -joint.at(parameters["u"])

    for chain in range(length.chains):
        seed_all(length.seed + chain)
        first = {"u": start(joint, 1)[0]}
        full_mass = joint.dim <= MAX_DENSE_DIM
        kernel = NUTS(potential_fn=potential, target_accept_prob=length.target_accept, full_mass=full_mass)
        mcmc = MCMC(kernel, length.draws, length.warmup, initial_params=first, disable_progbar=not length.progress)
        with warnings.catch_warnings(), without_validation():
            warnings.simplefilter("ignore")
            mcmc.run()
        runs.append(mcmc.get_samples()["u"].double())
        divergences += sum(len(at) for at in mcmc.diagnostics()["divergences"].values())
    return Chains(torch.stack(runs), divergences)
