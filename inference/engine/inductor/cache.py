"""Keeps compiled loops on disk, so that a second process need not compile."""

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
from . import hoist_allocations
from .build import RunLoop, build, load

__all__ = ["MAX_BYTES", "entry", "find", "folder", "knows", "make", "nickname"]

MAX_BYTES = 512 * 2**20
"""Above this size in total, the least recently used loops are removed."""


def folder() -> Path:
    """The folder of compiled loops: $TAUT_CACHE, or `taut` in the user's cache folder."""
    if own := os.environ.get("TAUT_CACHE"):
        return Path(own)
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "taut"


def entry(loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> Path:
    """The folder of a loop, named by a hash of all that its library depends on: operations, layout of the inputs, versions
    and processor."""
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


def find(entry: Path, nickname: str) -> RunLoop | None:
    """The compiled loop, or None if it is not on disk, damaged, or cannot be loaded."""
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
    """Compiles the loop into the folder `entry`.

    The folder appears complete, by renaming, so that several processes may make it at the same time. A damaged one is
    replaced.

    Raises:
        BuildError: if the loop cannot be compiled or written.
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
    """The source text of the modules that compile a loop."""
    return [Path(str(module.__file__)).read_text() for module in (build_module, hoist_allocations)]


@cache
def _processor() -> str:
    """The instruction sets of this processor; the compiler uses all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _put(made: Path, entry: Path) -> None:
    try:
        made.rename(entry)
    except OSError:
        # Another process has put it there, or the folder there is damaged.
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
        if total <= MAX_BYTES:
            break
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)
            total -= sizes[old]
