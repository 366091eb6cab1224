"""Errors about a loss that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ..programs.traced_pairs import trace_pair
from .local_rows import LocalRows
from .minibatches import Batch

__all__ = ["NonFiniteLossError", "explain"]


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became NaN or infinite.

    Attributes:
        step: the step, from 0. Its update was not made.
        site: the first site whose log probability was not finite, or None if none was.
    """

    def __init__(self, step: int, site: str | None, detail: str) -> None:
        self.step = step
        self.site = site
        super().__init__(
            f"the fit stopped at step {step}: {detail}. The guide is as it was before this step; lower lr, or check the "
            "scale of that site."
        )
        self.detail = detail

    def __reduce__(self) -> Any:
        return type(self), (self.step, self.site, self.detail)


def explain(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: Batch,
    rows: LocalRows,
    *,
    step: int,
    loss: float,
    rng: Tensor,
) -> NonFiniteLossError:
    """Runs the step again with its own noise and names the first site whose log probability is not finite."""
    torch.set_rng_state(rng)
    try:
        with rows, torch.no_grad():
            guide_trace, model_trace = trace_pair(model, guide, batch.args, batch.kwargs)
    except LinAlgError as error:
        return NonFiniteLossError(step, None, f"a matrix could not be factorised ({error})")
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            log_prob = site["fn"].log_prob(site["value"])
            if isinstance(log_prob, Tensor) and not log_prob.isfinite().all():
                bad = log_prob[~log_prob.isfinite()][0].item()
                return NonFiniteLossError(step, name, f"the log probability of site {name!r} in the {role} is {bad}")
    what = f"the loss is {loss}" if not isfinite(loss) else "the gradient of the loss is not finite"
    return NonFiniteLossError(step, None, f"{what}, although the log probability of every site is finite")
