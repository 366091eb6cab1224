"""`taut compare`: how far below log p(x) the ELBO of each guide stays."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from models import LocalModel, Model

from ..comparison import Comparison, compare
from . import names, options
from .main import app, console, reporting_errors
from .output import check_folder, file_stem, plain_table, plus_minus, save_comparison

__all__ = ["compare_guides"]

PROBLEMS = (("LocalGaussian", None), ("LinearRegression", "diabetes"), ("ProbabilisticPCA", "digits"))
LOCAL_GUIDES = (
    "Local(MeanField), Local(FullRank), Amortized(MeanField, Linear), Amortized(FullRank, Linear), "
    "Amortized(FullRank, MLP), AutoNormal"
)
GLOBAL_GUIDES = "Global(MeanField), Global(LowRank(2)), Global(FullRank), AutoNormal, AutoMultivariateNormal"
MAX_STORED_NUMBERS = 1_000_000
"""Bound on the draws stored for each guide times the numbers in x."""
MIN_GUIDE_WIDTH = 16
"""Characters in a line of a guide's name before it may be folded."""


@app.command("compare")
@reporting_errors()
def compare_guides(
    *,
    model: Annotated[str | None, typer.Option(help="Model to fit; by default three built-in problems.")] = None,
    data: options.Data = None,
    guides: options.Guides = None,
    objectives: options.Objectives = None,
    optimisers: options.Optimisers = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each guide, with seeds 0, 1, ….")] = 2,
    steps: options.Steps = None,
    lr: options.LearningRate = None,
    stop: options.Stop = None,
    start: options.Start = None,
    restarts: options.Restarts = 1,
    batch_size: options.BatchSize = None,
    draws: options.Draws = 1000,
    jobs: options.Jobs = options.PROCESSES,
    out: options.Out = Path("results"),
    overwrite: options.Overwrite = False,
) -> None:
    """Compares guides: how far each ELBO stays below log p(x), and how much of that gap the family cannot avoid.

    Writes tables (CSV), a plot (PNG) and draws of each guide (NetCDF). Without --stop, a fit takes 1500 steps from a
    learning rate of 0.03. By default the guides are mean-field and full-rank Gaussians from each source that suits the
    model, and Pyro's AutoNormal.

    Examples:

        taut compare

        taut compare --model FactorAnalysis --guides "Local(MeanField), Amortized(FullRank, Linear)" --out results/fa

        taut compare --model "ProbabilisticPCA(factors=4)" --data digits --batch-size 256 --steps 5000
    """
    problems = _problems(model, data)
    factories = None if guides is None else names.parse_guides(guides)
    chosen = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, default_steps=1500, default_lr=0.03
    )
    chosen |= {"batch_size": batch_size, "seeds": seeds, "draws": draws, "jobs": jobs}
    if objectives is not None:
        chosen["objectives"] = names.parse_objectives(objectives)
    if optimisers is not None:
        chosen["optimisers"] = names.parse_optimisers(optimisers)
    folders = [out / file_stem(title) for title, _, _ in problems]
    for folder in folders:
        check_folder(folder, overwrite=overwrite)
    for (title, instance, x), folder in zip(problems, folders, strict=True):
        default = LOCAL_GUIDES if isinstance(instance, LocalModel) else GLOBAL_GUIDES
        found = compare(instance, factories or names.parse_guides(default), x, progress=console.is_terminal, **chosen)
        console.print(_table(title, found), "")
        stored = max(10, min(500, MAX_STORED_NUMBERS // x.numel()))
        save_comparison(found, x, folder, draws=stored, overwrite=overwrite)
    console.print(f"Tables, plots and draws are in {', '.join(map(str, folders))}.", soft_wrap=True)


def _problems(model: str | None, data: str | None) -> list[tuple[str, Model, Tensor]]:
    if model is None and data is not None:
        raise names.UsageError("--data needs --model: name the model to fit to this data set.")
    return [names.problem(*chosen) for chosen in (PROBLEMS if model is None else ((model, data),))]


def _table(title: str, comparison: Comparison) -> Table:
    rows = comparison.to_frame().to_dict("records")
    fitted = [row for row in rows if row["seeds"]]
    evidence = {f"{row['evidence']:.3f}" for row in rows} - {"nan"}
    known = f", log p(x) = {evidence.pop()}" if len(evidence) == 1 else ""
    effort = f"{fitted[0]['seeds']} seeds × {fitted[0]['steps']} steps"
    axes = [axis for axis in ("objective", "optimiser") if axis in rows[0]]
    table = plain_table(
        f"{escape(title)}\nN = {comparison.rows}{known}, {effort}; in nats",
        *("guide", *axes, "ELBO ± SE", *(["log p(x)"] if evidence else []), "gap", "gap / N", "best gap", "seconds"),
        text=1 + len(axes),
    )
    table.columns[0].min_width = MIN_GUIDE_WIDTH
    for row in rows:
        cells = [plus_minus(row["elbo"], row["elbo_se"]), *([_number(row["evidence"], 3)] if evidence else [])]
        cells += [_number(row["gap"], 3), _number(row["gap_per_datum"], 5), _number(row["best_gap"], 3)]
        table.add_row(escape(row["guide"]), *(row[axis] or "–" for axis in axes), *cells, _number(row["seconds"], 1))
    return table


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{value:.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)
