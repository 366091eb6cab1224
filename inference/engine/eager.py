"""Steps by Pyro, with nothing captured."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

from pyro import poutine
from torch import Tensor

from ..objectives.base import as_loss
from .base import StepwiseEngine
from .minibatches import Batch

__all__ = ["Eager"]


class Eager(StepwiseEngine):
    """Runs guide and model under Pyro's handlers at each step. Works for every program; takes about a millisecond a step.

    Attributes:
        last_loss: the loss of the last step.
    """

    last_loss = nan

    def step(self, batch: Batch) -> float:
        problem = self.problem
        with problem.rows, poutine.trace(param_only=True) as used:
            if hasattr(problem.objective, "loss_and_grads"):
                found = problem.objective.loss_and_grads(problem.model, problem.guide, *batch.args, **batch.kwargs)
                # Reweighted wake-sleep has two losses: that of the model, an estimate of −log p(x), and that of the guide.
                loss = float(found[0] if isinstance(found, tuple) else found)
            else:
                value, surrogate = as_loss(problem.objective(problem.model, problem.guide, batch.args, batch.kwargs))
                if surrogate.requires_grad:
                    surrogate.backward()
                loss = float(value.detach())
        adopt(used.trace, problem.parameters, problem.rows.leaves)
        self.last_loss = loss
        return loss


def adopt(trace: poutine.Trace, parameters: list[Tensor], tables: Mapping[Tensor, Tensor]) -> None:
    """Adds the parameters that this trace met for the first time, except tables that are optimised row by row."""
    known = {id(parameter) for parameter in (*parameters, *tables)}
    for site in trace.nodes.values():
        if site["type"] != "param":
            continue
        # With pyro.settings.set(module_local_params=True), a net's parameter is itself the value.
        parameter = getattr(site["value"], "unconstrained", lambda value=site["value"]: value)()
        if parameter is not None and id(parameter) not in known and parameter.requires_grad:
            known.add(id(parameter))
            parameters.append(parameter)
