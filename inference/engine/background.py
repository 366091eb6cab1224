"""A loop compiled by a second process, while the first goes on."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from . import cache
from .loop import Loop

__all__ = ["Background"]


class Background:
    """Compiles a loop into its place on disk, at low priority. It goes on if this process ends.

    Args:
        entry: its place in the cache.
        loop, inputs, threads: as for `cache.make`; of the inputs only shapes and dtypes are handed on.
    """

    def __init__(self, entry: Path, loop: Loop, inputs: Sequence[Tensor], *, threads: int) -> None:
        layout = [(tuple(value.shape), value.stride(), value.dtype) for value in inputs]
        with tempfile.NamedTemporaryFile(prefix="taut-", suffix=".pickle", delete=False) as file:
            # As text: a graph module would run, when it is unpickled, what does not depend on an input.
            names = loop.body.graph.python_code("self").globals
            modules = {name: value.__name__ for name, value in names.items() if isinstance(value, ModuleType)}
            others = {name: value for name, value in names.items() if name not in modules}
            source = loop.body.code, modules, others
            pickle.dump((entry, source, loop.packing, layout, threads, torch.get_default_dtype()), file)
        self._order = Path(file.name)
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        compiler = [sys.executable, "-P", "-m", "inference.engine.background", file.name]
        # By way of a process that ends at once, so that none is left for this one to wait for.
        subprocess.run(
            [sys.executable, "-S", "-c", f"import subprocess; subprocess.Popen({compiler!r})"],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )

    @property
    def finished(self) -> bool:
        """Whether it is over, well or not."""
        return not self._order.exists()


def _main(order: Path) -> None:
    os.nice(10)
    try:
        entry, (code, modules, names), packing, layout, threads, dtype = pickle.loads(order.read_bytes())
        torch.set_default_dtype(dtype)
        names.update({name: import_module(module) for name, module in modules.items()})
        exec(code, names)
        loop = Loop(partial(names["forward"], None), [], packing)
        inputs = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in layout]
        cache.make(entry, loop, inputs, threads=threads)
    finally:
        order.unlink()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
