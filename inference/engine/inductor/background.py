"""Compiles a loop by a second process while the fit goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ..graphs.loop_body import Loop, Packing
from . import cache

__all__ = ["Background", "is_under_way"]


MAX_ORDER_AGE = 120.0
"""Seconds since its last touch after which an order belongs to a process that has died."""
MAX_COMPILATION = 1800.0
"""Seconds after which a compilation is given up."""


class Background:
    """Compiles a loop into its place on disk by a second process, at low priority. It goes on if this process ends.

    If another process has ordered the same loop already, this one waits for that.

    Args:
        entry: the loop's place in the cache.
        loop, inputs, threads: as for `cache.make`; only shapes and dtypes of the inputs are handed on.

    Raises:
        OSError, CalledProcessError: if no second process can be started.
    """

    def __init__(self, entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
        self._order = entry.with_suffix(".order")
        self._failure = entry.with_suffix(".failure")
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_under_way(self._order):
            return
        order = {
            "entry": str(entry),
            "code": loop.body.code,
            "state": [
                [list(shape), _name(dtype)] for shape, dtype in zip(loop.packing.shapes, loop.packing.dtypes, strict=True)
            ],
            "inputs": [[list(value.shape), list(value.stride()), _name(value.dtype)] for value in inputs],
            "threads": threads,
            "default_dtype": _name(torch.get_default_dtype()),
        }
        cache.discard(self._failure)
        cache.discard(self._order)
        self._order.write_text(json.dumps(order))
        try:
            _start(self._order)
        except (OSError, subprocess.CalledProcessError):
            self._order.unlink(missing_ok=True)
            raise

    @property
    def finished(self) -> bool:
        """Whether the second process is done, with or without success, or has died."""
        return not is_under_way(self._order)

    @property
    def failure(self) -> str:
        """Why there is no compiled loop after the second process is done."""
        try:
            return self._failure.read_text(errors="replace")
        except OSError:
            return "the process that compiled it has ended"


def is_under_way(order: Path) -> bool:
    """Whether a process works on the order. It says so by touching it; a time in the future says nothing."""
    try:
        age = time.time() - order.stat().st_mtime
    except OSError:
        return False
    return order.is_file() and -MAX_ORDER_AGE < age < MAX_ORDER_AGE


def _start(order: Path) -> None:
    """Starts the second process, by way of a process that ends at once, so that this one has no child to wait for.

    The process stays in this session: Linux divides a processor between sessions first, and heeds priorities only within one.
    """
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    compiler = [sys.executable, "-P", "-m", "inference.engine.inductor.background", str(order)]
    subprocess.run(
        [sys.executable, "-S", "-c", f"import subprocess; subprocess.Popen({compiler!r}, process_group=0)"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
        check=True,
    )


def _main(path: Path) -> None:
    """Carries out an order."""
    os.nice(19)
    threading.Thread(target=_keep_fresh, args=(path,), daemon=True).start()
    try:
        order = json.loads(path.read_text())
        torch.set_default_dtype(getattr(torch, order["default_dtype"]))
        # The names that torch.fx uses in the code of any graph.
        names: dict[str, Any] = dict(fx.Graph().python_code("self").globals)
        exec(order["code"], names)
        state = [torch.empty(shape, dtype=getattr(torch, dtype)) for shape, dtype in order["state"]]
        loop = Loop(partial(names["forward"], None), [], Packing(state))
        inputs = [torch.empty_strided(shape, stride, dtype=getattr(torch, dtype)) for shape, stride, dtype in order["inputs"]]
        cache.make(Path(order["entry"]), loop, inputs, threads=order["threads"])
    except Exception as error:
        path.with_suffix(".failure").write_text(str(error) or type(error).__name__)
        raise
    finally:
        path.unlink(missing_ok=True)


def _keep_fresh(order: Path) -> None:
    """Touches the order as long as this process lives, and ends it if the order is gone or takes too long."""
    begin = time.monotonic()
    while time.monotonic() - begin < MAX_COMPILATION:
        time.sleep(MAX_ORDER_AGE / 8)
        try:
            os.utime(order)
        except OSError:
            return
    _end_compilers()
    os._exit(1)


def _end_compilers() -> None:
    """Ends this process' group, in which the C++ compiler runs."""
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
