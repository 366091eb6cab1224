"""Imports the packages that add filters of warnings for the whole process, and takes these filters back."""

from __future__ import annotations

import warnings

import pyro
import torch

# torch's and Pyro's own filters stay.
with warnings.catch_warnings():
    import scipy.optimize
    import scipy.sparse
    import scipy.special
    import scipy.stats

__all__ = ["DEPENDENCIES"]

DEPENDENCIES = (pyro, torch, scipy)
"""What is imported before the rest of `inference`."""
