"""`taut evidence`: bound log p(x) by the ELBO, importance weighting and annealing of one fitted guide."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from models import Tractable

from ..elbos.estimate import elbo
from ..evidence import ais, iwae
from . import names, options
from .main import app, console, reporting_errors
from .output import plain_table, plus_minus
from .pairs import first_rows, fit_pair

__all__ = ["evidence_of_one"]


@app.command("evidence")
@reporting_errors()
def evidence_of_one(
    *,
    model: options.Model = "VAE",
    data: options.Data = None,
    guide: options.Guide = "Amortized(MeanField, MLP)",
    steps: options.Steps = None,
    lr: options.LearningRate = None,
    objective: options.Objective = None,
    optimiser: options.Optimiser = None,
    stop: options.Stop = None,
    start: options.Start = None,
    restarts: options.Restarts = 1,
    batch_size: options.BatchSize = None,
    draws: options.BoundDraws = 5000,
    temperatures: Annotated[
        int, typer.Option(min=0, help="Temperatures of annealed importance sampling; 0 leaves it out.")
    ] = 0,
    rows: options.Rows = 100,
    seed: options.Seed = 0,
) -> None:
    """Fits one guide and bounds log p(x) from below with it: by its ELBO, importance weighting and annealing.

    Without --stop, the fit takes 2000 steps from a learning rate of 0.01.

    Example:

        taut evidence --model VAE --data "digits(binarised=True)" --batch-size 100 --temperatures 100
    """
    method = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, objective=objective, optimiser=optimiser
    )
    title, instance, x = names.problem(model, data)
    factory = names.parse_guide(guide)
    fitted = fit_pair(instance, factory, x, seed=seed, batch_size=batch_size, progress=console.is_terminal, **method)
    q, some = first_rows(fitted, x, rows)
    bounds = {f"IWAE, {draws} draws": iwae(fitted.model, q, some, draws=draws, seed=seed)}
    if temperatures:
        bounds[f"AIS, {temperatures} temperatures"] = ais(fitted.model, q, some, temperatures=temperatures, seed=seed)
    loosest = elbo(fitted.model, q, some, draws=100, seed=seed)
    n = len(some)
    table = plain_table(
        f"{title}, {guide}\nlog p(x) of {n} of {len(x)} data, nats per datum", "by", "mean ± SE", "ESS", "worst k̂"
    )
    table.add_row("ELBO", plus_minus(loosest.value / n, loosest.se / n), "–", "–")
    for name, bound in bounds.items():
        ess, khat = f"{float(bound.ess.median()):.0f} of {bound.draws}", f"{float(bound.khat.max()):.2f}".replace("nan", "–")
        table.add_row(name, plus_minus(bound.value.sum() / n, bound.se.square().sum().sqrt() / n), ess, khat)
    if isinstance(instance, Tractable):
        with torch.no_grad():
            table.add_row("exact", f"{float(instance.log_evidence(some).sum()) / n:.4f}", "–", "–")
    console.print(table)
