"""Compiled loops kept on disk, so that a second process need not compile."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BuildError
from ..graphs.loop_body import Loop
from ..problem import Problem
from . import build as build_module
from . import hoist_allocations as lean
from . import inline_triangular_solve as triangular
from .build import Compiled, build, load

__all__ = ["MOST_BYTES", "entry", "find", "folder", "knows", "make", "nickname"]

MOST_BYTES = 512 * 2**20
"""When more is kept, what was not used for longest is removed."""


def folder() -> Path:
    """Where compiled loops are kept: $TAUT_CACHE, or taut in the user's folder of caches."""
    if own := os.environ.get("TAUT_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "taut"


def entry(loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> Path:
    """The place of a loop, named by all that its compiled form depends on: operations, layout of the inputs, versions and
    processor."""
    layout = [(tuple(value.shape), value.stride(), str(value.dtype)) for value in inputs]
    processor = torch.backends.cpu.get_cpu_capability(), platform.machine(), _processor()
    made_by = torch.__version__, torch.get_default_dtype(), threads, _makers()
    return folder() / hashlib.sha256(repr((loop.body.code, layout, processor, made_by)).encode()).hexdigest()


def nickname(problem: Problem, *, fits: int = 1) -> str:
    """A name for a loop before it is captured, from the programs' names and the shapes of parameters and data.

    Two loops may share a nickname; it only tells whether capturing is worth a try.

    Args:
        problem: the fit.
        fits: the number of fits in the loop.
    """
    programs = [getattr(program, "__qualname__", type(program).__qualname__) for program in (problem.model, problem.guide)]
    kinds = [type(part).__qualname__ for part in (problem.objective, problem.optimiser)]
    tensors = [*problem.parameters, *(value for value in problem.batches.args if isinstance(value, Tensor))]
    layout = [(tuple(value.shape), str(value.dtype)) for value in tensors]
    words = programs, kinds, layout, problem.batches.batch_size, fits
    return f"known-{hashlib.sha256(repr(words).encode()).hexdigest()}"


def knows(nickname: str) -> bool:
    """Whether a loop has been found under this nickname before."""
    return next(folder().glob(f"*/{nickname}"), None) is not None


def find(entry: Path, nickname: str) -> Compiled | None:
    """The compiled loop, if it is there, whole, and can be loaded."""
    if not _is_whole(entry):
        return None
    try:
        found = load(entry)
        (entry / nickname).touch()
        os.utime(entry)
    except (OSError, RuntimeError):
        return None
    return found


def make(entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
    """Compiles the loop and puts it in its place.

    An entry appears at once and complete, by renaming, so that any number of processes may make it at the same time; one
    that is torn or altered is replaced.

    Raises:
        BuildError: if it cannot be compiled.
    """
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix="building-") as work:
            made = Path(work) / "loop"
            made.mkdir()
            build(loop, inputs, made, threads=threads)
            (made / "checksum").write_text(_checksum(made))
            _put(made, entry)
        _forget_oldest(entry)
    except OSError as error:
        raise BuildError(f"the compiled step could not be written to {entry.parent} ({error})") from error


@cache
def _makers() -> list[str]:
    """The modules that make a library of a loop."""
    return [Path(str(module.__file__)).read_text() for module in (build_module, lean, triangular)]


@cache
def _processor() -> str:
    """The instructions that this processor knows, for the compiler uses them all."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


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
