"""Options that say how a fit is made, shared by the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from joblib import cpu_count

from . import names

__all__ = ["PROCESSES", "RATE", "Jobs", "Method", "Objective", "Optimiser", "Restarts", "Start", "Stop", "method"]

RATE = "Learning rate of Adam at the first step; falls to zero along a cosine. With --stop found by itself."
PROCESSES: int = cpu_count()

Objective = Annotated[
    str | None, typer.Option(help="What is maximised, such as `StickingTheLanding(8)` or `IWAE(5)`; see `taut list`.")
]
Optimiser = Annotated[str | None, typer.Option(help="Such as `SGD(momentum=0.9)` or `FixedDraws`; Adam by default.")]
Stop = Annotated[
    str | None,
    typer.Option(help="When to end, instead of --steps, such as `Converged, MaxSeconds(60)`; see `taut list`."),
]
Start = Annotated[str | None, typer.Option(help="Where the guide starts: `FromInit` (a draw of the prior) or `FromPrior`.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes to share the fits out to.")]
Restarts = Annotated[int, typer.Option(min=1, help="How many starts are tried, the best of which is kept.")]

Method = dict[str, Any]


def method(  # noqa: PLR0917
    steps: int | None,
    lr: float | None,
    stop: str | None,
    start: str | None,
    restarts: int,
    defaults: tuple[int, float],
    objective: str | None = None,
    optimiser: str | None = None,
) -> Method:
    """Options of `fit`. Without --stop, --steps and --lr are `defaults`; with it there are none but those that are given."""
    chosen: Method = {"restarts": restarts}
    if stop is None:
        chosen |= {"steps": defaults[0] if steps is None else steps, "lr": defaults[1] if lr is None else lr}
    else:
        chosen |= {"steps": steps, "lr": lr, "stop": names.parse_rules(stop)}
    if start is not None:
        chosen["start"] = names.parse_start(start)
    if objective is not None:
        chosen["objective"] = _one(names.parse_objectives(objective), "--objective")
    if optimiser is not None:
        chosen["optimiser"] = _one(names.parse_optimisers(optimiser), "--optimiser")
    return chosen


def _one(made: dict[str, Any], option: str) -> Any:
    if len(made) != 1:
        raise names.UnknownNameError(f"{option} takes one, but {', '.join(made)} are {len(made)}.")
    return next(iter(made.values()))
