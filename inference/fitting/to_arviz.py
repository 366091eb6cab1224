"""Converts a fit to ArviZ: to InferenceData on ArviZ 0.x, to a DataTree on ArviZ 1.x."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from ..programs.arguments import checked
from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.validation import as_args, check_count, check_data, check_pair
from .fit import Fit

__all__ = ["to_arviz"]


@checked
def to_arviz(fit: Fit, x: Tensor | tuple[Any, ...], *, draws: int = 1000, seed: int = 0) -> Any:
    """Draws from the fitted guide in ArviZ's groups, as one chain.

    Groups: posterior (each latent), posterior_predictive (each observed site, simulated), log_likelihood (pointwise),
    sample_stats (for PSIS: the joint ``log_p`` = log p(x, h) and ``log_q`` = log q(h | x) of each draw) and observed_data.

    Args:
        fit: a finished fit.
        x: the data, or a tuple of the model's arguments.
        draws: number of draws.
        seed: fixes the draws.

    Returns:
        `arviz.InferenceData` on ArviZ 0.x, `xarray.DataTree` on ArviZ 1.x; both have ``to_netcdf``.

    Raises:
        TypeError, ValueError: for bad input.
    """
    args = as_args(x)
    check_count(draws=draws)
    check_data(fit.model, args)
    with isolated(seed), torch.no_grad():
        check_pair(fit.model, fit.guide, args, {}, enumerated=True)
        found = draw_all(fit.model, fit.guide, args, draws=draws)
        nodes = poutine.trace(fit.model).get_trace(*args).nodes
        observed = {name: nodes[name]["value"] for name in found.pointwise}
        simulated = Predictive(poutine.uncondition(fit.model), posterior_samples=found.h, return_sites=list(observed))(*args)
    total = found.total
    groups = {
        name: {site: value.detach().cpu().unsqueeze(0).numpy() for site, value in values.items()}
        for name, values in {
            "posterior": found.h,
            "posterior_predictive": simulated,
            "log_likelihood": found.pointwise,
            "sample_stats": {"log_p": total.log_likelihood + total.log_prior, "log_q": total.log_q},
        }.items()
    }
    groups["observed_data"] = {name: value.detach().cpu().numpy() for name, value in observed.items()}
    return _from_dict(groups)


def _from_dict(groups: dict[str, dict[str, Any]]) -> Any:
    """Calls `arviz.from_dict`, which takes the groups as keywords in ArviZ 0.x and as one mapping in ArviZ 1.x."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "\\s*ArviZ is undergoing a major refactor", FutureWarning)
        from_dict: Any = import_module("arviz").from_dict
    return from_dict(groups) if int(version("arviz").split(".")[0]) >= 1 else from_dict(**groups)
