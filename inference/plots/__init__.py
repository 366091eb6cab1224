"""Figures. Every function is given numbers; none imports a result class."""

__all__: list[str] = []
