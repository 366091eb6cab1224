"""Runs on disk, under a name that depends on everything that the draws depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

__all__ = ["program_name", "read_run", "run_file", "write_run"]


def program_name(model: Callable[..., Any]) -> str:
    """The name of a model's class, or of a function."""
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")


def run_file(folder: Path, name: str, posterior: str, about: Mapping[str, Any]) -> Path:
    """The file of a run: its name is a hash of the posterior, the call and the versions.

    Args:
        folder: the folder of all runs.
        name: the name of the model, for a reader of the folder.
        posterior: its `fingerprint`.
        about: the call and the versions.
    """
    digest = hashlib.sha256(json.dumps([posterior, about], sort_keys=True).encode())
    return folder / f"{name}-{digest.hexdigest()[:32]}.npz"


def read_run(file: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a run; None if there is no such file or it is damaged."""
    try:
        with np.load(BytesIO(file.read_bytes())) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_run(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes the arrays of a run, whole or not at all: no reader ever sees a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".npz")
    with os.fdopen(handle, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    Path(name).replace(file)
