"""`taut trust`: fit a guide, and judge whether it may be used."""

from __future__ import annotations

from math import isnan
from typing import Annotated

import typer

from ..diagnostics.trust import trust
from . import names, options
from .main import app, console, reporting_errors
from .output import plain_table
from .pairs import fit_pair

__all__ = ["trust_fit"]


@app.command("trust")
@reporting_errors()
def trust_fit(
    *,
    model: options.Model,
    guide: options.Guide,
    data: options.Data = None,
    steps: options.Steps = None,
    lr: options.LearningRate = None,
    objective: options.Objective = None,
    optimiser: options.Optimiser = None,
    stop: options.Stop = None,
    start: options.Start = None,
    restarts: options.Restarts = 1,
    draws: Annotated[int, typer.Option(min=500, help="Draws of the guide to weight by the posterior.")] = 10_000,
    seed: options.Seed = 0,
) -> None:
    """Fits a guide and judges its means, standard deviations, tails and ELBO: use, correct, or do not use, and what next.

    Without --stop, the fit takes 2000 steps from a learning rate of 0.03.

    Example:

        taut trust --model EightSchools --guide "Structured(MeanField)"
    """
    method = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, objective=objective, optimiser=optimiser,
        default_lr=0.03,
    )  # fmt: skip
    title, instance, x = names.problem(model, data)
    fitted = fit_pair(instance, names.parse_guide(guide), x, seed=seed, progress=console.is_terminal, **method)
    verdict = trust(fitted, x, draws=draws, seed=seed)
    columns = ("quantity", "decision", "evidence", "next step")
    quality = f"Pareto k̂ = {verdict.khat:.2f}, {_count(verdict.ess)} effective draws"
    table = plain_table(f"{title}: {guide}\n{quality}", *columns, text=len(columns), show_lines=True)
    for row in verdict.to_frame().to_dict("records"):
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)


def _count(value: float) -> str:
    return "no" if isnan(value) else f"{value:.0f}"
