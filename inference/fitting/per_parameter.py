"""Pyro's optimisers as makers of torch optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["PerParameter", "as_maker"]


class PerParameter:
    """Makes a torch optimiser with the settings of one of Pyro's, which sets its own rate.

    Pyro has an optimiser for each parameter, with settings that may depend on the parameter's name. Here each set of settings
    is a group of parameters.

    Args:
        optimiser: one of `pyro.optim`.
    """

    def __init__(self, optimiser: PyroOptim) -> None:
        self.optimiser = optimiser

    def __call__(self, parameters: list[Tensor], lr: float) -> Optimizer:
        del lr
        groups: list[dict[str, Any]] = []
        for parameter in parameters:
            settings = self.settings(parameter)
            group = next((g for g in groups if {k: v for k, v in g.items() if k != "params"} == settings), None)
            if group is None:
                group = {"params": [], **settings}
                groups.append(group)
            group["params"].append(parameter)
        make: Any = self.optimiser.pt_optim_constructor
        made: Optimizer = make(groups, **{k: v for k, v in groups[0].items() if k != "params"})
        vars(made)["settings_of"] = self.settings
        return made

    def settings(self, parameter: Tensor) -> dict[str, Any]:
        """The settings for a parameter, which a step may meet for the first time.

        Raises:
            ValueError: if they depend on the parameter's name, and it has none.
        """
        if callable(self.optimiser.pt_optim_args) and pyro.get_param_store().param_name(parameter) is None:
            raise ValueError(
                "the settings of this pyro.optim optimiser depend on the names of parameters, but one has no name in Pyro's "
                "param store (a row of a Local guide, or pyro.settings.set(module_local_params=True)): give a dictionary."
            )
        return dict(self.optimiser._get_optim_args(parameter))


def as_maker(optimiser: Any, lr: float | None = None) -> Callable[..., Any]:
    """The optimiser as `fit` uses it: one of Pyro's becomes a `PerParameter`. `lr` is the rate that `fit` was given, if any.

    Raises:
        TypeError, ValueError: for one of Pyro's that does more than one torch optimiser does.
    """
    if not isinstance(optimiser, PyroOptim):
        return cast(Callable[..., Any], optimiser)
    if isinstance(optimiser, PyroLRScheduler):
        raise TypeError("a scheduler of pyro.optim is not stepped by fit: pass its optimiser, and schedule=... for the rate.")
    if optimiser.pt_clip_args:
        raise ValueError("clip_args are not carried out by fit: use pyro.optim.ClippedAdam, which clips by itself.")
    if lr is not None:
        raise ValueError("lr and an optimiser of pyro.optim, which holds its own lr, are both given: leave one out.")
    return PerParameter(optimiser)
