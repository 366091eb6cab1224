"""Reads posteriordb: data, reference draws and exact moments, from a clone or from a folder for each posterior."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Entry", "Exact", "Reference", "entries", "load"]


@dataclass(frozen=True)
class Reference:
    """Draws of a long run, in constrained space."""

    names: tuple[str, ...]
    """Names of the scalars, such as ``theta[1]``; indices start at 1."""
    draws: Tensor = field(repr=False)
    """Shape (chains, draws, scalars), float64."""

    def quantities(self) -> dict[str, Tensor]:
        """The draws of each quantity, chains concatenated, shape (K, *shape)."""
        flat = self.draws.flatten(0, 1)
        columns: dict[str, list[int]] = {}
        for position, name in enumerate(self.names):
            columns.setdefault(name.split("[")[0], []).append(position)
        scalar = {name for name in self.names if "[" not in name}
        return {name: flat[:, at[0]] if name in scalar else flat[:, at] for name, at in columns.items()}


@dataclass(frozen=True)
class Exact:
    """Moments by algebra or quadrature."""

    mean: dict[str, float]
    sd: dict[str, float]
    log_evidence: float | None
    """log p(x) with normalised priors, in nats; None if it does not exist or is not known."""


@dataclass(frozen=True)
class Entry:
    """One posterior of posteriordb."""

    name: str
    data: Mapping[str, Any]
    reference: Reference | None
    exact: Exact | None

    def moments(self) -> tuple[dict[str, float], dict[str, float]]:
        """Mean and standard deviation of each scalar: exact if known, else those of the reference draws.

        Raises:
            ValueError: if there is neither.
        """
        if self.exact is not None:
            return self.exact.mean, self.exact.sd
        if self.reference is None:
            raise ValueError(f"{self.name} has neither exact moments nor reference draws: add exact.json or draws.npz.")
        flat = self.reference.draws.flatten(0, 1)
        mean, sd = flat.mean(0).tolist(), flat.std(0).tolist()
        names = self.reference.names
        return dict(zip(names, mean, strict=True)), dict(zip(names, sd, strict=True))


def entries(path: str | Path) -> list[str]:
    """Names of the posteriors at `path`: a posteriordb clone, its ``posterior_database``, or a folder of folders.

    Raises:
        FileNotFoundError: if `path` is not a folder.
    """
    root, cloned = _root(path)
    found = (root / "posteriors").glob("*.json") if cloned else root.glob("*/data.json")
    return sorted(file.stem if cloned else file.parent.name for file in found)


def load(path: str | Path, name: str) -> Entry:
    """Reads one posterior.

    Args:
        path: a posteriordb clone, or a folder with one folder for each posterior. That folder holds ``data.json`` and
            optionally ``draws.npz`` (arrays ``draws``, (chains, draws, scalars), and ``names``) and ``exact.json``.
        name: for instance ``"eight_schools-eight_schools_centered"``.

    Raises:
        FileNotFoundError: if `path` or a file of the entry is missing.
        ValueError: if there is no posterior of this name (the nearest is suggested), or a file is damaged.
    """
    known = entries(path)
    if name not in known:
        near = get_close_matches(name, known, 1, 0.3)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(known) or 'none'}."
        raise ValueError(f"{path} holds no posterior {name!r}.{hint}")
    root, cloned = _root(path)
    return _from_clone(root, name) if cloned else _from_folder(root / name, name)


def _root(path: str | Path) -> tuple[Path, bool]:
    path = Path(path)
    for candidate in (path / "posterior_database", path):
        if (candidate / "posteriors").is_dir():
            return candidate, True
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: give a posteriordb clone, or a folder of posteriors.")
    return path, False


def _from_folder(folder: Path, name: str) -> Entry:
    reference = exact = None
    for file in sorted(folder.glob("draws*.npz")):
        reference = _read_npz(file)
    if (folder / "exact.json").is_file():
        content = _read_json(folder / "exact.json")
        moments = content["parameters"]
        exact = Exact(
            mean={k: v["mean"] for k, v in moments.items()},
            sd={k: v["sd"] for k, v in moments.items()},
            log_evidence=content.get("log_evidence_normalised_priors"),
        )
    return Entry(name, _read_json(folder / "data.json"), reference, exact)


def _from_clone(root: Path, name: str) -> Entry:
    about = _read_json(root / "posteriors" / f"{name}.json")
    data = _read_json(root / "data" / "data" / f"{about['data_name']}.json.zip")
    reference = None
    if about.get("reference_posterior_name"):
        file = root / "reference_posteriors" / "draws" / "draws" / f"{about['reference_posterior_name']}.json.zip"
        chains = _read_json(file)
        names = tuple(chains[0])
        reference = _reference(names, np.asarray([[chain[k] for k in names] for chain in chains]).swapaxes(1, 2), file)
    return Entry(name, data, reference, None)


def _read_json(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the posteriordb folder is incomplete; fetch it again.")
    try:
        if file.suffix != ".zip":
            return json.loads(file.read_text())
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read(file.stem))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again.") from error


def _read_npz(file: Path) -> Reference:
    try:
        with np.load(BytesIO(file.read_bytes())) as arrays:
            names, draws = tuple(str(n) for n in arrays["names"]), arrays["draws"]
    except (KeyError, OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again.") from error
    return _reference(names, draws, file)


def _reference(names: tuple[str, ...], draws: Any, file: Path) -> Reference:
    if draws.ndim != 3 or draws.shape[2] != len(names):
        raise ValueError(f"{file}: draws have shape {draws.shape}, but (chains, draws, {len(names)}) is expected.")
    if any(re.fullmatch(r"\w+(\[\d+\])?", name) is None for name in names):
        raise ValueError(f"{file}: names must be scalars or entries of a vector, as theta[1], but are {names}.")
    return Reference(names, torch.from_numpy(np.asarray(draws, dtype=np.float64)))
