"""How a fit prints, and the table of its latents."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..programs.bound import unwrap
from ..programs.draws import draw_all
from ..programs.isolation import isolated
from ..programs.quantities import Scalars, quantities, scalars
from ..programs.text import html_table, number, table, with_error
from ..programs.validation import as_args, check_count

__all__ = ["fit_html", "fit_rows", "fit_summary", "fit_text"]

MAX_LOSSES = 100
"""Last losses whose mean is printed as the ELBO."""
COLOURS = {"use": "green", "use with importance correction": "orange", "do not use": "red"}


def fit_rows(fit: Any) -> list[list[str]]:
    """Guide, ELBO, convergence, route, time, and the next step."""
    stop = fit.stop
    far = f", about {number(float(stop.distance))} nats from the best λ" if isfinite(stop.distance) else ""
    state = f"{'yes' if stop.converged else 'no'}: {stop.reason or 'nothing said'}{far}"
    steps = "step" if fit.steps == 1 else "steps"
    rows = [
        ["guide", _name(fit.guide)],
        ["model", _name(fit.model)],
        ["ELBO", _elbo(fit)],
        ["converged", state],
        ["time", f"{fit.seconds:.1f} s, {fit.steps} {steps}, seed {fit.seed}"],
    ]
    if route := getattr(fit, "route", None):
        rows.insert(4, ["route", "; ".join(map(str, route)) if isinstance(route, (list, tuple)) else str(route)])
    after = "trust(fit, x) says which results may be used"
    rows.append(["next", after if stop.converged else f"fit longer (more steps, or stop=Converged()); then {after}"])
    return rows


def fit_text(fit: Any) -> str:
    """The rows as text."""
    return table(fit_rows(fit), title="Fit")


def fit_html(fit: Any) -> str:
    """The rows as HTML."""
    return html_table(fit_rows(fit), title="Fit")


def fit_summary(fit: Any, x: Tensor | tuple[Any, ...] | None, *, verdict: Any, draws: int, seed: int) -> pd.DataFrame:
    """One row for each scalar of q: mean, sd, quantiles, and the colours of a verdict on them.

    Args:
        fit: the fit.
        x: its data; may be None if there is a verdict, whose draws are used.
        verdict: from `trust`, or None.
        draws: number of draws from q.
        seed: fixes the draws.

    Raises:
        ValueError: if neither x nor a verdict is given.
    """
    check_count(least=2, draws=draws)
    found = _draws(fit, x, verdict, draws, seed)
    levels = (0.025, 0.5, 0.975)
    quantiles = torch.quantile(found.draws, torch.tensor(levels, dtype=found.draws.dtype), dim=0)
    frame = pd.DataFrame({"mean": found.draws.mean(0), "sd": found.draws.std(0)}, index=list(found.names))
    for level, values in zip(levels, quantiles, strict=True):
        frame[f"{100 * level:g}%"] = values.numpy()
    if verdict is not None:
        for quantity in ("means", "sds", "tails"):
            frame[f"{quantity} are"] = COLOURS[verdict[quantity].value]
    return frame


def _draws(fit: Any, x: Any, verdict: Any, draws: int, seed: int) -> Scalars:
    if verdict is not None:
        return verdict.weighted.scalars
    if x is None:
        raise ValueError("Fit.summary needs the data that the guide takes: give x, or verdict=trust(fit, x).")
    with isolated(seed), torch.no_grad():
        return scalars(quantities(fit.model, draw_all(fit.model, fit.guide, as_args(x), draws=draws).h))


def _elbo(fit: Any) -> str:
    """The mean of the last losses, which are noisy unless a solver computed them."""
    losses = fit.nelbo.detach().double()[-max(1, min(MAX_LOSSES, len(fit.nelbo) // 10)) :]
    if len(losses) < 2:
        return f"{number(-float(losses.mean()))} nats (the last loss)" if len(losses) else "–"
    found = with_error(-float(losses.mean()), float(losses.std() / len(losses) ** 0.5))
    return f"{found} nats (mean of the last {len(losses)} losses)"


def _name(program: Any) -> str:
    own = unwrap(program)
    family = getattr(own, "family", None)
    name = getattr(own, "__name__", type(own).__name__)
    return f"{name}({type(family).__name__})" if family is not None else str(name)
