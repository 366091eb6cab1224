"""Deep copies of programs."""

from __future__ import annotations

import copy
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import nn

__all__ = ["copied"]


def copied(program: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy` that leaves autoguides as they are: Pyro's makes both the original and the copy forget their model.

    Args:
        program: a model or guide.
        memo: what has been copied already, and its copy, by the id of the original.
    """
    parts = [m for m in program.modules() if isinstance(m, AutoGuide)] if isinstance(program, nn.Module) else []
    links = [(part._model, part.master) for part in parts]
    try:
        new = copy.deepcopy(program, memo)
    finally:
        for part, (model, master) in zip(parts, links, strict=True):
            part._model, part.master = model, master
    for part, (model, _) in zip(parts, links, strict=True):
        memo[id(part)]._model = model and tuple(memo.get(id(program), program) for program in model)
    return new
