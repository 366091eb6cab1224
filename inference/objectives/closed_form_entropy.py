"""The ELBO with the entropy of q in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..programs.traced_pairs import Pair, is_point_mass, latents, require_reparameterised
from .pathwise import Pathwise

__all__ = ["ClosedFormEntropy"]


@dataclass(frozen=True)
class ClosedFormEntropy(Pathwise):
    """−E_q[log p(x, h)] from draws − H(q) in closed form.

    Estimates: −ELBO; lower is better. Value and gradient are unbiased. Neither vanishes at the exact posterior. Its gradient
    is TraceELBO's for a location-scale family, whose log density at its own draw does not depend on them; only the value
    differs. Harmful: near a tight bound its value is noisy where TraceELBO's is not.

    Where a guide transforms a draw to the support of a latent, the Jacobian's term is estimated from the draw.

    Args:
        draws: draws, averaged.

    Reference: Kucukelbir, Tran, Ranganath, Gelman & Blei, "Automatic differentiation variational inference" (2017), eq. 8.
    """

    def nelbo(self, pair: Pair) -> Tensor:
        require_reparameterised(pair, self)
        entropy = sum((self._entropy(name, site) for name, site in latents(pair.guide).items()), start=torch.zeros(()))
        log_p: Tensor = pair.model.log_prob_sum()
        return -log_p - entropy

    def _entropy(self, name: str, site: dict[str, Any]) -> Tensor:
        if is_point_mass(site["fn"]):
            return -site["log_prob_sum"]
        try:
            entropy = site["fn"].entropy()
        except NotImplementedError:
            raise ValueError(
                f"ClosedFormEntropy: the entropy of {type(site['fn']).__name__} at the site {name!r} has no closed form: use "
                "StickingTheLanding or TraceELBO."
            ) from None
        total: Tensor = scale_and_mask(entropy, site["scale"], site["mask"]).sum()
        return total
