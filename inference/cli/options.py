"""The options that commands share, each defined once, and the arguments of `fit` that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from joblib import cpu_count

from . import names

__all__ = [
    "PROCESSES",
    "BatchSize",
    "BoundDraws",
    "Data",
    "Draws",
    "Guide",
    "Guides",
    "Jobs",
    "LearningRate",
    "Model",
    "Objective",
    "Objectives",
    "Optimiser",
    "Optimisers",
    "Out",
    "Overwrite",
    "Restarts",
    "Rows",
    "Seed",
    "Start",
    "Steps",
    "Stop",
    "fit_options",
]

PROCESSES: int = cpu_count()

Model = Annotated[str, typer.Option(help="Model to fit; `taut list` shows the names.")]
Data = Annotated[
    str | None, typer.Option(help="Data set, such as `digits(binarised=True)`. By default the model's demonstration data.")
]
Guide = Annotated[str, typer.Option(help="Guide, such as `Amortized(MeanField, MLP((64,)))` or `AutoNormal`.")]
Guides = Annotated[
    str | None,
    typer.Option(help="Guides, such as `Local(MeanField), Amortized(LowRank(2), MLP((64,)))`. Default: see above."),
]
Objective = Annotated[
    str | None, typer.Option(help="Objective, such as `StickingTheLanding(8)` or `IWAE(5)`. By default the ELBO.")
]
Optimiser = Annotated[
    str | None, typer.Option(help="Optimiser, such as `SGD(momentum=0.9)` or `FixedDraws`. By default Adam.")
]
Objectives = Annotated[
    str | None, typer.Option(help="Objectives to compare as well, such as `TraceELBO, StickingTheLanding(8)`.")
]
Optimisers = Annotated[
    str | None, typer.Option(help="Optimisers to compare as well, such as `Adam, SGD(momentum=0.9), FixedDraws`.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps in each fit; with --stop, at most this many.")]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Learning rate at the first step; it falls to zero along a cosine. `Converged` finds its own."),
]
Stop = Annotated[str | None, typer.Option(help="Stopping rules in place of --steps, such as `Converged, MaxSeconds(60)`.")]
Start = Annotated[
    str | None, typer.Option(help="Initial values of the guide: `FromInit` (one draw of the prior) or `FromPrior`.")
]
Restarts = Annotated[int, typer.Option(min=1, help="Number of starts to try; the fit goes on from the best.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows in a minibatch. By default all rows.")]
Draws = Annotated[int, typer.Option(min=2, help="Draws in each estimate of the ELBO.")]
BoundDraws = Annotated[int, typer.Option(min=1, help="Draws in the importance-weighted bound on log p(x).")]
Rows = Annotated[int, typer.Option(min=1, help="Number of data to evaluate, from the first.")]
Seed = Annotated[int, typer.Option(help="Random seed of initial values, minibatches and draws.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes to run the fits in.")]
Out = Annotated[Path, typer.Option(help="Folder to write the results to.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the results in that folder.")]


def fit_options(
    *,
    steps: int | None,
    lr: float | None,
    stop: str | None,
    start: str | None,
    restarts: int,
    objective: str | None = None,
    optimiser: str | None = None,
    default_steps: int = 2000,
    default_lr: float = 0.01,
) -> dict[str, Any]:
    """Keyword arguments for `fit`. The defaults of steps and learning rate are for a fit without stopping rules."""
    chosen: dict[str, Any] = {"restarts": restarts}
    if stop is None:
        chosen |= {"steps": default_steps if steps is None else steps, "lr": default_lr if lr is None else lr}
    else:
        chosen |= {"steps": steps, "lr": lr, "stop": names.parse_rules(stop)}
    if start is not None:
        chosen["start"] = names.parse_start(start)
    if objective is not None:
        chosen["objective"] = names.only(names.parse_objectives(objective), "--objective")
    if optimiser is not None:
        chosen["optimiser"] = names.only(names.parse_optimisers(optimiser), "--optimiser")
    return chosen
