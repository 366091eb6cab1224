"""Exact values to compare an ELBO with: the evidence, and the best ELBO of a guide's family."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from guides import Family, FullRank, Guide, MeanField
from models import Tractable

from ..elbos.closed_form import best_elbo
from ..programs.bound import unwrap
from ..programs.validation import as_args

__all__ = ["best_known_elbo", "known_evidence"]


def known_evidence(model: Any, x: Any) -> float:
    """log p(x) of all data if the model can compute it, exactly or by quadrature, else NaN. Not only Tractable models can."""
    if not hasattr(model, "log_evidence"):
        return nan
    with torch.no_grad():
        return float(model.log_evidence(*as_args(x)).sum())


def best_known_elbo(model: Any, guide: Any, x: Any) -> float:
    """The best ELBO of the guide's family if it has a closed form, else NaN."""
    family = _family(unwrap(guide))
    if family is None or not isinstance(model, Tractable):
        return nan
    if isinstance(guide, Guide) and family.blocks() is None:
        return nan
    with torch.no_grad():
        try:
            return float(best_elbo(model, family, *as_args(x)).sum())
        except (TypeError, ValueError):
            return nan


def _family(guide: Any) -> Family | None:
    """The family of a guide; for some of Pyro's autoguides, this suite's name of the same family of Gaussians."""
    if isinstance(guide, Guide):
        return guide.family
    if isinstance(guide, (AutoNormal, AutoDiagonalNormal)):
        return MeanField()
    return FullRank() if isinstance(guide, AutoMultivariateNormal) else None
