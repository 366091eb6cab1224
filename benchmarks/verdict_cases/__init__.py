"""Posteriors whose moments are known, each with a q whose errors are known: what `trust` should say follows from both."""

from .base import Case, Truth, deserved, is_held_back
from .conjugate import conjugate_cases
from .densities import density_cases
from .fits import fit_cases
from .modes import mode_cases

__all__ = ["Case", "Truth", "all_cases", "deserved", "is_held_back"]


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    cases = [*conjugate_cases(), *density_cases(), *mode_cases(), *fit_cases()]
    found = {case.name: case for case in cases}
    assert len(found) == len(cases), "two cases have one name"
    return found
