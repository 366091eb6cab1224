"""Results on disk: tables, pictures, draws and weights, written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from ..comparison import Comparison
from ..fitting.to_arviz import to_arviz

__all__ = ["check_folder", "save_comparison", "written_whole"]

SUFFIXES = {".csv", ".png", ".nc", ".pt"}


def check_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raises unless results can be written to `folder`, which is made only when they are.

    Raises:
        FileExistsError: if it holds results and `overwrite` is false, or anything else in any case.
        PermissionError, NotADirectoryError: if it cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if foreign := sorted(path.name for path in folder.iterdir() if path.suffix not in SUFFIXES):
            raise FileExistsError(f"{folder} holds {foreign[0]!r}, which is no result: pass another --out.")
        if not overwrite:
            raise FileExistsError(f"{folder} already holds results: pass --overwrite to replace them, or another --out.")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{folder} cannot be made: {parent} is a file. Pass another --out.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written: no permission in {parent}. Pass another --out.")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which takes the place of `folder` when all is written, and vanishes on an error."""
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
    """Writes table.csv (means over seeds), runs.csv (each fit), elbo.png, and a NetCDF file of draws for each guide.

    Args:
        comparison: what to write.
        x: the data that it was made from.
        folder: where to; made if it is not there.
        draws: how many draws of each guide's first seed its NetCDF file holds.
        overwrite: replace what `folder` holds.
    """
    check_folder(folder, overwrite=overwrite)
    with written_whole(folder) as part:
        comparison.to_frame().to_csv(part / "table.csv", index=False)
        _runs(comparison).to_csv(part / "runs.csv", index=False)
        comparison.plot().savefig(part / "elbo.png", dpi=150)
        names: dict[str, str] = {}
        for run in comparison.runs:
            if run.fit is not None and run.name not in names:
                names[run.name] = _file_name(run.name, set(names.values()))
                to_arviz(run.fit, x, draws=draws).to_netcdf(str(part / names[run.name]), engine="h5netcdf")


def _file_name(guide: str, taken: set[str]) -> str:
    stem = re.sub(r"[^0-9A-Za-z]+", "-", guide).strip("-") or "guide"
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
