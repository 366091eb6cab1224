"""The commands of `taut`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getdoc
from math import isnan
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models import LocalModel

from ..comparison import Comparison, compare
from ..fitting.divergence import DivergedError
from ..fitting.fit import NonFiniteLossError
from . import names
from .method import PROCESSES, RATE, Jobs, Restarts, Start, Stop, method
from .output import check_folder, save_comparison

__all__ = ["app", "console", "explained"]

WIDTH_OF_A_FILE = 110

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
errors = Console(stderr=True)

DEFAULT_PROBLEMS = (("LocalGaussian", None), ("LinearRegression", "diabetes"), ("ProbabilisticPCA", "digits"))
LOCAL_GUIDES = (
    "Local(MeanField), Local(FullRank), Amortized(MeanField, Linear), Amortized(FullRank, Linear), "
    "Amortized(FullRank, MLP), AutoNormal"
)
GLOBAL_GUIDES = "Global(MeanField), Global(LowRank(2)), Global(FullRank), AutoNormal, AutoMultivariateNormal"
NUMBERS_STORED = 1_000_000


@app.callback()
def taut() -> None:
    """How tight is a variational bound?

    A **model** is p(x, h) = p(x|h) p(h), a **guide** q(h|x) approximates p(h|x), and

        log p(x) = ELBO + KL(q(h|x) ‖ p(h|x))

    so the gap log p(x) − ELBO says how wrong the guide is. `taut list` shows what there is, `taut compare` measures it.
    """


@app.command("list")
def list_names() -> None:
    """Shows the models, guides and data sets, by the names that the other commands take."""
    for title, known in (
        ("models: --model", names.MODELS),
        ("guides: --guides, as Source(Family) or Source(Family, Encoder)", names.SOURCES),
        ("families", names.FAMILIES),
        ("encoders, for Amortized", names.ENCODERS),
        ("data: --data", names.DATASETS),
        ("objectives: --objective, or --objectives to compare them", names.OBJECTIVES),
        ("optimisers: --optimiser, or --optimisers", {k: v for k, v in names.OPTIMISERS.items() if k in names.SOLVERS}),
        ("when a fit ends: --stop", names.RULES),
        ("where it starts: --start", names.STARTS),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in known.items():
            table.add_row(f"[bold]{name}[/bold]", _first_sentence(value))
        console.print(table, "")
    console.print(f"Pyro's autoguides: --guides, as they are\n{', '.join(names.AUTOGUIDES)}", highlight=False)


@app.command("compare")
def compare_guides(  # noqa: PLR0917
    model: Annotated[
        str | None, typer.Option(help="A model, as in `taut list`; by default the three built-in problems.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A data set, such as `digits(binarised=True)`; by default the model's own demonstration."),
    ] = None,
    guides: Annotated[
        str | None, typer.Option(help="Guides, such as `Local(MeanField), Amortized(LowRank(2), MLP((64,))), AutoNormal`.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds each guide is fitted with.")] = 2,
    objectives: Annotated[
        str | None, typer.Option(help="Objectives, a further axis of the table, such as `TraceELBO, StickingTheLanding(8)`.")
    ] = None,
    optimisers: Annotated[
        str | None, typer.Option(help="Optimisers, a further axis, such as `Adam, SGD(momentum=0.9), FixedDraws`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of each fit; 1500 without --stop.")] = None,
    lr: Annotated[float | None, typer.Option(help=RATE)] = None,
    stop: Stop = None,
    start: Start = None,
    restarts: Restarts = 1,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows in a minibatch; all by default.")] = None,
    draws: Annotated[int, typer.Option(min=2, help="Draws for each ELBO after its fit.")] = 1000,
    jobs: Jobs = PROCESSES,
    out: Annotated[Path, typer.Option(help="Folder for tables (CSV), pictures (PNG) and draws (NetCDF).")] = Path("results"),
    overwrite: Annotated[bool, typer.Option(help="Replace results that are already there.")] = False,
) -> None:
    """Compares guides: how far each one's ELBO stays below log p(x), and how much of that its family cannot help.

    Examples:

        taut compare

        taut compare --model FactorAnalysis --guides "Local(MeanField), Amortized(FullRank, Linear)" --out results/fa

        taut compare --model "ProbabilisticPCA(factors=4)" --data digits --batch-size 256 --steps 5000
    """
    with explained():
        if model is None and data is not None:
            raise names.UnknownNameError("--data is given without --model: say which model to fit to it.")
        chosen = DEFAULT_PROBLEMS if model is None else ((model, data),)
        problems = [names.problem(name, source) for name, source in chosen]
        factories = None if guides is None else names.parse_guides(guides)
        options = method(steps, lr, stop, start, restarts, (1500, 0.03))
        folders = [out / re.sub(r"[^0-9A-Za-z]+", "-", title).strip("-") for title, _, _ in problems]
        for folder in folders:
            check_folder(folder, overwrite=overwrite)
        for (title, instance, x), folder in zip(problems, folders, strict=True):
            default = LOCAL_GUIDES if isinstance(instance, LocalModel) else GLOBAL_GUIDES
            result = compare(
                instance,
                factories or names.parse_guides(default),
                x,
                objectives=None if objectives is None else names.parse_objectives(objectives),
                optimisers=None if optimisers is None else names.parse_optimisers(optimisers),
                batch_size=batch_size,
                seeds=seeds,
                draws=draws,
                jobs=jobs,
                progress=console.is_terminal,
                **options,
            )
            console.print(_table(title, result), "")
            draws = max(10, min(500, NUMBERS_STORED // x.numel()))
            save_comparison(result, x, folder, draws=draws, overwrite=overwrite)
        console.print(f"Tables, pictures and draws are in {', '.join(map(str, folders))}.", soft_wrap=True)


@contextmanager
def explained() -> Iterator[None]:
    """Bad input ends with its message and exit code 2, a failed fit with 1; neither with a traceback."""
    try:
        yield
    except (DivergedError, NonFiniteLossError, TypeError, ValueError, OSError) as error:
        errors.print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, FloatingPointError) else 2) from None


def _table(title: str, result: Comparison) -> Table:
    rows = result.to_frame().to_dict("records")
    fitted = [row for row in rows if row["seeds"]]
    evidence = {f"{row['evidence']:.3f}" for row in rows} - {"nan"}
    known = f", log p(x) = {evidence.pop()}" if len(evidence) == 1 else ""
    effort = f"{fitted[0]['seeds']} seeds × {fitted[0]['steps']} steps"
    table = Table(
        title=f"{escape(title)}\nN = {result.rows}{known}, {effort}; in nats",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("guide", overflow="fold", min_width=16)
    axes = [axis for axis in ("objective", "optimiser") if axis in rows[0]]
    for axis in axes:
        table.add_column(axis, overflow="fold")
    columns = ["ELBO ± SE", *(["log p(x)"] if evidence else []), "gap", "gap / N", "best gap", "seconds"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = {
            "ELBO ± SE": f"{row['elbo']:.3f} ± {row['elbo_se']:.3f}",
            "log p(x)": _number(row["evidence"], 3),
            "gap": _number(row["gap"], 3),
            "gap / N": _number(row["gap_per_datum"], 5),
            "best gap": _number(row["best_gap"], 3),
            "seconds": _number(row["seconds"], 1),
        }
        table.add_row(escape(row["guide"]), *(row[axis] or "–" for axis in axes), *(cells[column] for column in columns))
    return table


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{value:.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)


def _first_sentence(value: Any) -> str:
    return re.split(r"(?<=[.:])\s", " ".join((getdoc(value) or "").split()), maxsplit=1)[0].rstrip(":")
