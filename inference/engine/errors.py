"""Reasons for which a fit gives way to a slower engine."""

from __future__ import annotations

__all__ = ["BuildError", "CaptureError", "DifferenceError", "HiddenStateError", "LoopError", "MappingError", "OtherDrawsError"]


class CaptureError(RuntimeError):
    """The program cannot be captured, or its captured step is wrong; the message says why and where."""


class OtherDrawsError(CaptureError):
    """The captured step draws other random numbers than the program, which sets the generator's state itself."""

    def __init__(self) -> None:
        super().__init__("it draws other random numbers than the program")


class DifferenceError(CaptureError):
    """The captured step computes another loss, gradient or update than Pyro."""


class HiddenStateError(CaptureError):
    """The program keeps state between calls that is no parameter, such as a count of its calls."""


class MappingError(CaptureError):
    """The captured step of one fit cannot be mapped over several."""


class LoopError(RuntimeError):
    """A captured step cannot be repeated in a loop, because of its optimiser, schedule or device."""


class BuildError(RuntimeError):
    """A loop could not be compiled; the message says why."""
