"""A start at the value of a Pyro init function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..programs.arguments import check_fields
from .base import Start

__all__ = ["FromInit"]


@dataclass(frozen=True)
class FromInit(Start):
    """Starts at the point that a Pyro init function returns, by default a draw of the prior.

    Args:
        function: maps a site of the model to its initial value, such as ``pyro.infer.autoguide.init_to_median``,
            ``init_to_uniform``, ``init_to_feasible`` or ``init_to_value(values=...)``.
    """

    function: Callable[[Any], Any] = init_to_sample

    def __post_init__(self) -> None:
        check_fields(self)

    def draw(self, model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
        with torch.no_grad(), poutine.block(), InitMessenger(self.function):
            trace = prune_subsample_sites(poutine.trace(model).get_trace(*args))
        return {
            name: site["value"].detach().unsqueeze(0)
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
