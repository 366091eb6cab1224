"""Real posteriors: moment errors of every guide, and how often the verdict on them is right.

TAUT_DATA=… python benchmarks/posteriors.py        the folder that holds posteriordb/; about an hour of one core

With TAUT_FITS=folder the fits are kept there and read from there, so that a change of the verdict needs no new fits. The
numbers are the same: every fit is fixed by its seed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from joblib import Parallel, delayed
from pyro.distributions import Normal
from results import record

import models
from guides import Amortized, Defensive, Family, Flow, FullRank, Global, Guide, Local, MeanField, Structured
from inference import Decision, Fit, NonFiniteLossError, Verdict, elbo, fit, iwae, reference, trust
from inference.diagnostics import MomentErrors, by_name, moment_errors
from inference.engine import Eager, Graph
from inference.objectives import TraceELBO
from inference.programs import quantities as scalars
from inference.programs.isolation import isolated
from inference.programs.log_joint import LogJoint
from inference.stopping import Stop
from models import EightSchools, HierarchicalModel, LocalModel, LogisticRegression, Model, Radon
from models.posteriordb import problem
from models.posteriordb.problem import ports

SEED = 0
"""Of the fits, data and draws on which the thresholds of `trust` were chosen."""
HELD_OUT = 1
"""Of others, which they have not seen."""
STEPS = 300
LONGEST = 9600
LR = 0.05
PARTICLES = 8
JOBS = 1
STILL = 0.05
"""Nats: a fit whose ELBO gains less from as many steps again as it had has converged."""
CLOSE = 0.3
"""Error of a mean in reference sds, and of an sd as a share, that counts as right."""
SCHOOLS = -31.311347
"""log p(x) of eight schools, by quadrature."""
FITS = os.environ.get("TAUT_FITS")


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
    """A fit that was given twice the steps until its ELBO stood still."""

    fit: Fit
    steps: int
    gain: float
    """Of the ELBO, in nats, by the second half of the steps: what says whether the fit has converged."""
    lr: float
    seconds: float


class Standardised(Model):
    """A model in coordinates h with u = centre + scale h: any affine family is the same there, and Adam's steps have a unit.

    u is the packed unconstrained latents; centre and scale are Laplace's at the mode. What stands for the prior is a wide
    Gaussian, which the likelihood is divided by: a density that can be drawn from, whatever the prior is.
    """

    def __init__(self, model: Model, x: torch.Tensor, *, diagonal: bool) -> None:
        super().__init__()
        self.inner, self.joint = [model], [LogJoint(model, x)]
        self.proper = model.proper
        joint = self.joint[0]
        centre = torch.zeros(joint.dim, dtype=x.dtype, requires_grad=True)
        descent = torch.optim.LBFGS([centre], max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure() -> torch.Tensor:
            descent.zero_grad()
            loss = -joint(centre.unsqueeze(0)).sum()
            loss.backward()
            return loss

        descent.step(closure)
        curvature = -joint.hessian(centre)
        lower = torch.linalg.cholesky(torch.linalg.inv(curvature))
        scale = curvature.diagonal().rsqrt().diag() if diagonal else lower
        self.register_buffer("centre", centre.detach())
        self.register_buffer("scale", scale)

    @classmethod
    def demo(cls, *, seed: int = 0) -> Any:
        raise NotImplementedError("it is made from another model")

    @classmethod
    def from_dataset(cls, data: Any) -> Any:
        raise NotImplementedError("it is made from another model")

    @property
    def data_shape(self) -> tuple[int, ...]:
        return self.inner[0].data_shape

    def check_data(self, x: torch.Tensor) -> None:
        self.inner[0].check_data(x)

    def forward(self, x: Any = None, index: Any = None, size: Any = None) -> torch.Tensor:
        return self.likelihood(self.prior(), x)

    def prior(self) -> torch.Tensor:
        return pyro.sample("h", self.wide())

    def wide(self) -> torch.distributions.Distribution:
        return Normal(torch.zeros_like(self.centre), 3.0).to_event(1)

    def likelihood(self, h: torch.Tensor, x: Any = None) -> torch.Tensor:
        u = self.centre + h @ self.scale.mT
        with pyro.validation_enabled(False):
            flat_density = torch.func.vmap(self.joint[0].at)(u.reshape(-1, u.shape[-1]))
        density = flat_density.reshape(u.shape[:-1]) + self.scale.diagonal().log().sum() - self.wide().log_prob(h)
        # The plate keeps its dimension free of draws, for the plates of the model inside.
        with pyro.plate("data", 1, dim=-1):
            pyro.factor("x", density)
        return density

    def quantities(self, h: Any) -> dict[str, torch.Tensor]:
        return self.inner[0].quantities(self.joint[0].constrain(self.centre + h["h"] @ self.scale.mT))


def guides_for(model: Model) -> dict[str, Callable[[Model], Any]]:
    """What is fitted to a model with latents of any kind."""
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
    """Fits a guide, or reads it from the folder of fits."""
    file = None if FITS is None else Path(FITS) / (f"{name}.pt" if seed == SEED else f"{name}, seed {seed}.pt")
    if file is not None and file.exists():
        known = torch.load(file)
        guide = factory(model)
        guide.setup(x)
        guide.load_state_dict(known.pop("state"))
        store: Any = {"params": {}, "constraints": {}}
        stop = Stop(None, "read from the folder of fits", converged=known["gain"] <= STILL)
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
    raise RuntimeError(f"{name} cannot be fitted.")


def _doubled(model: Model, factory: Callable[[Model], Guide], x: torch.Tensor, lr: float, seed: int) -> Trained:
    begin = time.perf_counter()
    with isolated(seed):
        guide = factory(model)
    total, steps, before, gain = 0, STEPS, -float("inf"), float("inf")
    while total < LONGEST and gain > STILL:
        # To capture a step costs as much as some hundred steps.
        engine = Graph if steps > STEPS else Eager
        done = fit(model, guide, x, steps=steps, lr=lr, objective=TraceELBO(PARTICLES), engine=engine, seed=seed + total)
        total += steps
        now = elbo(model, guide, x, draws=4000, seed=seed).value
        gain, before, steps = now - before, now, total
    return Trained(done, total, gain, lr, time.perf_counter() - begin)


def measured(
    names: tuple[str, str], model: Model, factory: Any, *, x: torch.Tensor, truth: Any, evidence: float | None, seed: int
) -> Row:
    found = trained(" ".join(names), model, factory, x, seed)
    verdict = trust(found.fit, x, seed=seed)
    weighted = verdict.weighted
    mean, sd = (by_name(weighted.scalars.names, values) for values in truth)
    errors = [moment_errors(*m, mean, sd) for m in (weighted.moments(), weighted.corrected())]
    row = Row(*names, seed, verdict, *errors, evidence, found)
    print(line(row), flush=True)
    return row


def posteriordb_rows(path: Path, name: str) -> list[Row]:
    """Every guide fitted to one of posteriordb's posteriors."""
    _prepare()
    rows = []
    model, x, entry = problem(path, name)
    evidence = None if entry.exact is None else entry.exact.log_evidence
    for label, factory in guides_for(model).items():
        # The funnel of a hierarchical posterior has no mode to standardise by.
        coordinates = model if hasattr(model, "centered") else Standardised(model, x, diagonal=label == "mean field")
        rows.append(measured((name, label), coordinates, factory, x=x, truth=entry.moments(), evidence=evidence, seed=SEED))
    return rows


