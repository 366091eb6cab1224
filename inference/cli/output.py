"""Tables for the terminal, and folders of results that are written completely or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from ..comparison import Comparison
from ..fitting.to_arviz import to_arviz

__all__ = ["check_folder", "complete_folder", "file_stem", "plain_table", "plus_minus", "save_comparison"]

SUFFIXES = {".csv", ".png", ".nc", ".pt"}
"""File types that the commands write, and that --overwrite may therefore delete."""


def plain_table(title: str, *columns: str, text: int = 1, **options: Any) -> Table:
    """An empty table for the terminal, whose first `text` columns hold words and the others numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)
    for position, column in enumerate(columns):
        number = position >= text
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def plus_minus(value: Any, se: Any) -> str:
    """A number and its standard error; "–" for that of a single draw, which does not exist."""
    return f"{float(value):.3f} ± {'–' if isnan(float(se)) else f'{float(se):.3f}'}"


def file_stem(name: str) -> str:
    """A file name, without its ending, for a guide or a problem: letters, digits and hyphens."""
    return re.sub(r"[^0-9A-Za-z]+", "-", name).strip("-")


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Checks that results can be written to `folder`, without creating it.

    Raises:
        FileExistsError: if it holds results and `overwrite` is false, or if it holds anything but results.
        PermissionError, NotADirectoryError: if it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if foreign := sorted(path.name for path in folder.iterdir() if path.suffix not in SUFFIXES):
            raise FileExistsError(f"{folder} holds {foreign[0]!r}, which is not a result of taut: pass another --out.")
        if not overwrite:
            raise FileExistsError(f"{folder} already holds results: pass --overwrite to replace them, or another --out.")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder} cannot be created: {parent} is a file. Pass another --out.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: no write permission in {parent}. Pass another --out.")


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write to. On exit it replaces `folder`; on an error it is deleted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".taut-") as scratch:
        part = Path(scratch, "part")
        part.mkdir()
        yield part
        if folder.exists():
            folder.rename(Path(scratch, "replaced"))
        part.rename(folder)


def save_comparison(
    comparison: Comparison, x: Tensor | tuple[Any, ...], folder: Path, *, draws: int = 100, overwrite: bool = False
) -> None:
    """Writes table.csv (means over seeds), runs.csv (one row for each fit), elbo.png, and NetCDF draws of each guide.

    Args:
        comparison: the comparison to write.
        x: the data that was compared on.
        folder: where to write; created if missing.
        draws: number of draws in each NetCDF file, from the fit with the guide's first seed.
        overwrite: replace the results in `folder`.
    """
    check_folder(folder, overwrite=overwrite)
    with complete_folder(folder) as part:
        comparison.to_frame().to_csv(part / "table.csv", index=False)
        _runs(comparison).to_csv(part / "runs.csv", index=False)
        comparison.plot().savefig(part / "elbo.png", dpi=150)
        names: dict[str, str] = {}
        for run in comparison.runs:
            if run.fit is not None and run.name not in names:
                names[run.name] = _file_name(run.name, set(names.values()))
                to_arviz(run.fit, x, draws=draws).to_netcdf(str(part / names[run.name]), engine="h5netcdf")


def _file_name(guide: str, taken: set[str]) -> str:
    stem = file_stem(guide) or "guide"
    candidates = chain([f"{stem}.nc"], (f"{stem}-{i}.nc" for i in count(2)))
    return next(name for name in candidates if name not in taken)


def _runs(comparison: Comparison) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "guide": run.guide,
            **({"objective": run.objective} if run.objective else {}),
            **({"optimiser": run.optimiser} if run.optimiser else {}),
            "seed": run.seed,
            "elbo": run.elbo,
            "elbo_se": run.elbo_se,
            "evidence": run.evidence,
            "best_elbo": run.best,
            "seconds": run.fit.seconds if run.fit else None,
            "steps": run.fit.steps if run.fit else None,
            "stop": run.fit.stop.reason if run.fit else None,
            "distance": run.fit.stop.distance if run.fit else None,
        }
        for run in comparison.runs
    )
