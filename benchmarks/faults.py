# ruff: noqa: ARG001, ARG005 - faults have the same arguments
"""Does the cache of compiled loops survive faults? Hundreds of them are injected, each into an entry that was made before.

    python benchmarks/faults.py --faults 600

A stub takes the place of the compiler, and writes a library of known bytes. After each fault the cache may say that there is
no entry, or raise a `BuildError`, but it must never load other bytes. Once the fault is over, the entry is made again, and
the entry of another loop is still there.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.engine.errors import BuildError
from inference.engine.inductor import cache
from inference.engine.inductor.background import is_under_way

SIZE = 40_000
"""Bytes of a library of the stub."""
NAME = "known-fault"


def library(entry: str) -> bytes:
    """The bytes that belong to an entry."""
    return random.Random(entry).randbytes(SIZE)


def stub_build(loop, inputs, folder, *, threads):
    """Writes a library by way of a temporary folder, piece by piece, as the compiler does."""
    with tempfile.TemporaryDirectory() as work:
        made = Path(work) / "made.so"
        with made.open("wb") as file:
            content = library(loop)
            for begin in range(0, SIZE, 4000):
                file.write(content[begin : begin + 4000])
                file.flush()
        shutil.move(made, folder / "loop.so")
        (folder / "loop.json").write_text("{}")


def stub_load(folder):
    """The bytes of the library, in place of its code."""
    return (folder / "loop.so").read_bytes()


Fault = Callable[[Path, random.Random], object]
DAMAGES: dict[str, Fault] = {}
"""Change what is on disk."""
CALLS: dict[str, Fault] = {}
"""Make a call of the system fail while an entry is being made; each is a context."""


def damage(act: Fault) -> Fault:
    DAMAGES[act.__name__.replace("_", " ")] = act
    return act


def failing(act: Fault) -> Fault:
    CALLS[act.__name__.replace("_", " ")] = contextmanager(act)
    return act


@damage
def truncated_library(entry, rng):
    os.truncate(entry / "loop.so", rng.randrange(SIZE))


@damage
def flipped_bit(entry, rng):
    content = bytearray((entry / "loop.so").read_bytes())
    content[rng.randrange(SIZE)] ^= 1 << rng.randrange(8)
    (entry / "loop.so").write_bytes(content)


@damage
def checksum_that_is_no_text(entry, rng):
    (entry / "checksum").write_bytes(rng.randbytes(64))


@damage
def truncated_checksum(entry, rng):
    os.truncate(entry / "checksum", rng.randrange(64))


@damage
def file_removed(entry, rng):
    rng.choice(sorted(entry.iterdir())).unlink()


@damage
def entry_that_is_a_file(entry, rng):
    shutil.rmtree(entry)
    entry.write_bytes(rng.randbytes(100))


@damage
def dangling_link(entry, rng):
    shutil.rmtree(entry)
    entry.symlink_to(entry.with_name(f"nowhere-{rng.random()}"))


@damage
def link_to_itself(entry, rng):
    shutil.rmtree(entry)
    entry.symlink_to(entry)


@damage
def empty_folder(entry, rng):
    shutil.rmtree(entry)
    entry.mkdir(mode=0o700)


@damage
def library_that_is_a_folder(entry, rng):
    (entry / "loop.so").unlink()
    (entry / "loop.so").mkdir()


@damage
def writable_by_others(entry, rng):
    (entry / "loop.so").write_bytes(rng.randbytes(SIZE))
    (entry / "checksum").write_text(cache._checksum(entry))
    entry.chmod(0o777)


@damage
def library_of_another_entry(entry, rng):
    (entry / "loop.so").write_bytes(library("other"))


@damage
def killed_while_it_was_made(entry, rng):
    """A second process makes it anew and is killed at some moment."""
    shutil.rmtree(entry)
    child = os.fork()
    if not child:
        try:
            cache.make(entry, entry.name, [], threads=1)
        finally:
            os._exit(0)
    time.sleep(rng.uniform(0.0, 0.004))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@damage
def made_by_several_at_once(entry, rng):
    shutil.rmtree(entry)
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            try:
                cache.make(entry, entry.name, [], threads=1)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


@damage
def abandoned_building(entry, rng):
    """What a killed process leaves; old ones are removed when the next loop is made."""
    left = entry.with_name(f"{cache.BUILDING}{rng.random()}")
    (left / "loop").mkdir(parents=True)
    (left / "loop" / "loop.so").write_bytes(rng.randbytes(100))
    old = time.time() + rng.choice([-1, 1]) * 2 * cache.MAX_BUILDING_AGE
    os.utime(left, (old, old))
    shutil.rmtree(entry)


@damage
def order_of_a_dead_process(entry, rng):
    order = entry.with_suffix(".order")
    order.write_bytes(rng.randbytes(50))
    age = rng.choice([-1e6, 1e6])
    os.utime(order, (time.time() + age, time.time() + age))
    if is_under_way(order):
        raise AssertionError("the order blocks for ever")


def _raising(name: str, code: int, rng: random.Random, which: Callable[..., bool] = lambda *_: True) -> Iterator[None]:
    """Makes one call of os.`name`, or all from it on, fail."""
    before, calls = getattr(os, name), [rng.randrange(6)]

    def call(*args, **kwargs):
        calls[0] -= 1
        if calls[0] < 0 and which(*args):
            raise OSError(code, os.strerror(code), str(args[0]))
        return before(*args, **kwargs)

    setattr(os, name, call)
    try:
        yield
    finally:
        setattr(os, name, before)


@failing
def full_disk(entry, rng):
    real = Path.open

    def opened(self, mode="r", *args, **kwargs):
        file = real(self, mode, *args, **kwargs)
        if "w" in mode and rng.random() < 0.5:
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return file

    Path.open = opened
    try:
        yield
    finally:
        Path.open = real


@failing
def cross_device_temporary_files(entry, rng):
    def across(source, target, *_):
        return str(cache.folder()) in str(target) and str(cache.folder()) not in str(source)

    yield from _raising("rename", errno.EXDEV, random.Random(0), across)


@failing
def read_only(entry, rng):
    name = rng.choice(["mkdir", "rename", "open"])
    inside = rng.choice([True, False])
    yield from _raising(name, errno.EROFS, rng, lambda path, *_: inside or str(cache.folder()) in str(path))


@failing
def no_more_files(entry, rng):
    yield from _raising("open", errno.EMFILE, rng)


def judged(entry: Path, expected: bytes, *, must: bool) -> str:
    """What the cache says about an entry: "found", "none", or a fault of the cache itself."""
    found = cache.find(entry, NAME)
    if found is None:
        return "LOST" if must else "none"
    return "found" if found == expected else "WRONG"


def injected(kind: str, folder: Path, rng: random.Random) -> str:
    """Injects one fault and returns the outcome."""
    entry, other = folder / "entry", folder / "other"
    outcome = "healed"
    for name in (entry, other):
        if cache.find(name, NAME) is None:
            cache.make(name, name.name, [], threads=1)
    try:
        if kind in DAMAGES:
            DAMAGES[kind](entry, rng)
            if judged(entry, library("entry"), must=False) == "WRONG":
                return "WRONG"
        else:
            shutil.rmtree(entry)
            with CALLS[kind](entry, rng):
                try:
                    cache.make(entry, "entry", [], threads=1)
                except BuildError:
                    outcome = "said, healed"
        if cache.find(entry, NAME) is None:
            cache.make(entry, "entry", [], threads=1)
    except Exception as error:
        return f"CRASH {type(error).__name__}: {error}"
    for name in (entry, other):
        if (found := judged(name, library(name.name), must=True)) != "found":
            return f"{found} ({name.name})"
    cache._forget_abandoned(folder)
    old = [left for left in folder.glob(f"{cache.BUILDING}*") if abs(time.time() - left.stat().st_mtime) > 3600]
    return "LITTER" if old else outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=600)
    options = parser.parse_args()
    cache.build, cache.load = stub_build, stub_load
    cache._loaded = lambda entry, checksum: stub_load(entry)
    rng, begin = random.Random(0), time.perf_counter()
    kinds = [*DAMAGES, *CALLS]
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as work:
        os.environ["TAUT_CACHE"] = work
        for k in range(options.faults):
            kind = kinds[k % len(kinds)]
            outcomes[kind][injected(kind, Path(work), rng)] += 1
    rows = [f"| {kind} | {sum(n.values())} | {', '.join(f'{w} {c}' for w, c in n.items())} |" for kind, n in outcomes.items()]
    bad = sum(c for n in outcomes.values() for w, c in n.items() if w not in ("healed", "said, healed"))
    print("\n".join(["| fault | injected | outcome |", "|---|---|---|", *rows]))
    print(f"\n{options.faults} faults, {bad} of them lost, wrong or not healed, in {time.perf_counter() - begin:.0f} s.")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
