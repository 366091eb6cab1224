"""Moment errors of every guide on the posteriors of posteriordb and of this suite, and how often `trust` is right about them.

    TAUT_DATA=folder python benchmarks/posteriors.py

The folder holds posteriordb/. Takes about an hour on one core. With TAUT_FITS=folder, fits are stored there and read from
there, so that a change of `trust` needs no new fits. Each fit has a fixed seed, so a stored fit gives the same numbers.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from results import record
from standardised import Standardised

import models
from guides import Amortized, Defensive, Family, Flow, FullRank, Global, Guide, Local, MeanField, Structured
from inference import Decision, Fit, NonFiniteLossError, Verdict, elbo, fit, iwae, reference, trust
from inference.diagnostics import MomentErrors, by_name, moment_errors
from inference.engine import Eager, Graph
from inference.objectives import TraceELBO
from inference.programs.isolation import isolated
from inference.programs.quantities import scalars
from inference.stopping import Stop
from models import EightSchools, HierarchicalModel, LocalModel, LogisticRegression, Model, Radon
from models.posteriordb import problem
from models.posteriordb.problem import ports

SEED = 0
"""Seed of the fits, data and draws on which the thresholds of `trust` were chosen."""
HELD_OUT = 1
"""Seed of fits, data and draws that played no part in that choice."""
STEPS = 300
"""Steps of the first fit; each later one has as many as all before it together."""
MAX_STEPS = 9600
LR = 0.05
DRAWS = 8
JOBS = 1
MAX_GAIN = 0.05
"""In nats: a fit has converged if its ELBO gains no more than this when its steps are doubled."""
MAX_ERROR = 0.3
"""An estimate counts as right below this error: of a mean in reference sds, of an sd relative to the reference sd."""
SCHOOLS = -31.311347
"""log p(x) of eight schools, by quadrature."""
FITS = os.environ.get("TAUT_FITS")
"""Folder of stored fits."""


@dataclass(frozen=True)
class Row:
    """One guide fitted to one posterior."""

    posterior: str
    guide: str
    seed: int
    verdict: Verdict
    plain: MomentErrors
    corrected: MomentErrors
    evidence: float | None
    trained: Trained


@dataclass(frozen=True)
class Trained:
    """A fit whose steps were doubled until its ELBO gained no more, or `MAX_STEPS` were reached."""

    fit: Fit
    steps: int
    gain: float
    """Gain of the ELBO in the second half of the steps, in nats; the fit has converged if it is at most `MAX_GAIN`."""
    lr: float
    seconds: float


def guides_for(model: Model) -> dict[str, Callable[[Model], Any]]:
    """The guides for a model with continuous latents, by name; hierarchical models have more of them."""
    found: dict[str, Callable[[Model], Any]] = {
        "mean field": lambda m: Global(m, MeanField()),
        "full rank": lambda m: Global(m, FullRank()),
        "flow": lambda m: Global(m, Flow()),
    }
    if isinstance(model, HierarchicalModel):
        found["structured"] = lambda m: Structured(m, MeanField())
        found["amortized"] = lambda m: Amortized(m, MeanField())
    return found


def trained(name: str, model: Model, factory: Callable[[Model], Guide], x: torch.Tensor, seed: int) -> Trained:
    """Fits a guide, or reads it from the folder of stored fits. Tries a smaller rate if a loss is not finite."""
    file = None if FITS is None else Path(FITS) / (f"{name}.pt" if seed == SEED else f"{name}, seed {seed}.pt")
    if file is not None and file.exists():
        known = torch.load(file)
        guide = factory(model)
        guide.setup(x)
        guide.load_state_dict(known.pop("state"))
        store: Any = {"params": {}, "constraints": {}}
        stop = Stop(None, "read from the folder of fits", converged=known["gain"] <= MAX_GAIN)
        done = Fit(
            model=model,
            guide=guide,
            nelbo=torch.zeros(0),
            steps=known["steps"],
            seconds=0.0,
            seed=seed,
            stop=stop,
            params=store,
        )
        return Trained(done, **known)
    for lr in (LR, LR / 5):
        try:
            found = _doubled(model, factory, x, lr, seed)
        except NonFiniteLossError:
            continue
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            numbers = {"steps": found.steps, "gain": found.gain, "lr": found.lr, "seconds": found.seconds}
            torch.save({"state": found.fit.guide.state_dict(), **numbers}, file)
        return found
    raise RuntimeError(f"{name}: the loss is not finite at lr {LR} nor at lr {LR / 5}.")


def _doubled(model: Model, factory: Callable[[Model], Guide], x: torch.Tensor, lr: float, seed: int) -> Trained:
    begin = time.perf_counter()
    with isolated(seed):
        guide = factory(model)
    total, steps, before, gain = 0, STEPS, -float("inf"), float("inf")
    while total < MAX_STEPS and gain > MAX_GAIN:
        # Capturing a step takes as long as some hundred steps by Pyro.
        engine = Graph if steps > STEPS else Eager
        done = fit(model, guide, x, steps=steps, lr=lr, objective=TraceELBO(DRAWS), engine=engine, seed=seed + total)
        total += steps
        now = elbo(model, guide, x, draws=4000, seed=seed).value
        gain, before, steps = now - before, now, total
    return Trained(done, total, gain, lr, time.perf_counter() - begin)


def measured(
    names: tuple[str, str], model: Model, factory: Any, *, x: torch.Tensor, truth: Any, evidence: float | None, seed: int
) -> Row:
    """Fits a guide and compares its moments with `truth`, the reference means and sds. Prints the row."""
    found = trained(" ".join(names), model, factory, x, seed)
    verdict = trust(found.fit, x, seed=seed)
    weighted = verdict.weighted
    mean, sd = (by_name(weighted.scalars.names, values) for values in truth)
    errors = [moment_errors(*m, mean, sd) for m in (weighted.moments(), weighted.corrected())]
    row = Row(*names, seed, verdict, *errors, evidence, found)
    print(line(row), flush=True)
    return row


def posteriordb_rows(path: Path, name: str) -> list[Row]:
    """Fits every guide to a posterior of posteriordb."""
    _prepare()
    rows = []
    model, x, entry = problem(path, name)
    evidence = None if entry.exact is None else entry.exact.log_evidence
    for label, factory in guides_for(model).items():
        # A hierarchical posterior is a funnel, whose density has no maximum: there is no Laplace approximation.
        coordinates = model if hasattr(model, "centered") else Standardised(model, x, diagonal=label == "mean field")
        rows.append(measured((name, label), coordinates, factory, x=x, truth=entry.moments(), evidence=evidence, seed=SEED))
    return rows


def suite_rows(name: str, seed: int) -> list[Row]:
    """Fits mean field and full rank to a model of this suite; no rows unless its posterior is known and continuous."""
    _prepare()
    kind = getattr(models, name)
    if not (issubclass(kind, Model) and hasattr(kind, "posterior")) or getattr(kind, "__abstractmethods__", None):
        return []
    model, x = kind.demo(seed=1 + seed)
    model, x = model.double(), x.double()
    posterior = model.posterior(x)
    if posterior.support.is_discrete or any(parameter.requires_grad for parameter in model.parameters()):
        return []  # a fit would also learn the model, and so change its posterior
    with isolated(seed):
        draws = posterior.sample((100_000,)).flatten(1)
    mean, sd = draws.mean(0).tolist(), draws.std(0).tolist()
    shape = (len(x), -1) if isinstance(model, LocalModel) else (-1,)
    names = scalars({"h": draws.unflatten(1, shape)[:2]}).names
    truth = dict(zip(names, mean, strict=True)), dict(zip(names, sd, strict=True))
    exact = float(model.log_evidence(x).sum())
    source = Local if isinstance(model, LocalModel) else Global
    return [
        measured((name, label), model, _factory(source, family), x=x, truth=truth, evidence=exact, seed=seed)
        for label, family in (("mean field", MeanField()), ("full rank", FullRank()))
    ]


def nuts_rows(kind: type[Model], seed: int) -> list[Row]:
    """Fits every guide to a model's demonstration data; the reference moments are from a long run of NUTS."""
    _prepare()
    model, x = kind.demo(seed=seed)
    model, x = model.double(), x.double()
    truth = reference(model, x, cache=FITS).moments()
    return [
        measured((kind.__name__, label), model, factory, x=x, truth=truth, evidence=None, seed=seed)
        for label, factory in guides_for(model).items()
    ]


