"""Names of guides in Pyro's param store: each instance its own, or two of one class would share their parameters."""

from __future__ import annotations

from collections import Counter

from pyro.nn import PyroModule

__all__ = ["own_name", "rename"]

_MADE: Counter[str] = Counter()
"""Number of names made so far, by class."""


def own_name(kind: type) -> str:
    """A name that no other instance has: that of its class, with a number from the second instance on."""
    _MADE[kind.__name__] += 1
    made = _MADE[kind.__name__]
    return kind.__name__ if made == 1 else f"{kind.__name__}_{made}"


def rename(copy: PyroModule) -> None:
    """Gives a copy a name of its own."""
    name = own_name(type(copy))
    for path, part in copy.named_modules():
        if isinstance(part, PyroModule):
            part._pyro_name = f"{name}.{path}" if path else name
