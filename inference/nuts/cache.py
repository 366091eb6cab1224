"""Runs on disk, under a name that depends on everything that the draws depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["program_name", "read_run", "run_file", "write_run"]


def program_name(model: Callable[..., Any]) -> str:
    """The name of a model's class, or of a function."""
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")


def run_file(folder: Path, model: Callable[..., Any], args: tuple[Any, ...], about: Mapping[str, Any]) -> Path:
    """The file of a run: its name is a hash of the model's code, its numbers, the data, the call and the versions.

    Args:
        folder: the folder of all runs.
        model: the model; the code of its class and its base classes counts, other packages' apart.
        args: the data.
        about: the call and the versions.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    kinds = type(model).__mro__ if isinstance(model, nn.Module) else (model,)
    for kind in kinds:
        if not getattr(kind, "__module__", "").startswith(("torch", "pyro", "builtins", "abc")):
            digest.update(inspect.getsource(kind).encode())
    if isinstance(model, nn.Module):
        options = {k: v for k, v in vars(model).items() if isinstance(v, (int, float, str, bool, tuple))}
        digest.update(repr(sorted(options.items())).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    for value in args:
        plain = not isinstance(value, Tensor)
        digest.update(repr(value).encode() if plain else value.detach().cpu().contiguous().numpy().tobytes())
    return folder / f"{program_name(model)}-{digest.hexdigest()[:16]}.npz"


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
