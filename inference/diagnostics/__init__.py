"""Diagnostics: whether q, or a model, is what it should be."""

from .stein import SteinCheck, stein_check

__all__ = ["SteinCheck", "stein_check"]
