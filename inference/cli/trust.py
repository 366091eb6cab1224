"""`taut trust`: fit a guide, and say whether it may be used."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..diagnostics.trust import trust
from ..diagnostics.verdict import Verdict
from ..fitting.fit import fit
from . import names
from .main import app, console, explained
from .method import RATE, Objective, Optimiser, Restarts, Start, Stop, method

__all__ = ["trust_fit"]


@app.command("trust")
def trust_fit(  # noqa: PLR0917
    model: Annotated[str, typer.Option(help="A model, as in `taut list`.")],
    guide: Annotated[str, typer.Option(help="One guide, such as `Global(FullRank)` or `AutoNormal`.")],
    data: Annotated[
        str | None, typer.Option(help="A data set, such as `diabetes`; by default the model's own demonstration.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; 2000, unless --stop is given.")] = None,
    lr: Annotated[float | None, typer.Option(help=RATE)] = None,
    objective: Objective = None,
    optimiser: Optimiser = None,
    stop: Stop = None,
    start: Start = None,
    restarts: Restarts = 1,
    draws: Annotated[int, typer.Option(min=500, help="Draws that are weighed by the posterior.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the fit and the draws.")] = 0,
) -> None:
    """Fits a guide and says whether its means, standard deviations, tails and ELBO may be used, and what to do if not.

    Example:

        taut trust --model EightSchools --guide "Structured(MeanField)"
    """
    with explained():
        title, instance, x = names.problem(model, data)
        factories = names.parse_guides(guide)
        if len(factories) != 1:
            raise names.UnknownNameError(f"--guide takes one guide, but {guide!r} has {len(factories)}.")
        (factory,) = factories.values()
        how = method(steps, lr, stop, start, restarts, (2000, 0.03), objective, optimiser)
        done = fit(instance, factory(instance), x, **how, seed=seed, progress=console.is_terminal)
        console.print(_table(f"{title}: {guide}", trust(done, x, draws=draws, seed=seed)))


def _table(title: str, verdict: Verdict) -> Table:
    table = Table(
        title=f"{title}\nPareto k̂ = {verdict.khat:.2f}, {verdict.ess:.0f} effective draws",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_lines=True,
    )
    for column in ("quantity", "decision", "evidence", "next step"):
        table.add_column(column, overflow="fold")
    for row in verdict.to_frame().to_dict("records"):
        table.add_row(*(str(value) for value in row.values()))
    return table
