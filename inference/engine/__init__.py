"""Engines: ways to run one step of a fit, all along the same trajectory."""

from .auto import Auto
from .base import Engine, Problem
from .compiled import CompiledLoop
from .eager import Eager
from .graph import Graph
from .graphs.capture import CaptureError, capture
from .together import Member, Together

__all__ = ["Auto", "CaptureError", "CompiledLoop", "Eager", "Engine", "Graph", "Member", "Problem", "Together", "capture"]
