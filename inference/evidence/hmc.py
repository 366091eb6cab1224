"""One Hamiltonian transition for many chains at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["transition"]

State = TypeVar("State", bound=tuple[Any, ...])
"""A named tuple of tensors with the chains as leading dimensions; its first field is the position, shape (*chains, dim)."""


def transition(
    state: State,
    *,
    evaluate: Callable[[Tensor], State],
    density: Callable[[State], Tensor],
    slope: Callable[[State], Tensor],
    size: Tensor,
    leapfrog: int,
) -> tuple[State, Tensor]:
    """Proposes the end of one trajectory for every chain, and accepts or rejects each proposal.

    Args:
        state: the present state of the chains.
        evaluate: computes the state at a position.
        density, slope: the invariant log density, shape (*chains), and its gradient, at a state.
        size: step size, of shape (*chains) or broadcastable to it; it must not depend on the state.
        leapfrog: steps of the trajectory, one evaluation each.

    Returns:
        The new state, and each chain's acceptance probability, zero if the log density is NaN.

    Reference: Neal, "MCMC using Hamiltonian dynamics" (2011), section 3.
    """

    def energy(at: State, momentum: Tensor) -> Tensor:
        return density(at) - 0.5 * momentum.square().sum(-1)

    step = size.unsqueeze(-1)
    momentum = torch.randn_like(state[0])
    here = energy(state, momentum)
    end = state
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * step * slope(end)
        end = evaluate(end[0] + step * momentum)
        momentum = momentum + 0.5 * step * slope(end)
    probability = (energy(end, momentum) - here).clamp(max=0.0).exp().nan_to_num(nan=0.0)
    accept = torch.rand_like(probability) < probability
    chosen = (
        torch.where(accept.unsqueeze(-1) if new.dim() > accept.dim() else accept, new, old)
        for new, old in zip(end, state, strict=True)
    )
    return type(state)(*chosen), probability
