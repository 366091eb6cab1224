"""Figures. Every function takes numbers; no module imports a model, a guide or a result class."""

__all__: list[str] = []
