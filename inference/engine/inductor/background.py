"""A loop compiled by a second process, while the first goes on."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..graphs.loop_body import Loop
from . import cache

__all__ = ["Background"]


STALE = 120.0
"""Seconds after which an order that is still there belongs to a process that has died."""


class Background:
    """Compiles a loop into its place on disk, at low priority. It goes on if this process ends.

    Where another process has ordered the same loop already, this one waits for it.

    Args:
        entry: its place in the cache.
        loop, inputs, threads: as for `cache.make`; of the inputs only shapes and dtypes are handed on.

    Raises:
        OSError, CalledProcessError: if there can be no second process.
    """

    def __init__(self, entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
        self._order = entry.with_suffix(".order")
        self._failure = entry.with_suffix(".failure")
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._order.exists() and time.time() - self._order.stat().st_mtime < STALE:
            return
        layout = [(tuple(value.shape), value.stride(), value.dtype) for value in inputs]
        # As text: a graph module would run, when it is unpickled, what does not depend on an input.
        names = loop.body.graph.python_code("self").globals
        modules = {name: value.__name__ for name, value in names.items() if isinstance(value, ModuleType)}
        others = {name: value for name, value in names.items() if name not in modules}
        source = loop.body.code, modules, others
        self._failure.unlink(missing_ok=True)
        self._order.write_bytes(pickle.dumps((entry, source, loop.packing, layout, threads, torch.get_default_dtype())))
        root = str(Path(__file__).parents[3])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        compiler = [sys.executable, "-P", "-m", "inference.engine.inductor.background", str(self._order)]
        try:
            # By way of a process that ends at once, so that none is left for this one to wait for. It stays in this
            # session: Linux shares a processor between sessions first, and heeds its priority only within one.
            subprocess.run(
                [sys.executable, "-S", "-c", f"import subprocess; subprocess.Popen({compiler!r})"],
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            self._order.unlink(missing_ok=True)
            raise

    @property
    def finished(self) -> bool:
        """Whether it is over, well or not."""
        return not self._order.exists()

    @property
    def failure(self) -> str:
        """Why there is no loop, if it is over and there is none."""
        try:
            return self._failure.read_text()
        except OSError:
            return "the process that compiled it has ended"


def _main(order: Path) -> None:
    os.nice(19)
    try:
        entry, (code, modules, names), packing, layout, threads, dtype = pickle.loads(order.read_bytes())
        torch.set_default_dtype(dtype)
        names.update({name: import_module(module) for name, module in modules.items()})
        exec(code, names)
        loop = Loop(partial(names["forward"], None), [], packing)
        inputs = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in layout]
        cache.make(entry, loop, inputs, threads=threads)
    except Exception as error:
        order.with_suffix(".failure").write_text(str(error) or type(error).__name__)
        raise
    finally:
        order.unlink()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
