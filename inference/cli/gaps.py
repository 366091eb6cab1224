"""`taut gaps`: split log p(x) − ELBO of several guides into its three causes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from joblib import Parallel, delayed
from torch import Tensor
from tqdm.auto import tqdm

from ..comparison import Gaps, gaps
from ..evidence.blocks import first_rows
from ..fitting.unseen import Ascent
from ..programs.isolation import isolated
from . import names, options
from .main import app, console, reporting_errors
from .output import check_folder, complete_folder, file_stem, plain_table, plus_minus
from .pairs import fit_pair

__all__ = ["gaps_of_many"]

GUIDES = ", ".join(
    f"{source}({family}{rest})"
    for source, rest in (("Local", ""), ("Amortized", ", MLP"), ("SemiAmortized", ", MLP, training=False"))
    for family in ("MeanField", "FullRank", "Flow")
)


@app.command("gaps")
@reporting_errors()
def gaps_of_many(
    *,
    model: options.Model = "VAE",
    data: options.Data = None,
    guides: options.Guides = None,
    steps: options.Steps = None,
    lr: options.LearningRate = None,
    objective: options.Objective = None,
    optimiser: options.Optimiser = None,
    stop: options.Stop = None,
    start: options.Start = None,
    restarts: options.Restarts = 1,
    batch_size: options.BatchSize = None,
    rows: options.Rows = 100,
    ascent_steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps to the best λ_i of each datum.")] = 1000,
    draws: options.Draws = 500,
    evidence_draws: options.BoundDraws = 2000,
    seed: options.Seed = 0,
    jobs: options.Jobs = options.PROCESSES,
    out: options.Out = Path("gaps"),
    overwrite: options.Overwrite = False,
) -> None:
    """Fits each guide and splits log p(x) − ELBO into its approximation, amortization and optimisation gap.

    Each guide is fitted to a copy of the model of its own. Writes a table (CSV) and a plot for each guide (PNG). Without
    --stop, a fit takes 1000 steps from a learning rate of 0.01. By default nine guides are fitted: Local, Amortized and
    SemiAmortized with MeanField, FullRank and Flow.

    A Local guide ignores --batch-size and takes all rows at each step. A minibatch step improves an encoder for all
    rows, but only its own rows of a table of λ_i; so each λ_i gets as many steps as the encoders. --rows limits the data to
    the first rows for guides under which the data are independent of one another; other guides are split on all the data.

    Example:

        taut gaps --data "digits(binarised=True)" --batch-size 128
    """
    method = options.fit_options(
        steps=steps, lr=lr, stop=stop, start=start, restarts=restarts, objective=objective, optimiser=optimiser,
        default_steps=1000,
    )  # fmt: skip
    check_folder(out, overwrite=overwrite)
    title, instance, x = names.problem(model, data)
    factories = names.parse_guides(guides or GUIDES)
    measure = {"draws": draws, "evidence_draws": evidence_draws, "ascent": Ascent(steps=ascent_steps, patience=5)}
    work = (
        delayed(_gaps)(instance, factory, x, rows, seed=seed, method={**method, "batch_size": batch_size}, measure=measure)
        for factory in factories.values()
    )
    done = Parallel(n_jobs=jobs, return_as="generator")(work)
    found = dict(zip(factories, tqdm(done, total=len(factories), disable=not console.is_terminal, unit="guide"), strict=True))
    _report(f"{title}\ngaps of some of {len(x)} data, nats per datum", found, out)


def _gaps(
    model: Any,
    factory: Callable[[Any], Any],
    x: Tensor,
    rows: int,
    *,
    seed: int,
    method: dict[str, Any],
    measure: dict[str, Any],
) -> tuple[Gaps, int]:
    """The gaps of one guide, and the number of data that they are of."""
    fitted = fit_pair(copy.deepcopy(model), factory, x, seed=seed, local_in_full=True, **method)
    with isolated(seed):
        guide, some = first_rows(fitted.model, fitted.guide, x, rows)
    return gaps(fitted.model, guide, some, seed=seed, **measure), len(some)


def _report(title: str, found: dict[str, tuple[Gaps, int]], out: Path) -> None:
    table = plain_table(title, "guide", "data", "log p(x)", "ELBO", "approximation", "amortization", "optimisation")
    records = []
    for name, (split, rows) in found.items():
        parts = {"log p(x)": split.evidence, "ELBO": split.elbo, **split.parts}
        # Data that are not independent have one number for all of them.
        share = 1 if split.evidence.value.dim() else rows
        means = {key: (part.mean / share, part.mean_se / share) for key, part in parts.items()}
        table.add_row(name, str(rows), *(plus_minus(*mean) for mean in means.values()))
        numbers = {f"{key}{end}": v for key, m in means.items() for end, v in zip(("", " se"), m, strict=True)}
        records.append({"guide": name, "data": rows, "log p(x) by": split.evidence_by, **numbers})
    console.print(table)
    with complete_folder(out) as folder:
        pd.DataFrame(records).to_csv(folder / "gaps.csv", index=False)
        for name, (split, _) in found.items():
            split.plot().savefig(folder / f"{file_stem(name)}.png", dpi=150)
    console.print(f"Table and plots are in {out}.", soft_wrap=True)