def schools_table(rows: list[Row]) -> list[str]:
    """Estimates log p(x) of eight schools by importance sampling from each global guide, plain and `Defensive`."""
    table = ["| guide | ELBO | q as it is | errors of 40 | q, defensive | errors of 40 |", "|---|---|---|---|---|---|"]
    x = EightSchools.demo()[1].double()
    for row in rows:
        model, guide = row.trained.fit.model, row.trained.fit.guide
        if not isinstance(guide, Global):
            continue
        cells = [f"{row.posterior.split('_')[-1]}, {row.guide}"]
        cells.append(f"{elbo(model, guide, x, draws=20_000, seed=SEED).value:.3f}")
        for proposal in (guide, Defensive(guide)):
            one = iwae(model, proposal, x, draws=100_000, seed=SEED)
            many = [iwae(model, proposal, x, draws=10_000, seed=seed) for seed in range(1, 41)]
            z = torch.stack([(each.value - SCHOOLS) / each.se for each in many])
            cells.append(f"{float(one.value):.4f} ± {float(one.se):.4f}, k̂ {float(one.khat):.2f}")
            cells.append(f"{float(z.mean()):+.2f} ± {float(z.std()):.2f}, at most {float(z.abs().max()):.1f}")
        table.append("| " + " | ".join(cells) + " |")
    return table


def _prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)


