"""The commands of `taut` that fit one pair and look at it: fit, evidence, gaps."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from joblib import Parallel, delayed
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from guides import Amortized, Guide, Local
from models import VAE, Tractable

from ..comparison.gaps import Gaps, gaps
from ..diagnostics.latent_pictures import active_units_picture, manifold, prior_samples, reconstructions, traversals
from ..elbos.estimate import elbo
from ..evidence import ais, iwae
from ..evidence.blocks import with_table
from ..fitting.fit import Fit, fit
from ..fitting.unseen import Ascent
from ..programs.bound import unwrap
from ..programs.isolation import isolated
from . import names
from .main import app, console, explained
from .method import PROCESSES, RATE, Jobs, Method, Objective, Optimiser, Restarts, Start, Stop, method
from .output import check_folder, written_whole

__all__ = ["evidence_of_one", "fit_one", "gaps_of_many"]

ENCODED = "MeanField, FullRank, Flow"
VAE_GUIDES = ", ".join(
    f"{source}({family}{extra})"
    for source, extra in (("Local", ""), ("Amortized", ", MLP"), ("SemiAmortized", ", MLP, training=False"))
    for family in ENCODED.split(", ")
)

Model = Annotated[str, typer.Option(help="A model, as in `taut list`.")]
Data = Annotated[str | None, typer.Option(help="A data set, such as `digits(binarised=True)`; by default the model's own.")]
OneGuide = Annotated[str, typer.Option(help="A guide, such as `Amortized(MeanField, MLP((64,)))`.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a fit, unless --stop is given.")]
Rate = Annotated[float | None, typer.Option(help=RATE)]
Batch = Annotated[int | None, typer.Option(min=1, help="Rows in a minibatch; all by default.")]
BatchOfEncoders = Annotated[
    int | None, typer.Option(min=1, help="Rows in a minibatch; all by default, and always for a guide with a λ for each row.")
]
Draws = Annotated[int, typer.Option(min=2, help="Draws for each ELBO after a fit.")]
Seed = Annotated[int, typer.Option(help="Fixes initial values, batches and noise.")]
Overwrite = Annotated[bool, typer.Option(help="Replace results that are already there.")]


@app.command("fit")
def fit_one(  # noqa: PLR0917
    model: Model = "VAE",
    data: Data = None,
    guide: OneGuide = "Amortized(MeanField, MLP)",
    steps: Steps = None,
    lr: Rate = None,
    objective: Objective = None,
    optimiser: Optimiser = None,
    stop: Stop = None,
    start: Start = None,
    restarts: Restarts = 1,
    batch_size: Batch = None,
    draws: Draws = 100,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for weights, the curve of the loss, and a VAE's pictures.")] = Path("fit"),
    overwrite: Overwrite = False,
) -> None:
    """Fits one guide, and the model's own parameters with it, and says what its ELBO is made of.

    Example:

        taut fit --model VAE --data "digits(binarised=True)" --guide "Amortized(MeanField, MLP((200,)))" --batch-size 100
    """
    with explained():
        how = method(steps, lr, stop, start, restarts, (2000, 0.01), objective, optimiser)
        check_folder(out, overwrite=overwrite)
        title, instance, x = names.problem(model, data)
        done = _fitted(instance, _only(guide), x, how, batch_size=batch_size, seed=seed, progress=console.is_terminal)
        found = elbo(done.model, done.guide, x, draws=draws, seed=seed).total
        effort = f"{done.steps} steps, {done.seconds:.1f} s"
        table = _table(f"{title}, {guide}\nN = {len(x)}, {effort}; nats per datum", "quantity", "")
        for name in ("elbo", "reconstruction", "complexity"):
            table.add_row(name, _pm(getattr(found, name) / len(x), getattr(found, f"{name}_se") / len(x)))
        if isinstance(instance, Tractable):
            with torch.no_grad():
                table.add_row("log p(x), exact", f"{float(instance.log_evidence(x).sum()) / len(x):.4f}")
        console.print(table)
        console.print(f"Ended because: {done.stop.reason}.", soft_wrap=True)
        with written_whole(out) as part:
            torch.save(instance.state_dict(), part / "model.pt")
            if isinstance(done.guide, torch.nn.Module):
                torch.save(done.guide.state_dict(), part / "guide.pt")
            pd.DataFrame({"nelbo": done.nelbo.numpy()}).to_csv(part / "nelbo.csv", index_label="step")
            _pictures(instance, done.guide, x, part)
        console.print(f"Weights and pictures are in {out}.", soft_wrap=True)


@app.command("evidence")
def evidence_of_one(  # noqa: PLR0917
    model: Model = "VAE",
    data: Data = None,
    guide: OneGuide = "Amortized(MeanField, MLP)",
    steps: Steps = None,
    lr: Rate = None,
    objective: Objective = None,
    optimiser: Optimiser = None,
    stop: Stop = None,
    start: Start = None,
    restarts: Restarts = 1,
    batch_size: Batch = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the importance-weighted bound.")] = 5000,
    temperatures: Annotated[int, typer.Option(min=0, help="Temperatures of annealed importance sampling; 0: none.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="How many data, from the first, the bounds are found for.")] = 100,
    seed: Seed = 0,
) -> None:
    """Fits one guide and bounds log p(x) with it: by its ELBO, by importance weighting, by annealing.

    Example:

        taut evidence --model VAE --data "digits(binarised=True)" --batch-size 100 --temperatures 100
    """
    with explained():
        how = method(steps, lr, stop, start, restarts, (2000, 0.01), objective, optimiser)
        title, instance, x = names.problem(model, data)
        done = _fitted(instance, _only(guide), x, how, batch_size=batch_size, seed=seed, progress=console.is_terminal)
        fitted, some = _first(done, x, rows)
        table = _table(
            f"{title}, {guide}\nlog p(x) of {len(some)} of {len(x)} data, nats per datum", "by", "mean ± SE", "ESS", "worst k̂"
        )
        loose = elbo(done.model, fitted, some, draws=100, seed=seed)
        table.add_row("ELBO", _pm(loose.value / len(some), loose.se / len(some)), "–", "–")
        bounds = {f"IWAE, {draws} draws": iwae(done.model, fitted, some, draws=draws, seed=seed)}
        if temperatures:
            bounds[f"AIS, {temperatures} temperatures"] = ais(done.model, fitted, some, temperatures=temperatures, seed=seed)
        for name, bound in bounds.items():
            per_datum = bound.value.sum() / len(some), bound.se.square().sum().sqrt() / len(some)
            table.add_row(
                name, _pm(*per_datum), f"{float(bound.ess.median()):.0f} of {bound.draws}", f"{float(bound.khat.max()):.2f}"
            )
        if isinstance(instance, Tractable):
            with torch.no_grad():
                table.add_row("exact", f"{float(instance.log_evidence(some).sum()) / len(some):.4f}", "–", "–")
        console.print(table)


@app.command("gaps")
def gaps_of_many(  # noqa: PLR0917
    model: Model = "VAE",
    data: Data = None,
    guides: Annotated[str, typer.Option(help="Guides of this suite, such as `Local(Flow), Amortized(MeanField, MLP)`.")] = (
        VAE_GUIDES
    ),
    steps: Steps = None,
    lr: Rate = None,
    objective: Objective = None,
    optimiser: Optimiser = None,
    stop: Stop = None,
    start: Start = None,
    restarts: Restarts = 1,
    batch_size: BatchOfEncoders = None,
    rows: Annotated[int, typer.Option(min=1, help="How many data, from the first, the gaps are found for.")] = 100,
    ascent_steps: Annotated[int, typer.Option(min=1, help="Steps, at most, to the best λ of each datum.")] = 1000,
    draws: Draws = 500,
    evidence_draws: Annotated[int, typer.Option(min=1, help="Draws of the evidence bound, where it is not exact.")] = 2000,
    seed: Seed = 0,
    jobs: Jobs = PROCESSES,
    out: Annotated[Path, typer.Option(help="Folder for the table (CSV) and a picture for each guide (PNG).")] = Path("gaps"),
    overwrite: Overwrite = False,
) -> None:
    """Fits each guide to a copy of the model and splits log p(x) − ELBO: the family's fault, the encoder's, the optimiser's.

    A minibatch step moves an encoder for all rows, but of a table of λ its own rows alone: a Local guide takes all rows at
    each step, so that as many steps mean as many to every λ.

    Example:

        taut gaps --data "digits(binarised=True)" --batch-size 128
    """
    with explained():
        how = method(steps, lr, stop, start, restarts, (1000, 0.01), objective, optimiser)
        check_folder(out, overwrite=overwrite)
        title, instance, x = names.problem(model, data)
        factories = names.parse_guides(guides)
        heads = ("log p(x)", "ELBO", "approximation", "amortization", "optimisation")
        table = _table(f"{title}\ngaps of the first {min(rows, len(x))} of {len(x)} data, nats per datum", "guide", *heads)
        options = {
            "ascent": Ascent(steps=ascent_steps, patience=5),
            "draws": draws,
            "evidence_draws": evidence_draws,
            "seed": seed,
        }
        work = (
            delayed(_gaps)(instance, factory, x, how, rows, batch_size=batch_size, **options) for factory in factories.values()
        )
        done = Parallel(n_jobs=jobs, return_as="generator")(work)
        bar = tqdm(done, total=len(factories), disable=not console.is_terminal, unit="guide")
        records, pictures = [], {}
        for name, found in zip(factories, bar, strict=True):
            parts = {"log p(x)": found.evidence, "ELBO": found.elbo, **found.parts}
            table.add_row(name, *(_pm(part.mean, part.mean_se) for part in parts.values()))
            numbers = {f"{key}{end}": v for key, p in parts.items() for end, v in (("", p.mean), (" se", p.mean_se))}
            records.append({"guide": name, "log p(x) by": found.evidence_by, **numbers})
            pictures[name] = found.plot()
        console.print(table)
        with written_whole(out) as part:
            pd.DataFrame(records).to_csv(part / "gaps.csv", index=False)
            for name, picture in pictures.items():
                picture.savefig(part / f"{re.sub(r'[^0-9A-Za-z]+', '-', name).strip('-')}.png", dpi=150)
        console.print(f"Table and pictures are in {out}.", soft_wrap=True)


def _only(text: str) -> Callable[[Any], Any]:
    factories = names.parse_guides(text)
    if len(factories) != 1:
        raise names.UnknownNameError(f"one guide is expected, but {text!r} has {len(factories)}.")
    return next(iter(factories.values()))


def _gaps(
    model: Any, factory: Callable[[Any], Any], x: Tensor, how: Method, rows: int, *, batch_size: int | None, **options: Any
) -> Gaps:
    model = copy.deepcopy(model)
    done = _fitted(model, factory, x, how, batch_size=batch_size, seed=options["seed"], whole_tables=True)
    return gaps(done.model, *_first(done, x, rows), **options)


def _fitted(
    model: Any,
    factory: Callable[[Any], Any],
    x: Tensor,
    how: Method,
    *,
    batch_size: int | None,
    seed: int,
    whole_tables: bool = False,
    progress: bool = False,
) -> Fit:
    with isolated(seed):
        guide = factory(model)
    if isinstance(guide, Local) and whole_tables:
        batch_size = None
    return fit(model, guide, x, **how, batch_size=batch_size, seed=seed, progress=progress)


def _first(done: Fit, x: Tensor, rows: int) -> tuple[Any, Tensor]:
    """The first rows and a guide for them, where a guide can be had for some rows alone; else all of them."""
    guide = unwrap(done.guide)
    if not isinstance(guide, Guide) or not guide.local:
        return done.guide, x
    if isinstance(guide, Amortized):
        return guide, x[:rows]
    with torch.no_grad():
        return with_table(guide, guide.lambdas(x)[:rows], (x[:rows],)), x[:rows]


def _pictures(model: Any, guide: Any, x: Tensor, folder: Path) -> None:
    if not isinstance(model, VAE) or not isinstance(guide, Guide) or guide.family.discrete:
        return
    active_units_picture(guide, x).savefig(folder / "active-units.png", dpi=150)
    try:
        prior_samples(model).savefig(folder / "prior-samples.png", dpi=150)
    except ValueError:  # x_i is no image
        return
    whole = isinstance(guide, Local)
    traversals(model, guide, x if whole else x[:500]).savefig(folder / "traversals.png", dpi=150)
    if not whole:
        reconstructions(model, guide, x).savefig(folder / "reconstructions.png", dpi=150)
    if model.latents == 2:
        manifold(model).savefig(folder / "manifold.png", dpi=150)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=position > 0, overflow="fold")
    return table


def _pm(value: Any, se: Any) -> str:
    return f"{float(value):.3f} ± {float(se):.3f}"
