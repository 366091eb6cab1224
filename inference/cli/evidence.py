"""`taut evidence`: bound log p(x) by the ELBO, importance weighting and annealing of one fitted guide."""

from __future__ import annotations

from math import isnan
from typing import Annotated

import typer

from ..comparison.truth import known_evidence
from ..elbos.estimate import elbo
from ..evidence import ais, iwae
from ..evidence.blocks import first_rows
from ..programs.isolation import isolated
from . import names, options
from .main import app, console, reporting_errors
from .output import plain_table, plus_minus
from .pairs import fit_pair

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

    Without --stop, the fit takes 2000 steps from a learning rate of 0.01. --rows limits the data to the first rows if the
    data are independent of one another, given the model's parameters; data that share a latent are taken all together.

    Example:

        taut evidence --model VAE --data "digits(binarised=True)" --batch-size 100 --temperatures 100
    """
    method = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, objective=objective, optimiser=optimiser
    )
    title, instance, x = names.problem(model, data)
    factory = names.parse_guide(guide)
    fitted = fit_pair(instance, factory, x, seed=seed, batch_size=batch_size, progress=console.is_terminal, **method)
    with isolated(seed):
        q, some = first_rows(fitted.model, fitted.guide, x, rows)
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
    if not isnan(exact := known_evidence(fitted.model, some)):
        table.add_row("exact", f"{exact / n:.4f}", "–", "–")
    console.print(table)