def suite_rows(name: str, seed: int) -> list[Row]:
    """Mean field and full rank on one of the suite's own models, if its posterior is known and continuous."""
    _prepare()
    kind = getattr(models, name)
    if not (issubclass(kind, Model) and hasattr(kind, "posterior")) or getattr(kind, "__abstractmethods__", None):
        return []
    model, x = kind.demo(seed=1 + seed)
    model, x = model.double(), x.double()
    posterior = model.posterior(x)
    if posterior.support.is_discrete or any(parameter.requires_grad for parameter in model.parameters()):
        return []  # a fit would learn the model too, and with it change the truth
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
    """Every guide fitted to a demonstration whose truth is a long run of NUTS."""
    _prepare()
    model, x = kind.demo(seed=seed)
    model, x = model.double(), x.double()
    truth = reference(model, x, cache=FITS).moments()
    return [
        measured((kind.__name__, label), model, factory, x=x, truth=truth, evidence=None, seed=seed)
        for label, factory in guides_for(model).items()
    ]


def schools_table(rows: list[Row]) -> list[str]:
    """log p(x) of eight schools by importance sampling from each global guide as it is, and made defensive."""
    table = ["| guide | ELBO | q itself | errors of 40 | q, defensive | errors of 40 |", "|---|---|---|---|---|---|"]
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
    """For each decision, how many fits and scalars it was made on, and the share of scalars that are right."""
    table = ["| decision | fits | means within 0.3 sd | fits | sds within 30 % |", "|---|---|---|---|---|"]
    for decision in Decision:
        cells = [decision.value]
        for quantity, field in (("means", "mean"), ("sds", "sd")):
            chosen = [row for row in rows if row.verdict[quantity] is decision]
            errors = [getattr(row.corrected if decision is Decision.CORRECT else row.plain, field) for row in chosen]
            right = torch.cat(errors) < CLOSE if errors else torch.zeros(0)
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
    # The longest first.
    order = sorted(ports(), key=lambda name: (not name.startswith("garch"), not name.startswith("radon"), name))
    work = [delayed(posteriordb_rows)(path, name) for name in order]
    work += [delayed(suite_rows)(name, seed) for seed in (SEED, HELD_OUT) for name in models.__all__]
    work += [
        delayed(nuts_rows)(kind, seed)
        for kind, seed in ((LogisticRegression, SEED), (LogisticRegression, HELD_OUT), (Radon, SEED))
    ]
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
                f"Adam, {STEPS} steps; then the steps are doubled until that gains less than {STILL} nats of ELBO, up to "
                f"{LONGEST} steps in all. In each stretch lr falls from {LR} to zero. *gain* is the last of these gains: "
                f"above {STILL} the fit has not converged. {PARTICLES} draws a step, seed {SEED}.",
                "",
                "*Errors*: the largest over the scalars, with the mean in brackets; of means in reference sds, of sds "
                "relative to the reference sd. *Corrected*: by Pareto-smoothed weights. *Truth*: exact moments where "
                "known, else the reference draws; for LogisticRegression and Radon a long run of NUTS. The posteriors of "
                "posteriordb, except the hierarchical ones, are fitted in coordinates standardised at the mode.",
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
