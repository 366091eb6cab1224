"""A point mass."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .base import PlainFamily

__all__ = ["Delta"]


class Delta(PlainFamily):
    """A point mass at λ. Its fit finds the maximum a posteriori h in unconstrained space.

    A point mass has no density: KL(q ‖ p(h)) is infinite and the ELBO −inf. The loss of a fit, −log p(x, h), is therefore not
    a bound on the evidence, and `inference.elbo` refuses this family.
    """

    def forward(self, lam: Tensor) -> dist.Delta:
        return dist.Delta(lam, event_dim=1)
