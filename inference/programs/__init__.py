"""Runs a Pyro model and guide: validates, isolates, binds to parameters, draws, and scores the draws."""

__all__: list[str] = []
