"""Engines: ways to take the steps of a fit, all along the same trajectory."""

from .auto import Auto
from .base import Engine
from .compiled import CompiledLoop
from .eager import Eager
from .errors import CaptureError
from .graph import Graph
from .graphs.capture import capture
from .problem import Problem
from .simultaneous import SimultaneousFits

__all__ = ["Auto", "CaptureError", "CompiledLoop", "Eager", "Engine", "Graph", "Problem", "SimultaneousFits", "capture"]
