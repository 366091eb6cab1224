"""A comparison on disk: tables, picture and draws, written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from .compare import Comparison
from .storage import to_arviz

__all__ = ["check_folder", "save_comparison"]


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raises unless results can be written to `folder`, which is made only when they are.

    Raises:
        FileExistsError: if it holds something and `overwrite` is false.
        PermissionError, NotADirectoryError: if it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} already holds results: pass --overwrite to replace them, or another --out.")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder} cannot be made: {parent} is a file. Pass another --out.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: no permission in {parent}. Pass another --out.")


def save_comparison(
    comparison: Comparison, x: Tensor | tuple[Any, ...], folder: Path, *, draws: int = 100, overwrite: bool = False
) -> None:
    """Writes table.csv (means over seeds), runs.csv (each fit), elbo.png, and a NetCDF file of draws for each guide.

    Args:
        comparison: what to write.
        x: the data that it was made from.
        folder: where to; made if it is not there.
        draws: how many draws of each guide's first seed its NetCDF file holds.
        overwrite: replace what `folder` holds.
    """
    check_folder(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".taut-") as scratch:
        part = Path(scratch, "part")
        part.mkdir()
        comparison.to_frame().to_csv(part / "table.csv", index=False)
        _runs(comparison).to_csv(part / "runs.csv", index=False)
        comparison.plot().savefig(part / "elbo.png", dpi=150)
        written: set[str] = set()
        for run in comparison.runs:
            if run.fit is not None and run.guide not in written:
                written.add(run.guide)
                stored = to_arviz(run.fit, x, draws=draws)
                stored.to_netcdf(str(part / f"{re.sub(r'[^0-9A-Za-z]+', '-', run.guide).strip('-')}.nc"), engine="h5netcdf")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)


def _runs(comparison: Comparison) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "guide": run.guide,
            "seed": run.seed,
            "elbo": run.elbo,
            "elbo_se": run.elbo_se,
            "evidence": run.evidence,
            "best_elbo": run.best,
            "seconds": run.fit.seconds if run.fit else None,
            "steps": run.fit.steps if run.fit else None,
        }
        for run in comparison.runs
    )
