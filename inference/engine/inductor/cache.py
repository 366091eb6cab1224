"""Keeps compiled loops on disk, so that a second process need not compile."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BuildError
from ..graphs.loop_body import Loop
from ..problem import Problem
from . import build as build_module
from . import hoist_allocations
from .build import RunLoop, build, load

__all__ = ["MAX_BYTES", "discard", "entry", "find", "folder", "knows", "make", "nickname"]

MAX_BYTES = 512 * 2**20
"""Above this size in total, the least recently used loops are removed."""


MAX_LOADED = 16
"""Libraries that stay loaded."""
BUILDING = "building-"
"""The beginning of the name of a folder in which a loop is being compiled."""
MAX_BUILDING_AGE = 3600.0
"""Seconds after which the folder of an unfinished compilation belongs to a process that has died."""


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
    try:
        return next(folder().glob(f"*/{nickname}"), None) is not None
    except OSError:
        return False


def find(entry: Path, nickname: str) -> RunLoop | None:
    """The compiled loop, or None if it is not on disk, damaged, written by another user, or cannot be loaded."""
    if not (_is_ours(entry.parent) and _is_ours(entry) and _is_whole(entry)):
        return None
    try:
        found = _loaded(entry, (entry / "checksum").read_text())
        (entry / nickname).touch()
        os.utime(entry)
    except (OSError, RuntimeError):
        return None
    return found


@lru_cache(maxsize=MAX_LOADED)
def _loaded(entry: Path, checksum: str) -> RunLoop:
    """The library, loaded once for all fits of this process that share it."""
    del checksum
    return load(entry)


def make(entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
    """Compiles the loop into the folder `entry`.

    The folder appears complete, by renaming, so that several processes may make it at the same time. A damaged one is
    replaced.

    Raises:
        BuildError: if the loop cannot be compiled or written.
    """
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(entry.parent):
            raise BuildError(
                f"other users can write to {entry.parent}, and its libraries would be run: set TAUT_CACHE to one of your own"
            )
        _forget_abandoned(entry.parent)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=BUILDING, ignore_cleanup_errors=True) as work:
            made = Path(work) / "loop"
            made.mkdir(mode=0o700)
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
        # Another process has put it there, or what is there is damaged: a folder, a file or a link to nothing.
        if not (_is_ours(entry) and _is_whole(entry)):
            discard(entry)
            made.rename(entry)


def discard(entry: Path) -> None:
    """Removes a file, a folder or a link, if it is there."""
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether this user alone can write to the folder, whose libraries are run."""
    try:
        found = folder.stat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(entry: Path) -> bool:
    try:
        return (entry / "checksum").read_bytes() == _checksum(entry).encode() and (entry / "loop.so").is_file()
    except OSError:
        return False


def _checksum(entry: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(entry.glob("loop.*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _forget_abandoned(folder: Path) -> None:
    """Removes what processes that were killed have left: unfinished compilations, orders and messages, by age."""
    for left in folder.iterdir():
        if left.name.startswith(BUILDING) or left.suffix in (".order", ".failure"):
            with suppress(OSError):
                if abs(time.time() - left.lstat().st_mtime) > MAX_BUILDING_AGE:
                    discard(left)


def _forget_oldest(keep: Path) -> None:
    sizes: dict[Path, tuple[float, int]] = {}
    for entry in keep.parent.iterdir():
        # Another process may remove it meanwhile.
        with suppress(OSError):
            if (entry / "checksum").exists():
                sizes[entry] = entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir())
    total = sum(size for _, size in sizes.values())
    for old, (_, size) in sorted(sizes.items(), key=lambda found: found[1][0]):
        if total <= MAX_BYTES:
            break
        if old != keep:
            shutil.rmtree(old, ignore_errors=True)
            total -= size