def _factory(source: Any, family: Family) -> Callable[[Model], Any]:
    return lambda m: source(m, family)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    v = row.verdict
    evidence = "improper prior"
    if v.weighted.proper:
        evidence = f"{v.weighted.log_evidence.value:.3f} ± {v.weighted.log_evidence.se:.3f}"
    known = "–" if row.evidence is None else f"{row.evidence:.3f}"
    cells = [
        row.posterior,
        row.guide,
        f"{float(row.plain.mean.max()):.2f} ({float(row.plain.mean.mean()):.2f})",
        f"{float(row.plain.sd.max()):.2f} ({float(row.plain.sd.mean()):.2f})",
        f"{float(row.corrected.mean.max()):.2f}",
        f"{float(row.corrected.sd.max()):.2f}",
        f"{v.khat:.2f}",
        evidence,
        known,
        v["means"].value.replace("importance ", ""),
        v["sds"].value.replace("importance ", ""),
        f"{row.trained.steps}" + (f", lr {row.trained.lr:g}" if row.trained.lr != LR else ""),
        f"{row.trained.gain:.2f}",
        f"{row.trained.seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def confusion(rows: list[Row]) -> list[str]:
    """Counts the fits and scalars for each decision, and the scalars whose error is below `MAX_ERROR`."""
    table = ["| decision | fits | means within 0.3 sd | fits | sds within 30 % |", "|---|---|---|---|---|"]
    for decision in Decision:
        cells = [decision.value]
        for quantity, field in (("means", "mean"), ("sds", "sd")):
            chosen = [row for row in rows if row.verdict[quantity] is decision]
            errors = [getattr(row.corrected if decision is Decision.CORRECT else row.plain, field) for row in chosen]
            right = torch.cat(errors) < MAX_ERROR if errors else torch.zeros(0)
            share = f"{int(right.sum())} of {len(right)} scalars ({float(right.float().mean()):.1%})" if len(right) else "–"
            cells += [str(len(chosen)), share]
        table.append("| " + " | ".join(cells) + " |")
    return table


def main() -> None:
    _prepare()
    path = Path(os.environ["TAUT_DATA"]) / "posteriordb"
    columns = ["posterior", "guide", "mean error", "sd error", "corrected mean", "corrected sd", "k̂"]
    columns += ["log p(x), weighted", "exact", "means", "sds", "steps", "gain", "s"]
    header = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    print("\n".join(header))
    # Longest first, so that parallel jobs end together.
    order = sorted(ports(), key=lambda name: (not name.startswith("garch"), not name.startswith("radon"), name))
    by_nuts = ((LogisticRegression, SEED), (LogisticRegression, HELD_OUT), (Radon, SEED))
    work = [delayed(posteriordb_rows)(path, name) for name in order]
    work += [delayed(suite_rows)(name, seed) for seed in (SEED, HELD_OUT) for name in models.__all__]
    work += [delayed(nuts_rows)(kind, seed) for kind, seed in by_nuts]
    every = [row for rows in Parallel(n_jobs=JOBS)(work) for row in rows]
    done, held_out = ([row for row in every if row.seed == seed] for seed in (SEED, HELD_OUT))
    real = sorted((row for row in done if row.posterior in ports()), key=lambda row: row.posterior)
    own = [row for row in done if row.posterior not in ports()]
    schools = [row for row in real if "eight_schools" in row.posterior]
    record(
        __file__,
        "\n".join(
            [
                "## Posteriors: errors of moments, and the verdicts of `trust`",
                "",
                f"Adam, {STEPS} steps, then as many again as it had until the ELBO gains less than {MAX_GAIN} nats by that, "
                f"at most {MAX_STEPS}; each time lr {LR} falls to zero. *gain*: the last of these gains, so what is above "
                f"{MAX_GAIN} has not converged. {DRAWS} draws a step, seed {SEED}. Errors: largest over the scalars (mean in "
                "brackets), of means in reference sds, of sds as a share. Corrected: by Pareto-smoothed weights. Truth: exact "
                "moments where known, else the reference draws; for LogisticRegression and Radon a long run of NUTS. Of "
                "posteriordb's all but the hierarchical are fitted in coordinates standardised at the mode.",
                "",
                *header,
                *(line(row) for row in (*real, *own)),
                "",
                f"### Eight schools: log p(x) = {SCHOOLS}",
                "",
                *schools_table(schools),
                "",
                "± after a value is its standard error, with 100 000 draws. *Errors*: of 40 estimates with 10 000 draws "
                "each, in units of the standard error that each reports: mean ± sd, and the largest. An unbiased estimate "
                "with a correct standard error has 0 ± 1. *Defensive*: a quarter of the prior is mixed into q, so the "
                "weights are bounded.",
                "",
                f"### Is the verdict right? All {len(real) + len(own)} fits above",
                "",
                *confusion([*real, *own]),
                "",
                f"### Is it right on fits that it was not tuned on? {len(held_out)} other fits",
                "",
                "The thresholds of `trust` were chosen on the fits above. These are fits of the suite's own models, except "
                f"Radon, to other data, with seed {HELD_OUT}.",
                "",
                *confusion(held_out),
                "",
                "For *use with importance correction* the corrected moments are judged, otherwise those of q. `TAUT_DATA=… "
                "python benchmarks/posteriors.py`.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
