"""Compiled loops kept on disk, so that a second process need not compile."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .build import Compiled, build, load
from .loop import Loop

__all__ = ["MOST_BYTES", "entry", "find", "folder", "make"]

FORMAT = 1
"""Counts the versions of what `build` makes from a loop."""
MOST_BYTES = 512 * 2**20
"""When more is kept, what was not used for longest is removed."""


def folder() -> Path:
    """Where compiled loops are kept: $TAUT_CACHE, or taut in the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("TAUT_CACHE") or Path(caches) / "taut")


def entry(loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> Path:
    """The place of a loop, named by all that its compiled form depends on: operations, layout of the inputs, versions and
    processor."""
    layout = [(tuple(value.shape), value.stride(), str(value.dtype)) for value in inputs]
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), threads, FORMAT)
    return folder() / hashlib.sha256(repr((loop.body.code, layout, machine)).encode()).hexdigest()


def find(entry: Path) -> Compiled | None:
    """The compiled loop, if it is there and whole."""
    if not _is_whole(entry):
        return None
    os.utime(entry)
    return load(entry)


def make(entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
    """Compiles the loop and puts it in its place.

    An entry appears at once and complete, by renaming, so that any number of processes may make it at the same time; one
    that is torn or altered is replaced.

    Raises:
        BuildError: if it cannot be compiled.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix="building-") as work:
        made = Path(work) / "loop"
        made.mkdir()
        build(loop, inputs, made, threads=threads)
        (made / "checksum").write_text(_checksum(made))
        _put(made, entry)
    _forget_oldest(entry)


def _put(made: Path, entry: Path) -> None:
    try:
        made.rename(entry)
    except OSError:
        # Another process has put it there, or what is there is torn.
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            made.rename(entry)


def _is_whole(entry: Path) -> bool:
    try:
        return (entry / "checksum").read_text() == _checksum(entry)
    except OSError:
        return False


def _checksum(entry: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(entry.glob("loop.*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _forget_oldest(keep: Path) -> None:
    entries = sorted((e for e in keep.parent.iterdir() if (e / "checksum").exists()), key=lambda e: e.stat().st_mtime)
    sizes = {e: sum(file.stat().st_size for file in e.iterdir()) for e in entries}
    total = sum(sizes.values())
    for old in entries:
        if total <= MOST_BYTES:
            break
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)
            total -= sizes[old]
